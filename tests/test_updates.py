from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.seeding import stream
from fedprompt.updates import State, Update, weighted_mean


def update(client: int, shared: State) -> Update:
    return Update(client=client, num_examples=1, shared=shared, personal={}, loss=0.0, seconds=0.0)


def draw(address: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 2, generator=stream(0, address)).to(dtype)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.booleans())
def test_equals_numpy_and_counts_the_absent_as_unchanged(counts: list[int], first_sends: bool) -> None:
    before, sent = draw(99), [draw(client) for client in range(len(counts))]
    weights = [count / sum(counts) for count in counts]
    updates = [update(c, {"x": sent[c]} if c or first_sends else {}) for c in range(len(counts))]
    values = [np.float64(u.shared.get("x", before).numpy()) for u in updates]
    expected = np.average(values, axis=0, weights=weights)
    after = weighted_mean({"x": before}, updates, weights)["x"]
    assert after.dtype == torch.float32
    assert np.allclose(after.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("clients", [1, 3, 7, 30])
def test_identical_updates_come_through_bitwise(clients: int) -> None:
    new = draw(1)
    mean = weighted_mean({"x": draw(0)}, [update(c, {"x": new}) for c in range(clients)], [1 / clients] * clients)
    assert torch.equal(mean["x"], new)


def test_what_nobody_sends_stays_bitwise_and_is_a_copy() -> None:
    before = {"x": draw(0), "y": draw(1)}
    after = weighted_mean(before, [update(0, {"x": draw(2)})], [1.0])
    assert torch.equal(after["y"], before["y"])
    assert after["y"].data_ptr() != before["y"].data_ptr()
    assert torch.equal(weighted_mean(before, [], [])["x"], before["x"])


def test_inputs_are_left_alone_in_any_precision() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        before, one = {"x": draw(0, dtype)}, update(0, {"x": draw(1, dtype)})
        weighted_mean(before, [one], [0.5])
        assert torch.equal(before["x"], draw(0, dtype)) and torch.equal(one.shared["x"], draw(1, dtype))


def test_half_precision_is_summed_wide() -> None:
    # 512 steps of 1/512 from 2048: each alone is lost in float16, where neighbours of 2048 are 2 apart
    updates = [update(client, {"x": torch.tensor([2050.0], dtype=torch.float16)}) for client in range(512)]
    mean = weighted_mean({"x": torch.tensor([2048.0], dtype=torch.float16)}, updates, [1 / 512] * 512)
    assert mean["x"].item() == 2050.0


def test_bytes_count_what_is_sent() -> None:
    one = Update(client=0, num_examples=1, shared={"x": draw(0)}, personal={"y": draw(1)}, loss=0.0, seconds=0.0)
    assert one.bytes == 3 * 2 * 4
