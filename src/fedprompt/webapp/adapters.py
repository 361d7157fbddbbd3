"""The adapters of a web page, opened side by side with zero-shot CLIP, and what each recognises in an image."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Self

from fedprompt.clip.model import Clip
from fedprompt.data.image_formats import decode
from fedprompt.data.images import Images
from fedprompt.data.in_memory import MemorySource
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, plural
from fedprompt.experiments.adapters import candidates, open_adapter, restore, run_of
from fedprompt.experiments.class_descriptions import candidate_warnings, check_distinct_texts
from fedprompt.experiments.prediction_notes import introduction_on_page
from fedprompt.experiments.prediction_thresholds import choose_thresholds
from fedprompt.experiments.sample_images import png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.file_system import is_file
from fedprompt.methods import method_summary
from fedprompt.methods.base import Method
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.records.adapter import Adapter
from fedprompt.records.events import SampleEvent, TrialEvent
from fedprompt.records.run_record import trial_label
from fedprompt.report import prediction_cards, read_run
from fedprompt.report.figures import distinct_markers, markers_of
from fedprompt.report.style import REFERENCE

MOST_CLASSES = 1_000
LONGEST_NAME = 200  # letters of a class name
SHOWN_CLASSES = 20  # names in the sentence on what is chosen among if nothing is typed


@dataclass(frozen=True)
class Opened:
    """A method on its backbone; `files` is the adapter that it was read from, which zero-shot CLIP does not have.

    `marker` is its colour and mark in the report of its run, None for an adapter that is in no run.
    """

    name: str
    method: Method
    clip: Clip
    files: Adapter
    marker: tuple[str, str] | None = None


@dataclass(frozen=True)
class Adapters:
    """Adapters that classify the same images, one image at a time."""

    opened: tuple[Opened, ...]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls, places: Sequence[Path], *, trials: Sequence[str] = (), trusted: Sequence[str] = (), backbone: str | None
    ) -> Self:
        """Open the adapters of folders, or those of runs (their main trials, or `trials`), and zero-shot CLIP.

        Adapters of the same backbone share it. Raises UserError as `open_adapter` and `restore` do.
        """
        wanted = [(run_of(place), trial) for place in places for trial in trials or (None,)]
        files = [open_adapter(place, trial=trial, trusted=trusted) for place, trial in wanted]
        clips: dict[tuple[str, str], Clip] = {}
        found: list[Opened] = []
        for (place, trial), one in zip(wanted, files, strict=True):
            key = (backbone or one.card.base_model_name_or_path, one.card.precision)
            method, clip = restore(one, backbone=backbone, clip=clips.get(key))
            clips[key] = clip
            found.append(Opened(_label(one, method, found), method.eval(), clip, one, _marker(place, trial)))
        first = found[0]
        reference = ZeroShot(first.clip).eval()
        unfitted = replace(first.files, card=replace(first.files.card, thresholds=None))  # they are of the adapter
        zero_shot = Opened(_title(reference), reference, first.clip, unfitted, (REFERENCE, "|"))
        return cls((zero_shot, *found))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the first adapter, which the page proposes."""
        return self.opened[0].files.space.names

    @cached_property
    def about(self) -> tuple[str, ...]:
        """What is said of every adapter, each sentence once."""
        said = (introduction_on_page(one.files, others=True) for one in self.opened[1:])
        return tuple(dict.fromkeys(chain.from_iterable(said)))

    @property
    def markers(self) -> list[tuple[str, str]]:
        """The colour and mark of each, as in the reports of their runs where that tells them apart."""
        return distinct_markers([one.marker for one in self.opened])

    def cards(self, content: bytes, name: str, classes: Sequence[str]) -> str:
        """What every adapter recognises in an image file, as HTML; `classes` are the candidates, or else its own.

        Raises UserError for what `decode` refuses, and class names that cannot be told apart.
        """
        check_classes(classes)
        image = decode(name, content=content)
        with self.lock:  # one image at a time: more would take memory and be no quicker
            images, picture = Images(MemorySource((image,)), (0,)), png(image)
            notes = [] if classes else list(self._own_classes())
            found = []
            for one in self.opened:
                event, said = _recognised(one, images, classes)
                about = TrialEvent(trial=one.name, method=one.name, idea=method_summary(type(one.method)))
                found.append((about, event.model_copy(update={"picture": picture, "name": name})))
                notes += said
            count = len(classes) or len(self.classes)
            return prediction_cards(found, self.markers, classes=count, notes=list(dict.fromkeys(notes)))

    def _own_classes(self) -> Iterator[str]:
        """Among what each adapter chooses if nothing is typed."""
        for one in self.opened[1:]:
            own = one.files.space.names
            more = f" and {len(own) - SHOWN_CLASSES:,} more" if len(own) > SHOWN_CLASSES else ""
            listed = ", ".join(own[:SHOWN_CLASSES])
            yield f"No class is typed, so {one.name} chooses among its {plural(len(own), 'class')}: {listed}{more}."


def _recognised(one: Opened, images: Images, classes: Sequence[str]) -> tuple[SampleEvent, list[str]]:
    """What an adapter recognises in an image, and sentences on its candidates and decisions."""
    space = candidates(one.files, classes)
    check_distinct_texts(one.clip, space)
    found = recognise(one.method, one.clip, images, space)
    decided, said = (None, "") if space.kind == "single" else _decided(one, images, space)
    event = SampleEvent(trial=one.name, sample="0", decided=decided, **found)
    return event, [*candidate_warnings(one.clip, space), *([f"{one.name}: {said}"] if said else [])]


def _decided(one: Opened, images: Images, space: LabelSpace) -> tuple[tuple[str, ...], str]:
    """The labels from the decision thresholds on, of one image that may have several, and where these are from."""
    probabilities = class_probabilities(predict(one.method, one.clip, images, space), space.kind)  # [1, C]
    limits = choose_thresholds(one.files, (one.method, one.clip), images, space, probabilities)
    present = probabilities[0] >= limits.values
    return tuple(space.names[label] for label in present.nonzero().flatten().tolist()), limits.sentence


def check_classes(classes: Sequence[str]) -> None:
    """Raise UserError for too many class names, for one that is too long, and for one that stands twice."""
    if len(classes) > MOST_CLASSES:
        raise UserError(f"These are {len(classes):,} classes; give {MOST_CLASSES:,} at most.")
    if long := next((name for name in classes if len(name) > LONGEST_NAME), None):
        raise UserError(f"The class {long[:20]!r}... has more than {LONGEST_NAME} letters; shorten it.")
    if twice := next((name for name in classes if classes.count(name) > 1), None):
        raise UserError(f"The class {twice!r} is named twice; name every class once.")


def _marker(place: Path, trial: str | None) -> tuple[str, str] | None:
    """The colour and mark of a run's trial, or of an adapter in the folder of a run, in the run's report."""
    inside = not is_file(place / "run.jsonl")
    folder, name = (place.absolute().parent.parent, place.absolute().name) if inside else (place, trial)
    if not is_file(folder / "run.jsonl"):
        return None
    run = read_run(folder)
    return markers_of(run).get(name or run.header.main)


def _title(method: Method) -> str:
    return trial_label("", "", method_summary(type(method)))


def _label(files: Adapter, method: Method, others: Sequence[Opened]) -> str:
    """The method's name, with the name of the adapter's folder if another adapter has the same."""
    title = _title(method)
    return f"{title} ({files.folder.name})" if any(one.name == title for one in others) else title
