"""Trained adapters: prediction on images of any kind, saving, and the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from fedprompt import methods
from fedprompt.arguments import as_path, listed, require, shown, whole
from fedprompt.clip.model import Clip
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, ImageSource
from fedprompt.data.in_memory import image_source
from fedprompt.data.intake.given_images import Unreadable, find_given
from fedprompt.data.intake.path_tables import is_path_table
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, plural, worded
from fedprompt.experiments.class_descriptions import candidate_warnings, check_distinct_texts
from fedprompt.experiments.predict import (
    candidates,
    find_unreadable,
    method_of,
    open_adapter,
    restore,
    run_of,
    usable_precision,
)
from fedprompt.experiments.prediction_thresholds import choose_thresholds
from fedprompt.experiments.sample_images import png
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.file_system import is_file, new_folder
from fedprompt.methods.base import Method
from fedprompt.records import adapter as adapter_files

if TYPE_CHECKING:
    import pandas

SHOWN = 24  # images that a notebook shows
TOP = 5  # classes of `top`


class Prediction(NamedTuple):
    """What was predicted for one image: its label, or labels, and the probability of every class, best first."""

    name: str
    label: str | Sequence[str]
    probabilities: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for B images over C classes.

    `probabilities` [B, C] sum to one per image (single-label) or are one per label; `present` [B, C] says which labels
    are at or above the decision threshold (multi-label only): the adapter's own, or 0.5 where that does not hold.
    `unreadable` maps the names of images that were left out to the reason.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: Tensor
    present: Tensor | None = None
    images: Images | None = field(default=None, repr=False)
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Prediction]:
        """One `Prediction` per image: its name, label and probabilities."""
        for name, label, best in zip(self.names, self.labels, self.top(len(self.classes)), strict=True):
            yield Prediction(name, label, dict(best))

    @property
    def labels(self) -> list[str] | list[list[str]]:
        """The most probable class per image or, with many labels, the present ones."""
        if self.present is None:
            return [self.classes[label] for label in self.probabilities.argmax(dim=1).tolist()]
        return [self._chosen(row) for row in self.present]

    def _chosen(self, present: Tensor) -> list[str]:
        return [self.classes[label] for label in present.nonzero().flatten().tolist()]

    def top(self, count: int = TOP) -> list[list[tuple[str, float]]]:
        """Per image the `count` most probable classes with their probabilities, best first; UserError below one."""
        found = self.probabilities.topk(min(whole(count, "count"), len(self.classes)))
        return [
            [(self.classes[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """A row per image, its label or labels first, then a column of probabilities per class."""
        import pandas

        table = pandas.DataFrame(self.probabilities.numpy(), columns=list(self.classes))
        table.insert(0, "label" if self.present is None else "labels", self.labels)
        table.insert(0, "image", self.names)
        return table

    def __repr__(self) -> str:
        shown = ", ".join(self._in_words(row) for row in range(min(len(self), SHOWN)))
        return f"Predictions of {plural(len(self), 'image')}: {shown}{', ...' if len(self) > SHOWN else ''}"

    def _in_words(self, row: int) -> str:
        """The decided label with its probability, "bird 91%"; of several the names, "bird + fish"."""
        if self.present is not None:
            return " + ".join(self._chosen(self.present[row])) or "none of the labels"
        value, label = self.probabilities[row].max(dim=0)
        return f"{self.classes[int(label)]} {100 * value:.0f}%"

    def _repr_html_(self) -> str:
        cells = []
        for row, best in enumerate(self.top(3)[:SHOWN]):
            decided = [] if self.present is None else [f"<b>{escape(self._in_words(row))}</b>"]
            lines = "<br>".join([*decided, *(f"{escape(name)} {100 * value:.0f}%" for name, value in best)])
            shown = "" if self.images is None else f'<img src="data:image/png;base64,{png(self.images.decode(row))}">'
            cells.append(
                f'<figure style="display:inline-block;margin:6px;font:12px sans-serif">{shown}<br>{lines}</figure>'
            )
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return "".join(cells) + more


@dataclass(frozen=True)
class _Given:
    """Images with their names, and those that were left out."""

    source: ImageSource
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def readable(self) -> _Given:
        """The images that can be read; the same if all can, or if they lie in memory."""
        if not isinstance(self.source, FileSource):
            return self
        found = find_unreadable(self.source, range(len(self.source)))
        if not found:
            return self
        rows = [row for row in range(len(self.source)) if row not in found]
        names = tuple(self.names[row] for row in rows)
        return _Given(self.source.take(rows), names, (*self.unreadable, *found.values()))


def _given_images(images: Any, *, skips: bool) -> _Given:
    """The images of a sequence, of one image, or of a folder, a pattern or a table of paths."""
    if isinstance(images, str | os.PathLike):
        found = find_given([Path(os.fsdecode(images))])
        if not found.files:
            raise UserError("\n".join(one.reason for one in found.unusable))
        absolute = tuple(str(file.absolute()) for file in found.files)
        return _Given(FileSource(Path(), absolute, names=found.names), found.names)
    if isinstance(images, Image.Image) or getattr(images, "ndim", 4) != 4:
        return _given_images([images], skips=skips)
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise UserError(f"`images` is {shown(images)}; give an image, a list of them, or a folder.")
    listed_images = list(images)
    if not listed_images:
        raise UserError("`images` is empty; give at least one image.")
    if skips and all(isinstance(one, str | os.PathLike) for one in listed_images):
        names = tuple(map(os.fsdecode, listed_images))
        absolute = tuple(str(Path(name).expanduser().absolute()) for name in names)
        return _Given(FileSource(Path(), absolute, names=names), names)
    source = image_source(listed_images)
    return _Given(source, tuple(_name(image, source, row) for row, image in enumerate(listed_images)))


def _name(image: object, source: ImageSource, row: int) -> str:
    """A path as it was given, or what the source calls an image in memory."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else source.describe(row)


