from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.errors import UserError
from fedprompt.federated.aggregate import check_update, weights_for
from fedprompt.ops.averaging import State, Update


def update(num_examples: int = 1, shared: State | None = None) -> Update:
    return Update(client=5, num_examples=num_examples, shared=shared or {}, personal={}, loss=0.0, seconds=0.0)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_weights_sum_to_one(counts: list[int]) -> None:
    updates = [update(count) for count in counts]
    assert weights_for(updates, "uniform") == [1 / len(counts)] * len(counts)
    by_size = weights_for(updates, "examples")
    assert sum(by_size) == pytest.approx(1)
    assert by_size == pytest.approx([count / sum(counts) for count in counts])


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"x": torch.tensor([1.0, float("nan")])}, "Client 5 sent NaN or infinity in 'x'"),
        ({"x": torch.tensor([1.0, float("-inf")])}, "Client 5 sent NaN or infinity in 'x'"),
        ({"x": torch.ones(3)}, r"Client 5 sent 'x' as \[3\] torch.float32; the server expects \[2\]"),
        ({"x": torch.ones(2).double()}, "Client 5 sent 'x' as .* torch.float64"),
        ({"secret": torch.ones(2)}, "Client 5 sent the tensor 'secret', which the server does not share"),
    ],
)
def test_a_broken_update_is_refused_by_name(sent: State, message: str) -> None:
    check_update(update(shared={"x": torch.ones(2)}), {"x": torch.zeros(2), "y": torch.zeros(1)})
    with pytest.raises(UserError, match=message):
        check_update(update(shared=sent), {"x": torch.zeros(2)})
