from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.federated.screening import Limits, RefusedUpdateError, check_raw, check_update, screen
from fedprompt.updates import State, Update

SHARED = {"x": torch.zeros(2), "y": torch.zeros(1, 3)}


def update(client: int = 5, shared: State | None = None, **fields: object) -> Update:
    one = Update(client=client, num_examples=7, shared={"x": torch.ones(2)}, personal={}, loss=0.5, seconds=0.0)
    return replace(one, **({} if shared is None else {"shared": shared}), **fields)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"shared": {"x": torch.tensor([1.0, float("nan")])}}, "not finite"),
        ({"shared": {"x": torch.tensor([1.0, float("-inf")])}}, "not finite"),
        ({"personal": {"own": torch.tensor([0.0, float("nan")])}}, "not finite"),
        ({"personal": {"own": torch.tensor([float("inf")])}}, "not finite"),
        ({"shared": {"x": torch.ones(3)}}, "shape"),
        ({"shared": {"x": torch.ones(2).double()}}, "shape"),
        ({"shared": {"x": torch.ones(2).to_sparse()}}, "shape"),
        ({"shared": {"x": torch.empty(2, device="meta")}}, "shape"),
        ({"shared": {"x": [1.0, 2.0]}}, "shape"),
        ({"shared": {"../<b>\n" * 50: torch.ones(2)}}, "name"),
        ({"num_examples": 0}, "weight"),
        ({"num_examples": -3}, "weight"),
        ({"num_examples": 10**12}, "weight"),
        ({"num_examples": True}, "weight"),
        ({"num_examples": 3.0}, "weight"),
        ({"loss": float("inf")}, "loss"),
        ({"loss": "low"}, "loss"),
    ],
)
def test_a_broken_update_is_refused_with_a_code(fields: dict, code: str) -> None:
    check_update(update(), SHARED)
    with pytest.raises(RefusedUpdateError, match=f"^{code}: ") as refusal:
        check_update(update(**fields), SHARED)
    assert refusal.value.code == code and "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


def test_an_update_without_a_loss_is_accepted() -> None:
    assert screen([update(loss=float("nan"))], SHARED, limits=Limits(), asked=[5]).accepted


def test_the_others_go_on_without_those_who_are_refused() -> None:
    sent = [update(1), update(2, num_examples=0), update(3), update(3), update(9)]
    found = screen(sent, SHARED, limits=Limits(), asked=[1, 2, 3])
    assert [one.client for one in found.accepted] == [1]
    assert {client: reason.split(":")[0] for client, reason in found.refused.items()} == {
        2: "weight",
        3: "twice",
        9: "stranger",
    }


def test_a_change_longer_than_so_many_medians_is_refused() -> None:
    sent = [update(client, {"x": torch.full((2,), size)}) for client, size in enumerate((1.0, 1.1, 0.9, 2.5, 3.5))]
    found = screen(sent, SHARED, limits=Limits(norm=3.0), asked=range(5))
    assert list(found.refused) == [4] and found.refused[4].startswith("norm: ")
    assert not screen(sent, SHARED, limits=Limits(), asked=range(5)).refused
    assert not screen(sent[3:], SHARED, limits=Limits(norm=0.1), asked=range(5)).refused, "two have no median"


@dataclass(frozen=True)
class RawTensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@pytest.mark.parametrize(
    ("name", "raw", "code"),
    [
        ("z", RawTensor("float32", (2,), bytes(8)), "name"),
        ("x", RawTensor("float64", (2,), bytes(16)), "shape"),
        ("x", RawTensor("float32", (2**40,), bytes(8)), "shape"),
        ("x", RawTensor("float32", (2,), bytes(10_000)), "size"),
        ("x", RawTensor("float32", (2,), bytes(7)), "size"),
    ],
)
def test_a_tensor_is_refused_before_its_bytes_are_read(name: str, raw: RawTensor, code: str) -> None:
    check_raw({"x": RawTensor("float32", (2,), bytes(8))}, SHARED)
    check_raw({"x": RawTensor("bfloat16", (2,), bytes(4))}, SHARED, dtype="bfloat16")
    with pytest.raises(RefusedUpdateError) as refusal:
        check_raw({name: raw}, SHARED)
    assert refusal.value.code == code


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=9))
tensors = st.builds(
    lambda shape, value, dtype: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from((0.0, 1e38, float("nan"), float("inf"))),
    st.sampled_from((torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64)),
)


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Update,
            client=st.integers(-2, 4),
            num_examples=st.one_of(st.just(3), anything),
            shared=st.dictionaries(st.sampled_from(("x", "y", "ü\x00")), st.one_of(tensors, anything), max_size=3),
            personal=st.just({}),
            loss=st.one_of(st.just(0.1), anything),
            seconds=st.just(0.0),
        ),
        max_size=5,
    )
)
def test_whatever_comes_is_used_or_refused(sent: list[Update]) -> None:
    found = screen(sent, SHARED, limits=Limits(norm=2.0), asked=range(4))
    assert {one.client for one in found.accepted} | found.refused.keys() == {one.client for one in sent}
    for one in found.accepted:
        assert one.shared.keys() <= SHARED.keys() and all(tensor.isfinite().all() for tensor in one.shared.values())
