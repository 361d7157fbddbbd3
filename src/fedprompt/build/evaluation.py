"""What a finished model is asked: base and new classes, unseen domains, each client's own classes; and in which words we say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Dataset, Examples
from fedprompt.federated.client import Client
from fedprompt.federated.evaluate import Score, evaluate
from fedprompt.federated.rounds import Transport
from fedprompt.methods.base import Method
from fedprompt.metrics import mean
from fedprompt.ops.averaging import State

Line = dict[str, object]  # one event of run.jsonl


@dataclass(frozen=True)
class Question:
    """One set of test pictures with its candidate list, and the column of the table it belongs to."""

    split: str
    name: str
    examples: Examples


MEANINGS = {
    "local": "each client's test pictures among that client's classes only; unweighted mean over clients",
    "base": "test pictures of the base classes among all base classes, seen domains",
    "new": "test pictures of the new classes, which no client trained on, among all new classes, seen domains",
    "unseen": "test pictures of base and new classes among all of them, in domains no client trained on; unweighted mean over domains",
}


def seen_domains(dataset: Dataset) -> tuple[str, ...]:
    """The domains that clients train on, in order of appearance."""
    return tuple(domain for domain in dict.fromkeys(dataset.domains) if domain not in dataset.unseen_domains)


def questions(dataset: Dataset) -> tuple[Question, ...]:
    """The questions a data set allows, in table order; those without a test picture are left out."""
    seen = seen_domains(dataset)
    wanted = [("base", "all", "test", dataset.base, seen), ("new", "all", "test", dataset.new, seen)]
    wanted += [("unseen", domain, "test", (*dataset.base, *dataset.new), (domain,)) for domain in dataset.unseen_domains]
    # A data set may bring further test sets ("broken": the same classes without their co-occurrence).
    further = [split for split in dict.fromkeys(dataset.splits) if split not in ("train", "val", "test")]
    wanted += [(split, "all", split, dataset.base, None) for split in further]
    asked = (Question(split, name, _choose(dataset, word, classes, domains)) for split, name, word, classes, domains in wanted if classes)
    return tuple(question for question in asked if len(question.examples))


def _choose(dataset: Dataset, split: str, classes: Sequence[int], domains: Sequence[str] | None) -> Examples:
    # A picture of a multi-label set shows many classes: its columns are chosen, never its rows.
    rows = dataset.rows(split=split, classes=classes if dataset.space.kind == "single" else None, domains=domains)
    return dataset.examples(rows, classes)
