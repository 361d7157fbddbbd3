"""Making a descriptions file from beginning to end: what is already there, the estimate, the questions, and the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedprompt.data.descriptions import Descriptions, read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.descriptions.attributes import describe_classes
from fedprompt.descriptions.conditions import Plan, describe_conditions
from fedprompt.descriptions.cost import Estimate, attribute_requests, condition_requests, estimate
from fedprompt.descriptions.edits import check_path, keep_edits, write_descriptions
from fedprompt.descriptions.endpoint import ChatServer, Endpoint, Request
from fedprompt.descriptions.plugins import PluginModel
from fedprompt.descriptions.requests import LlmClient, OnDone, RateLimit
from fedprompt.descriptions.transcript import Exchanges
from fedprompt.descriptions.validated_query import GenerationSettings
from fedprompt.errors import UserError


@dataclass(frozen=True)
class Job:
    """Where the file goes, who is asked and how hard. `agree` sees the estimate and may say no; `on_done` counts."""

    out: Path
    endpoint: Endpoint
    pace: RateLimit = field(default_factory=RateLimit)
    overwrite: bool = False  # hand edits too
    agree: Callable[[Estimate], bool] = lambda estimate: True
    on_done: OnDone = lambda done, total: None

    def __post_init__(self) -> None:
        check_path(self.out)

    @property
    def exchanges(self) -> Path:
        """Where every exchange is kept."""
        return self.out.with_suffix(".exchanges.jsonl")


@dataclass(frozen=True)
class Made:
    """The words as written, the lists that a person's edits kept, and what could not be used."""

    descriptions: Descriptions
    kept: tuple[str, ...]
    complaints: Mapping[str, tuple[str, ...]]


def open_endpoint(model: str, *, url: str = "", key_env: str = "OPENAI_API_KEY", timeout: float = 60.0) -> Endpoint:
    """The model at a server if there is a URL, else one of the `llm` library."""
    return ChatServer(url, model, key_env=key_env, timeout=timeout) if url else PluginModel(model)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines and lines that begin with # are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The class names {path} cannot be read ({error}); give a text file, one name a line."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not names:
        raise UserError(f"{path} holds no class name; write one a line.")
    return LabelSpace(names).names


def make_attributes(names: Sequence[str], job: Job, wish: GenerationSettings) -> Made | None:
    """Write the attributes of all classes; None if the estimate was not agreed to.

    Classes whose list a person has edited are neither asked about nor changed, unless the job overwrites.
    """
    old = _present(job, "conditions")
    asked = [name for name in names if name not in old.edited()]
    with Exchanges(job.exchanges) as exchanges:
        if not _agreed(job, attribute_requests(asked, wish), exchanges):
            return None
        correspondence = LlmClient(job.endpoint, exchanges, pace=job.pace)
        new, complaints = describe_classes(asked, correspondence, wish, on_done=job.on_done)
    descriptions, kept = keep_edits(old, new)
    order = {
        name: descriptions.attributes[name]
        for name in (*names, *descriptions.attributes)
        if name in descriptions.attributes
    }
    descriptions = descriptions.model_copy(update={"attributes": order})
    write_descriptions(job.out, descriptions)
    return Made(descriptions, kept, complaints)


def make_conditions(names: Sequence[str], company: Sequence[Sequence[int]], job: Job, plan: Plan) -> Made | None:
    """Write the conditions of a data set from combinations of its labels; None if the estimate was not agreed to.

    Conditions that a person has edited stay as they are, and nothing is asked, unless the job overwrites.
    """
    old = _present(job, "attributes")
    if old.conditions_edited:
        return Made(old, ("the conditions",), {})
    with Exchanges(job.exchanges) as exchanges:
        if not _agreed(job, condition_requests(names, company, plan), exchanges):
            return None
        correspondence = LlmClient(job.endpoint, exchanges, pace=job.pace)
        new, complaints = describe_conditions(names, company, correspondence, plan, on_done=job.on_done)
    write_descriptions(job.out, new)
    return Made(new, (), {"conditions": complaints} if complaints else {})


def _present(job: Job, other: str) -> Descriptions:
    """The words in the way; UserError, before anything is asked, if the file holds what this job does not make."""
    if not job.out.exists():
        return Descriptions()
    old = read_descriptions(job.out)
    if getattr(old, other):
        raise UserError(f"{job.out} holds {other}; write to another file.")
    return Descriptions() if job.overwrite else old


def _agreed(job: Job, requests: Sequence[Request], exchanges: Exchanges) -> bool:
    return job.agree(estimate(requests, exchanges, job.endpoint.model))
