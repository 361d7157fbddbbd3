"""One truth in every layout and dialect that the sources read, and mutations of it: equal, refused or said.

FEDPROMPT_EXAMPLES is the number of examples per source and test.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, event, given, note, settings
from hypothesis import strategies as st

from dialects_of_tools import KINDS, OTHER_SOURCES, WRITERS
from documents import Written
from fedprompt.config.registry import SOURCES
from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError
from mutations_of_tools import mutate
from truths import AWKWARD, PLAIN, Truth, facts, facts_of, truths

EXAMPLES = int(os.environ.get("FEDPROMPT_EXAMPLES", "0"))
property_test = settings(
    max_examples=EXAMPLES or 8,
    derandomize=not EXAMPLES,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain a failure takes minutes
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
each_source = pytest.mark.parametrize("source", sorted(WRITERS))


def read(source: str, written: Written) -> Dataset:
    return SOURCES.builders[source](**written.options)


def agrees(data: Dataset, truth: Truth, written: Written, *, listed: bool | None = None) -> bool:
    """Whether what was read is the truth, as far as the dialect says it."""
    own = facts(
        truth, splits=written.splits, domains=written.domains, listed=written.listed if listed is None else listed
    )
    return facts_of(data, splits=written.splits, domains=written.domains) == own


def test_every_source_that_reads_files_has_a_writer():
    assert set(SOURCES.names()) == set(WRITERS) | OTHER_SOURCES
    assert set(KINDS) == set(WRITERS)


@each_source
@property_test
@given(data=st.data())
def test_what_is_written_is_read_back_equal(source: str, data: st.DataObject) -> None:
    truth = data.draw(truths(PLAIN, **KINDS[source]))
    with tempfile.TemporaryDirectory() as folder:
        written = WRITERS[source](data.draw, truth, Path(folder))
        written.save()
        try:
            found = read(source, written)
        except UserError:
            if not written.ambiguous:
                raise
            return
        assert facts_of(found, splits=written.splits, domains=written.domains) == facts(
            truth, splits=written.splits, domains=written.domains, listed=written.listed
        )
        if written.order:
            assert found.space.names == tuple(written.order)
        if not written.splits:
            assert {"train", "test"} <= set(found.splits) and "drawn" in str(found.report.to_json())


@each_source
@property_test
@given(data=st.data())
def test_names_that_read_like_something_else_are_read_back_or_refused(source: str, data: st.DataObject) -> None:
    truth = data.draw(truths((*AWKWARD, *PLAIN), **KINDS[source]))
    with tempfile.TemporaryDirectory() as folder:
        written = WRITERS[source](data.draw, truth, Path(folder))
        written.save()
        try:
            found = read(source, written)
        except UserError:
            return
        assert agrees(found, truth, written) or "hidden folders" in found.report.left_out


@each_source
@property_test
@given(data=st.data())
def test_what_is_changed_is_read_as_it_was_or_refused_or_said(source: str, data: st.DataObject) -> None:
    truth = data.draw(truths(PLAIN, **KINDS[source]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = WRITERS[source](data.draw, truth, root)
        written.save()
        try:
            before = read(source, written)
        except UserError:
            assume(False)
        names = set(before.space.names)
        shutil.rmtree(root)
        name, accepted = mutate(data.draw, truth, written)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        try:
            written.save()
        except ValueError:  # nobody can write that: the encoding lacks a letter, or the column its number
            assume(False)
        note(f"{name}: {written.options}")
        try:
            found = read(source, written)
        except UserError as error:
            event(f"{name}: refused")
            note(str(error))
            return
        listed = written.listed or set(found.space.names) == names
        equal = any(agrees(found, own, written, listed=listed) for own in accepted)
        event(f"{name}: {'equal' if equal else 'said'}")
        assert equal or says_more(before, found)


def says_more(before: Dataset, after: Dataset) -> bool:
    """Whether the second data set has a warning, a count of files that are left out, or drawn splits that are new."""
    old, new = before.report, after.report
    drawn = ["drawn" in str(report.to_json()["origins"]) for report in (old, new)]
    return bool(set(new.warnings) - set(old.warnings)) or new.left_out != old.left_out or drawn == [False, True]
