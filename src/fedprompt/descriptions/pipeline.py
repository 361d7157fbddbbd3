"""Generate a descriptions file: keep what is there, estimate the cost, query the model, write the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedprompt.data.descriptions import Descriptions, read_descriptions
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.labels import LabelSpace
from fedprompt.descriptions.attributes import describe_classes
from fedprompt.descriptions.conditions import ConditionSettings, describe_conditions
from fedprompt.descriptions.cost import Estimate, attribute_requests, condition_requests, estimate
from fedprompt.descriptions.edits import check_path, keep_edits, write_descriptions
from fedprompt.descriptions.endpoint import ChatServer, Endpoint, Request
from fedprompt.descriptions.llm_client import LlmClient, OnDone, RateLimit
from fedprompt.descriptions.plugins import PluginModel
from fedprompt.descriptions.transcript import Transcript
from fedprompt.descriptions.validated_query import GenerationSettings
from fedprompt.errors import UserError
from fedprompt.text_files import LINE_ENDS, read_unicode


@dataclass(frozen=True)
class GenerationJob:
    """Where the file goes, which model writes it, and at what rate.

    `agree` gets the cost estimate and returns whether to go on; `on_done` gets (done, total) after each query.
    """

    out: Path
    endpoint: Endpoint
    rate_limit: RateLimit = field(default_factory=RateLimit)
    overwrite: bool = False  # replace hand edits too
    agree: Callable[[Estimate], bool] = lambda estimate: True
    on_done: OnDone = lambda done, total: None

    def __post_init__(self) -> None:
        check_path(self.out)

    @property
    def transcript(self) -> Path:
        """The file that keeps every request with its answer."""
        return self.out.with_suffix(".transcript.jsonl")


@dataclass(frozen=True)
class GenerationResult:
    """The descriptions as written, the hand-edited entries that were kept, and the phrases rejected per entry."""

    descriptions: Descriptions
    kept: tuple[str, ...]
    rejections: Mapping[str, tuple[str, ...]]


def open_endpoint(model: str, *, url: str = "", key_env: str = "OPENAI_API_KEY", timeout: float = 60.0) -> Endpoint:
    """The model on a server if a URL is given, else a model of the `llm` library."""
    return ChatServer(url, model, key_env=key_env, timeout=timeout) if url else PluginModel(model)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one per line; empty lines and lines that begin with # are skipped."""
    lines = map(normal_name, LINE_ENDS.split(read_unicode(path)))
    names = tuple(line for line in lines if line and not line.startswith("#"))
    if not names:
        raise UserError(f"{path} holds no class name; write one per line.")
    return LabelSpace(names).names


def generate_attributes(
    names: Sequence[str], job: GenerationJob, settings: GenerationSettings
) -> GenerationResult | None:
    """Generate and write the attributes of all classes; None if `job.agree` declines the estimate.

    Classes whose list a person has edited are neither queried nor changed, unless the job overwrites.
    """
    old = _existing(job, "conditions")
    missing = [name for name in names if name not in old.edited()]
    with Transcript(job.transcript) as transcript:
        if not _agreed(job, attribute_requests(missing, settings), transcript):
            return None
        client = LlmClient(job.endpoint, transcript, rate_limit=job.rate_limit)
        new, rejections = describe_classes(missing, client, settings, on_done=job.on_done)
    descriptions, kept = keep_edits(old, new)
    order = {
        name: descriptions.attributes[name]
        for name in (*names, *descriptions.attributes)
        if name in descriptions.attributes
    }
    descriptions = descriptions.model_copy(update={"attributes": order})
    write_descriptions(job.out, descriptions)
    return GenerationResult(descriptions, kept, rejections)


def generate_conditions(
    names: Sequence[str], combinations: Sequence[Sequence[int]], job: GenerationJob, settings: ConditionSettings
) -> GenerationResult | None:
    """Generate and write conditions from combinations of labels; None if `job.agree` declines the estimate.

    Conditions that a person has edited stay as they are and nothing is queried, unless the job overwrites.
    """
    old = _existing(job, "attributes")
    if old.conditions_edited:
        return GenerationResult(old, ("the conditions",), {})
    with Transcript(job.transcript) as transcript:
        if not _agreed(job, condition_requests(names, combinations, settings), transcript):
            return None
        client = LlmClient(job.endpoint, transcript, rate_limit=job.rate_limit)
        new, rejections = describe_conditions(names, combinations, client, settings, on_done=job.on_done)
    write_descriptions(job.out, new)
    return GenerationResult(new, (), {"conditions": rejections} if rejections else {})


def _existing(job: GenerationJob, other: str) -> Descriptions:
    """The descriptions in the output file; UserError, before any query, if it holds entries of the `other` kind."""
    if not job.out.exists():
        return Descriptions()
    old = read_descriptions(job.out)
    if getattr(old, other):
        raise UserError(f"{job.out} holds {other}; write to another file.")
    return Descriptions() if job.overwrite else old


def _agreed(job: GenerationJob, requests: Sequence[Request], transcript: Transcript) -> bool:
    return job.agree(estimate(requests, transcript, job.endpoint.model))
