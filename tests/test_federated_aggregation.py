from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.federated.aggregation.base import weights_for
from fedprompt.updates import State, Update


def update(num_examples: int = 1, shared: State | None = None) -> Update:
    return Update(client=5, num_examples=num_examples, shared=shared or {}, personal={}, loss=0.0, seconds=0.0)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_weights_sum_to_one(counts: list[int]) -> None:
    updates = [update(count) for count in counts]
    assert weights_for(updates, "uniform") == [1 / len(counts)] * len(counts)
    by_size = weights_for(updates, "examples")
    assert sum(by_size) == pytest.approx(1)
    assert by_size == pytest.approx([count / sum(counts) for count in counts])
