"""Conformance tests of data sources: repeated reading, valid splits, RGB images, fingerprints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import ClassVar

import torch

from fedprompt.config.blocks import option_parameters
from fedprompt.config.registry import SOURCES
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import ImageSource
from fedprompt.errors import UserError
from fedprompt.testing.properties import (
    assert_options_are_keywords,
    builder_of,
    check,
    untouched_generators,
)

OPENED = 12  # images that a property opens, evenly spread over the data set


def check_source(
    source: str | Callable[..., Dataset],
    options: Mapping[str, object] | None = None,
    *,
    changed: Mapping[str, object] | None = None,
) -> None:
    """Check that a data source has the properties that runs and caches rely on.

    `source` is a function, or a name as in a recipe's [data]; `options` are what it reads, e.g. a folder, and `changed`
    is the same with at least one other image (if it is None, whether the fingerprint tells them apart is not checked).
    Raises AssertionError with a sentence about the first property that does not hold.
    """
    first: Mapping[str, object] = options or {}

    def given(folder: Path, content: int) -> Mapping[str, object]:
        return changed if content and changed is not None else first

    check(SourceTests, source=source, options=given, contents=(0,) if changed is None else (0, 1))


class SourceTests:
    """The conformance tests, one per property: derive a class `Test...` from it, set `source`, and run pytest.

    source: a function `(*, options) -> Dataset`, or a name as in a recipe's [data].
    """

    source: ClassVar[str | Callable[..., Dataset]]
    contents: ClassVar[tuple[int, ...]] = (0, 1)

    @staticmethod
    def options(folder: Path, content: int) -> Mapping[str, object]:
        """Override this: write what the source reads into the empty folder, and return the source's options.

        Another `content` (0 or 1) writes the same files with at least one other image.
        """
        return {}

    def test_options_are_keywords(self) -> None:
        """The signature is `(*, options with types)`; what a source cannot do without has no default."""
        assert_options_are_keywords(self._source, positional=(), defaults=False)

    def test_reading_again_gives_the_same_data_set(self) -> None:
        """Images, labels, splits and domains depend on the options alone; no global generator is used."""
        with self._read() as (first, again):
            with untouched_generators(self._name):
                third = again()
            for name in ("name", "space", "base", "new", "unseen_domains"):
                assert getattr(first, name) == getattr(third, name), (
                    f"{self._name} reads another {name} the second time."
                )
            for name in ("splits", "domains"):
                moved = sum(a != b for a, b in zip(getattr(first, name), getattr(third, name), strict=True))
                assert not moved, (
                    f"{self._name} gives {moved} of {len(first.splits)} images other {name} the second time; draw from "
                    "fedprompt.seeding.stream(seed, ...) and sort what a folder lists."
                )
            assert torch.equal(first.targets, third.targets), f"{self._name} reads other labels the second time."
            assert first.source.fingerprint == third.source.fingerprint, (
                f"The fingerprint of {self._name} differs when the same images are read again, so no cached feature "
                "would ever be found; compute it from their content."
            )

    def test_the_fingerprint_changes_with_the_images(self) -> None:
        """Cached features are looked up by it."""
        prints = []
        for content in self.contents:
            with self._read(content) as (dataset, _):
                prints.append(dataset.source.fingerprint)
        assert len(set(prints)) == len(prints), (
            f"{self._name} gives other images the same fingerprint {prints[0]!r}, so features of one data set would be "
            "taken for another's; hash the images' content."
        )

    def test_splits_are_valid(self) -> None:
        """There is something to test on, and every base class has a training image if any image is for training."""
        with self._read() as (dataset, _):
            words = set(dataset.splits)
            assert "test" in words, f"{self._name} has no image in the split test (splits: {sorted(words)})."
            rows = dataset.rows(split="train", domains=dataset.seen_domains)
            if len(rows) and dataset.space.kind == "single":
                missing = set(dataset.base) - set(dataset.targets[rows].tolist())
                names = [dataset.space.names[label] for label in sorted(missing)]
                assert not missing, f"{self._name} has no training image of the base classes {names}."

    def test_targets_are_valid(self) -> None:
        """Single-label targets are class ids, int64 [N]; multi-label ones are 1, 0 or -1 (unknown), int8 [N, C]."""
        with self._read() as (dataset, _):
            count, classes = len(dataset.source), len(dataset.space)
            single = dataset.space.kind == "single"
            shape, dtype = ((count,), torch.int64) if single else ((count, classes), torch.int8)
            found = dataset.targets
            assert tuple(found.shape) == shape and found.dtype == dtype, (
                f"The targets of {self._name} are {found.dtype} {list(found.shape)}, not {dtype} {list(shape)}."
            )
            low, high = (0, classes - 1) if single else (-1, 1)
            assert low <= int(found.min()) and int(found.max()) <= high, (
                f"The targets of {self._name} go from {int(found.min())} to {int(found.max())}, not {low} to {high}."
            )

    def test_images_are_rgb_and_the_same_each_time(self) -> None:
        """Every row opens as an RGB image, and opening it again gives the same pixels."""
        with self._read() as (dataset, again):
            other = again().source
            for row in _some(dataset):
                image = dataset.source.open(row)
                assert image.mode == "RGB", f"Row {row} of {self._name} is in mode {image.mode}, not RGB; convert it."
                assert min(image.size) > 0, f"Row {row} of {self._name} is {image.size[0]} x {image.size[1]} pixels."
                same = image.tobytes() == other.open(row).tobytes()
                assert same, (
                    f"Row {row} of {self._name} ({dataset.source.describe(row)}) has other pixels when reopened."
                )

    def test_rows_can_be_taken_elsewhere(self) -> None:
        """`take` gives a source of these rows in their order, which another process can receive and open."""
        with self._read() as (dataset, _):
            rows = _some(dataset)[::-1]
            sent = ForkingPickler.dumps(dataset.source.take(rows))  # as worker processes receive it
            taken: ImageSource = ForkingPickler.loads(sent)
            assert len(taken) == len(rows), f"take({len(rows)} rows) of {self._name} gives {len(taken)} images."
            wrong = [
                row
                for place, row in enumerate(rows)
                if taken.open(place).tobytes() != dataset.source.open(row).tobytes()
            ]
            assert not wrong, f"take(rows) of {self._name} gives other images for the rows {wrong}."

    def test_images_are_described(self) -> None:
        """Messages and reports name an image by a text that no other image of its domain has."""
        with self._read() as (dataset, _):
            texts = [dataset.source.describe(row) for row in range(len(dataset.source))]
            assert all(texts), f"{self._name} describes row {texts.index('')} by an empty text."
            twice = len(texts) - len(set(zip(dataset.domains, texts, strict=True)))
            assert not twice, f"{self._name} describes {twice} images like another one; give a path or a number."

    def test_a_path_that_is_not_there_is_named(self) -> None:
        """A `UserError` names the missing file or folder, before anything is trained."""
        with tempfile.TemporaryDirectory() as folder:
            missing = Path(folder) / "not-there"
            given = self.options(Path(folder), 0)
            if "path" not in given or "path" not in option_parameters(self._source):
                return
            try:
                self._source(**{**given, "path": str(missing) if isinstance(given["path"], str) else missing})
            except UserError as error:
                assert missing.name in str(error), f"The error for a missing path does not name it: {error}"
            except OSError as error:
                raise AssertionError(
                    f"{self._name} raises {type(error).__name__} for a path that is not there; raise a UserError."
                ) from error
            else:
                raise AssertionError(f"{self._name} accepts the path {missing}, which is not there; raise a UserError.")

    @property
    def _source(self) -> Callable[..., Dataset]:
        return builder_of(self, "source", SOURCES)

    @property
    def _name(self) -> str:
        return self._source.__name__

    @contextmanager
    def _read(self, content: int = 0) -> Iterator[tuple[Dataset, Callable[[], Dataset]]]:
        """The data set in a temporary folder, and a function that reads it again."""
        with tempfile.TemporaryDirectory() as folder:
            given = self.options(Path(folder), content)

            def read() -> Dataset:
                return self._source(**given)

            dataset = read()
            assert isinstance(dataset, Dataset), f"{self._name} returns a {type(dataset).__name__}, not a Dataset."
            yield dataset, read


def _some(dataset: Dataset) -> list[int]:
    """Rows evenly spread over the data set, the first and the last among them."""
    count = len(dataset.source)
    return torch.linspace(0, count - 1, min(OPENED, count)).round().long().tolist()
