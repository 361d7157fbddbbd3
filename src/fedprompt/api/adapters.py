"""Trained adapters: prediction on images of any kind, saving, and the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fedprompt import methods
from fedprompt.api.given_images import NamedImages, given_images, skips_unreadable
from fedprompt.api.predictions import Predictions
from fedprompt.arguments import as_path, listed, require, shown
from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, plural, worded
from fedprompt.experiments.adapters import (
    candidates,
    method_of,
    open_adapter,
    restore,
    run_of,
    usable_precision,
)
from fedprompt.experiments.class_descriptions import candidate_warnings, check_distinct_texts
from fedprompt.experiments.prediction_thresholds import choose_thresholds
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.file_system import is_file, new_folder
from fedprompt.methods.base import Method
from fedprompt.records import adapter as adapter_files


def _logits(given: NamedImages, method: Method, clip: Clip, space: LabelSpace) -> Tensor:
    """[B, C]; UserError if no image can be read."""
    if not given.names:
        first = given.unreadable[0].reason
        raise UserError(first if len(given.unreadable) == 1 else f"No image can be read. {first}")
    return predict(method, clip, Images(given.source, tuple(range(len(given.source)))), space)


def _warn_of(given: NamedImages) -> None:
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
        skips = skips_unreadable(on_error, images)
        given = given_images(images, skips=skips)
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