def _skips(on_error: object, images: object) -> bool:
    """Whether images that cannot be read are left out: by default those of a folder, a pattern or a table."""
    if on_error not in (None, "skip", "raise"):
        raise UserError(f'`on_error` is {shown(on_error)}; give "skip" or "raise", or leave it out.')
    if on_error is not None:
        return on_error == "skip"
    if not isinstance(images, str | os.PathLike):
        return False
    path = Path(os.fsdecode(images)).expanduser()
    return not is_file(path) or is_path_table(path)


def _logits(given: _Given, method: Method, clip: Clip, space: LabelSpace) -> Tensor:
    """[B, C]; UserError if no image can be read."""
    if not given.names:
        first = given.unreadable[0].reason
        raise UserError(first if len(given.unreadable) == 1 else f"No image can be read. {first}")
    return predict(method, clip, Images(given.source, tuple(range(len(given.source)))), space)


def _warn_of(given: _Given) -> None:
    if not (failed := given.unreadable):
        return
    total = len(given.names) + len(failed)
    message = f"{len(failed):,} of {plural(total, 'image')} cannot be read and are left out, see `unreadable`"
    warnings.warn(f"{message}; the first: {failed[0].reason}", stacklevel=4)


class Adapter:
    """A trained adapter with the backbone that it belongs to, which is opened on the first prediction.

    `run.adapter()` and `fp.load_adapter` give one.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=2, test=2)
        >>> clients = fp.partition(data, "iid", clients=2)
        >>> run = fp.train("promptfl", fp.load_clip(), data, clients, rounds=1, progress=False)
        >>> adapter = run.adapter()
        >>> adapter.method, len(adapter.classes)
        ('promptfl', 120)
        >>> predicted = adapter.predict([data.source.open(0), data.source.open(1)], classes=["cat", "dog", "clock"])
        >>> list(predicted.probabilities.shape)
        [2, 3]
    """

    def __init__(
        self,
        files: adapter_files.Adapter,
        *,
        clip: Clip | None = None,
        given: Mapping[str, type[Method]] | None = None,
        keep: object = None,
        revision: str | None = None,
    ) -> None:
        self._files = files
        self.revision = revision  # the commit on the Hub that it was downloaded at
        self._clip = clip
        self._given = dict(given or {})
        self._keep = keep  # what owns a temporary folder that the files lie in
        method_of(files, self._find_method)  # a method that is not there is a UserError now, not at the first image

    @classmethod
    def of_run(
        cls,
        folder: Path,
        *,
        trial: str | None,
        clip: Clip | None = None,
        given: Mapping[str, type[Method]] | None = None,
        keep: object = None,
    ) -> Adapter:
        """The adapter of a run's trial."""
        return cls(open_adapter(folder, trial=trial, trusted=tuple(given or ())), clip=clip, given=given, keep=keep)

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        return self._files.folder

    @property
    def method(self) -> str:
        """The name of the method."""
        return self._files.card.method

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it was trained and tested with."""
        return self._files.space.names

    def _find_method(self, name: str) -> type[Method]:
        return self._given[name] if name in self._given else methods.load(name)

    @cached_property
    def _restored(self) -> tuple[Method, Clip]:
        if self._clip is None and (said := usable_precision(self._files)[1]):
            warnings.warn(said, stacklevel=4)
        return restore(self._files, clip=self._clip, find_method=self._find_method)

    @worded("keywords")
    def predict(
        self,
        images: Any,
        /,
        *,
        classes: Sequence[str] | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
        on_error: Literal["skip", "raise"] | None = None,
    ) -> Predictions:
        """Classify images among the adapter's classes, or among any others that `classes` names.

        `images` is one image or a sequence of them: paths, PIL images, or arrays [H, W, 3] of uint8, also as one array
        [B, H, W, 3]. One path may also be that of a folder, a pattern (`"new/*.jpg"`) or a table of paths. `attributes`
        are visual phrases per class, for methods that read them; the adapter knows those of its own classes.

        With `on_error="skip"`, files that cannot be read are left out of the result, listed in its `unreadable`, and
        warned of; with "raise" they are a UserError. By default those of a folder, a pattern or a table are skipped,
        and one image or a sequence, whose rows the result keeps, raises. Raises UserError too if there is no image, or
        none that can be read, and for class names that cannot be told apart. Warns of a name that is too long to be
        read, of one class alone, and of labels whose fitted decision threshold does not hold among `classes`.
        """
        skips = _skips(on_error, images)
        given = _given_images(images, skips=skips)
        space = self._space(classes, attributes or {})
        method, clip = self._restored
        if attributes and "attributes" not in method.reads:
            raise UserError(f"{self.method} reads no attributes, so they would change nothing; leave `attributes` out.")
        check_distinct_texts(clip, space)
        for sentence in candidate_warnings(clip, space):
            warnings.warn(sentence, stacklevel=3)
        try:
            logits = _logits(given, method, clip, space)
        except UserError:  # images are opened one by one only where that fails: nothing is decoded twice
            kept = given.readable() if skips else given
            if kept is given:
                raise
            given = kept
            logits = _logits(given, method, clip, space)
        _warn_of(given)
        probabilities = class_probabilities(logits, space.kind)
        shown_images = Images(given.source, tuple(range(len(given.source))))
        limits = choose_thresholds(self._files, (method, clip), shown_images, space, probabilities)
        if not limits.fitted:
            warnings.warn(limits.sentence, stacklevel=3)
        return Predictions(
            space.names,
            given.names,
            probabilities,
            None if space.kind == "single" else probabilities >= limits.values,
            shown_images,
            {one.name: one.error for one in given.unreadable},
        )

    def _space(self, classes: Sequence[str] | None, attributes: Mapping[str, Sequence[str]]) -> LabelSpace:
        if isinstance(classes, str):
            raise UserError(f"`classes` is the text {classes!r}; give a list of names.")
        names = () if classes is None else listed(classes, "classes")
        if classes is not None and not names:
            raise UserError("`classes` is an empty list; give names, or leave it out for the adapter's own classes.")
        if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
            raise UserError(f"`classes` has {shown(wrong[0])} among its names; give the name of each class as text.")
        return candidates(self._files, names, attributes=attributes)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the adapter to a folder; UserError if it exists or cannot be made."""
        target = as_path(folder, "folder")
        if os.path.lexists(target):
            raise UserError(f"{target} exists already; give a folder that does not.")
        with new_folder(target) as fresh:
            shutil.copytree(self.folder, fresh, dirs_exist_ok=True)
        return target

    def push_to_hub(
        self, name: str, *, private: bool = True, token: str | None = None, base_model: str | None = None
    ) -> str:
        """Upload the adapter with its model card to the Hub as `owner/name`; returns the commit, to be pinned.

        The repository is private unless told otherwise. `base_model` is the Hub id of the backbone, where the adapter
        was trained with a copy in a folder. Absolute paths of this machine are not uploaded. Raises UserError if the
        Hub refuses, or others could not have the backbone.
        """
        from fedprompt.api.hub import upload

        return upload(self.folder, name, private=private, token=token, base_model=base_model)

    def __repr__(self) -> str:
        return f"Adapter of {self.method} over {plural(len(self.classes), 'class')} in {self.folder}"


