"""A site's privacy ledger: what was computed on its training images, over all runs, and the epsilon of it.

`ledger.jsonl` is a hash chain with a line per training, written before it begins and never recomputed from a message.
Epsilon is composed over all lines whose images overlap, at the site's own delta.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, JoinedSource
from fedprompt.deploy.audit import LEDGER, LedgerState
from fedprompt.deploy.hash_chain import Entry, HashChain
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.federated.privacy.accounting import Mechanism, composed_epsilon
from fedprompt.records.atomic_files import write_atomic

IMAGES = "ledger_images"  # in a site's folder: a file per set of images
DIGEST_BYTES = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Training images by the hashes of their files, so that names and order do not matter.

    Without hashes it is unknown which images they are; such a set overlaps every other.
    """

    digests: frozenset[bytes] = frozenset()

    @property
    def content(self) -> bytes:
        """All hashes in order, the content of its file."""
        return b"".join(sorted(self.digests))

    @property
    def fingerprint(self) -> str:
        """A hash of the set; "" for unknown images."""
        return hashlib.sha256(self.content).hexdigest()[:32] if self.digests else ""

    def overlaps(self, other: ImageSet) -> bool:
        """Whether any image may be in both."""
        return not self.digests or not other.digests or not self.digests.isdisjoint(other.digests)


@dataclass(frozen=True)
class Training:
    """A training that a message asks for, and what the site computes; `mechanism` is None for a plain update.

    `start` is the hash of the shared state that it starts from, `clip` the L2 norm to which it clips.
    """

    run: str
    trial: str
    round: int
    recipe: str
    start: str
    images: str
    count: int
    clip: float = 0.0
    mechanism: Mechanism | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Training:
        """The training of a line of the ledger."""
        own = {name: fields[name] for name in cls.__dataclass_fields__ if name != "mechanism"}
        return cls(**own, mechanism=Mechanism(**fields["mechanism"]) if fields["mechanism"] else None)


@dataclass(frozen=True)
class Budget:
    """Limits of a training: the site's over all runs at its own delta, and those that the job has set itself.

    `repeats` is how often the same images may answer one recipe in one round from one state with a plain update.
    """

    delta: float
    epsilon: float | None = None
    job_epsilon: float | None = None
    job_delta: float | None = None
    repeats: int | None = None


@dataclass(frozen=True)
class Charged:
    """A new line of the ledger: the epsilon of its images so far, None for a plain update, and the line's hash."""

    epsilon: float | None
    hash: str


