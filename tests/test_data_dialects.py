"""One truth in every layout and dialect that the sources read, and mutations of it: equal, refused or said.

FEDPROMPT_EXAMPLES is the number of examples per source and test.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialects import KINDS, OTHER_SOURCES, WRITERS
from documents import Written
from fedprompt.config.registry import SOURCES
from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError
from truths import AWKWARD, PLAIN, Truth, facts, facts_of, truths

EXAMPLES = int(os.environ.get("FEDPROMPT_EXAMPLES", "0"))
property_test = settings(
    max_examples=EXAMPLES or 8,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
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
            assert {"train", "test"} <= set(found.splits) and "drawn" in found.report.origins["splits"]


@each_source
@property_test
@given(data=st.data())
def test_names_that_read_like_something_else_are_read_back_equal_or_refused(source: str, data: st.DataObject) -> None:
    truth = data.draw(truths((*AWKWARD, *PLAIN), **KINDS[source]))
    with tempfile.TemporaryDirectory() as folder:
        written = WRITERS[source](data.draw, truth, Path(folder))
        written.save()
        try:
            found = read(source, written)
        except UserError:
            return
        assert facts_of(found, splits=written.splits, domains=written.domains) == facts(
            truth, splits=written.splits, domains=written.domains, listed=written.listed
        )