def given_clip(clip: Clip | None) -> Clip | None:
    """The backbone that was given, or None; UserError for what is no backbone."""
    if clip is not None:
        require(clip, Clip, "clip", "open one with load_clip(...)")
    return clip


def given_method(method: type[Method] | None) -> Mapping[str, type[Method]]:
    """The class of a method of one's own by the names that an adapter may have for it; UserError if it is no class."""
    if method is None:
        return {}
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(
            f"`method` is {shown(method)}, not a class derived from fedprompt.Method; a method that fedprompt knows by "
            "name is named in the adapter, so leave it out."
        )
    return {method.__name__: method, method.__module__: method}


@worded("keywords")
def load_adapter(  # noqa: PLR0913  (where it lies, and what may have been given from Python)
    place: str | os.PathLike[str],
    /,
    *,
    trial: str | None = None,
    revision: str | None = None,
    clip: Clip | None = None,
    method: type[Method] | None = None,
    token: str | None = None,
    trust_code: str | Sequence[str] = (),
) -> Adapter:
    """Load an adapter from its folder, from the folder of a run (of `trial` or the main one), or from the Hub.

    On the Hub, `place` is `owner/name` and `revision` pins a commit, a tag or a branch; the attribute `revision` of the
    result is the commit. `clip` is a backbone that is
    open already, else the adapter names it. `method` is the class of a method of one's own, and `trust_code` are the
    modules outside fedprompt that the adapter may name. Nothing in a repository is executed. Raises UserError if there
    is no adapter at `place` or it is damaged.
    """
    folder, commit = as_path(place, "place"), None
    clip, given = given_clip(clip), given_method(method)
    if not folder.exists():
        from fedprompt.api.hub import download

        folder, commit = download(os.fspath(place), revision=revision, token=token)
    if trial is not None and not is_file(run_of(folder) / "run.jsonl"):
        raise UserError(f"{folder} is an adapter, not a run, so it has no trials; leave `trial` out.")
    files = open_adapter(folder, trial=trial, trusted=(*given, *listed(trust_code, "trust_code")))
    return Adapter(files, clip=clip, given=given, revision=commit)