class SiteLedger:
    """The ledger in a site's folder; several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self._chain = HashChain(folder / LEDGER)
        self._sets = folder / IMAGES
        self._known: dict[str, ImageSet] = {"": ImageSet()}
        self._lines: list[Training] = []
        self._state = LedgerState()

    @property
    def newest(self) -> str:
        """The hash of the newest line that was read or written; "" if there is none."""
        return self._chain.last.hash if self._lines else ""

    def charge(self, training: Training, images: ImageSet, budget: Budget, *, trail: int = 0) -> Charged:
        """Record a training before it begins; RefusedError if its epsilon would pass a budget.

        `trail` is the number of lines of the audit trail, which the line of the ledger states.
        """
        with self._chain.locked() as new:
            self._add(new)
            self._save(images)
            epsilon = None
            if training.mechanism:
                epsilon = self._checked_epsilon(training, images, budget)
            elif budget.repeats is not None:
                self._check_repeats(training, images, budget.repeats)
            further = {"time": time.time(), "delta": budget.delta, "epsilon": epsilon, "trail": trail}
            entry = self._chain.append({**asdict(training), **further})
            self._add([entry])
            return Charged(epsilon, entry.hash)

    def lines(self) -> tuple[Training, ...]:
        """All trainings so far."""
        self.state()
        return tuple(self._lines)

    def state(self) -> LedgerState:
        """What the audit trail is compared with, after reading what other processes have added."""
        with self._chain.locked() as new:
            self._add(new)
        return self._state

    def _add(self, new: Iterable[Entry]) -> None:
        for entry in new:  # one by one, since a damaged line may follow
            self._lines.append(Training.from_fields(entry.fields))
            self._state.add(entry)

    def spent(self, delta_for: Callable[[int], float]) -> list[tuple[Training, float]]:
        """Per set of images the last training with noise, and the epsilon so far; `delta_for(images)` is the delta."""
        last = {line.images: line for line in self.lines() if line.mechanism}
        return [(line, self.epsilon(self._set(name), delta=delta_for(line.count))) for name, line in last.items()]

    def epsilon(self, images: ImageSet, *, delta: float, more: Iterable[Training] = ()) -> float:
        """Epsilon of all trainings so far, and `more`, on images that overlap these."""
        self.state()
        found = [*self._overlapping(images), *more]
        return composed_epsilon([line.mechanism for line in found if line.mechanism], delta=delta)

    def _checked_epsilon(self, training: Training, images: ImageSet, budget: Budget) -> float:
        epsilon = self.epsilon(images, delta=budget.delta, more=[training])
        if budget.epsilon is not None and epsilon > budget.epsilon:
            raise RefusedError("one more round would exceed the privacy budget of the site's images.", rule="epsilon")
        if budget.job_epsilon is not None:
            own = [line for line in self._lines if (line.run, line.trial) == (training.run, training.trial)]
            used = [line.mechanism for line in (*own, training) if line.mechanism]
            if composed_epsilon(used, delta=budget.job_delta or budget.delta) > budget.job_epsilon:
                raise RefusedError("one more round would exceed the job's own privacy budget.", rule="epsilon")
        return epsilon

    def _check_repeats(self, training: Training, images: ImageSet, most: int) -> None:
        def key(line: Training) -> tuple[object, ...]:
            return line.recipe, line.round, line.start, line.mechanism

        repeats = sum(key(line) == key(training) for line in self._overlapping(images))
        if repeats >= most:
            raise RefusedError(
                f"the same images have answered this round of this recipe {repeats} times; the difference of two sums "
                "can be one site's update.",
                rule="maximum_repeats",
            )
        if repeats:
            _log.warning(
                "The same images answer round %d of a recipe for the %d. time; the difference of two secure sums can "
                "be one site's update. Noise added at the sites prevents that.",
                training.round,
                repeats + 1,
            )

    def _overlapping(self, images: ImageSet) -> list[Training]:
        return [line for line in self._lines if self._set(line.images).overlaps(images)]

    def _set(self, fingerprint: str) -> ImageSet:
        if fingerprint not in self._known:
            self._known[fingerprint] = self._read(fingerprint)
        return self._known[fingerprint]

    def _read(self, fingerprint: str) -> ImageSet:
        """The set with a fingerprint; unknown, and so overlapping all, if its file is lost or damaged."""
        path = self._sets / fingerprint
        content = path.read_bytes() if path.is_file() else b""
        parts = (content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES))
        found = ImageSet(frozenset(parts))
        if found.fingerprint == fingerprint:
            return found
        _log.warning("%s is lost or damaged; its trainings count for all images.", path)
        return ImageSet()

    def _save(self, images: ImageSet) -> None:
        name = images.fingerprint
        if name and not (self._sets / name).exists():
            write_atomic(self._sets / name, images.content)
        self._known[name] = images


def image_digests(images: Images) -> tuple[bytes, ...]:
    """The SHA-256 hash of the file of every image; () if some are not files."""
    found: dict[int, bytes] = {}
    for row in images.rows:
        file = _file_of(images, row)
        if file is None:
            return ()
        found[row] = found.get(row) or hashlib.sha256(file.read_bytes()).digest()[:DIGEST_BYTES]
    return tuple(found[row] for row in images.rows)


def _file_of(images: Images, row: int) -> Path | None:
    source = images.source
    while isinstance(source, JoinedSource):
        source, row = source.find(row)
    return source.root / source.files[row] if isinstance(source, FileSource) else None
