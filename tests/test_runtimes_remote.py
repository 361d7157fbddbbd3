"""The remote transport over a channel in memory: what sites may send, and what a round does when they do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.errors import UserError
from fedprompt.federated.rounds import federate
from fedprompt.federated.screening import check_raw
from fedprompt.runtimes.payload import DONE, EVALUATE, FAILED, Payload, RawTensor
from fedprompt.runtimes.remote import Remote, RemoteSettings
from fedprompt.runtimes.tensor_codec import decode, decode_change, encode, encode_change
from toys import Toy

SITES = ("east", "north", "south")
SHARED = {"bias": torch.zeros(4), "matrix": torch.ones(4, 6)}


def good(payload: Payload) -> Payload:
    """Adds one to everything."""
    shared = decode(payload.tensors)
    tensors = encode_change({name: tensor + 1 for name, tensor in shared.items()}, shared, payload.fields["upload"])
    return Payload(DONE, {"num_examples": 4, "loss": 0.5, "seconds": 1.0, "validation": 0.25}, tensors)


class Post:
    """Answers at once; `faults[site]` changes what a site says."""

    def __init__(self, **faults: Callable[[Payload], Payload | str]) -> None:
        self.faults, self.asked = faults, []

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        self.asked.append(dict(payloads))
        answers: dict[str, Payload | str] = {}
        for name, payload in payloads.items():
            answer = good(payload)
            answers[name] = self.faults[name](answer) if name in self.faults else answer
        return answers


def remote(post: Post, **terms: object) -> Remote:
    return Remote(Toy(), post, RemoteSettings(SITES, **terms), {"run": "r", "trial": "t"})


def reworded(**fields: object) -> Callable[[Payload], Payload]:
    return lambda payload: replace(payload, fields={**payload.fields, **fields})


def retensored(change: Callable[[RawTensor], RawTensor]) -> Callable[[Payload], Payload]:
    return lambda payload: replace(payload, tensors={**payload.tensors, "bias": change(payload.tensors["bias"])})


BAD: dict[str, Callable[[Payload], Payload | str]] = {
    "silent": lambda _: "did not answer.",
    "failed": lambda _: Payload(FAILED, {"reason": "OSError"}),
    "extra": lambda payload: replace(payload, tensors={"other": payload.tensors["bias"]}),
    "short": retensored(lambda raw: replace(raw, data=raw.data[:-1])),
    "long": retensored(lambda raw: replace(raw, data=raw.data * 1000)),
    "shape": retensored(lambda raw: replace(raw, shape=(2, 2))),
    "dtype": retensored(lambda raw: replace(raw, dtype="float64")),
    "nan": retensored(lambda raw: replace(raw, data=b"\x00\x00\xc0\x7f" * 4)),
    "infinite": retensored(lambda raw: replace(raw, data=b"\x00\x00\x80\x7f" * 4)),
    "no pictures": reworded(num_examples=0),
    "too many": reworded(num_examples=10**12),
    "fields": reworded(num_examples="4"),
    "true": reworded(num_examples=True),
    "loss": reworded(loss=float("nan")),
    "none": reworded(seconds=None),
    "score": reworded(validation={"a": 1}),
    "kind": lambda payload: replace(payload, kind="x" * 10_000),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_answer_costs_its_site_the_round_and_nobody_else(fault: str) -> None:
    transport = remote(Post(north=BAD[fault]))
    updates = transport.train(1, SHARED, [0, 1, 2])
    assert [update.client for update in updates] == [0, 2]
    assert transport.notes.failed.keys() == {1} and 5 < len(transport.notes.failed[1]) < 300
    assert transport.accepted == {0: 1, 2: 1}


def test_bytes_and_validation_are_recorded_as_they_travelled() -> None:
    transport = remote(Post(), upload="float16")
    updates = transport.train(1, SHARED, [0, 2])
    assert transport.notes.bytes_up == {0: 2 * 28, 2: 2 * 28} and updates[0].bytes == 4 * 28
    assert transport.notes.validation == {0: 0.25, 2: 0.25}


def test_only_what_changed_travels() -> None:
    after = {**SHARED, "bias": SHARED["bias"] + 1}
    assert encode_change(after, SHARED, "float32").keys() == {"bias"}


@settings(max_examples=50)
@given(step=st.floats(-(2**-7), 2**-7, width=32), upload=st.sampled_from(["float32", "float16", "bfloat16"]))
def test_a_change_arrives_exactly_or_to_the_digits_of_its_type(step: float, upload: str) -> None:
    before = {"x": torch.linspace(-3, 3, 7)}
    after = {"x": before["x"] + step}
    raws = encode_change(after, before, upload)
    check_raw(raws, before, dtype=upload)
    arrived = {**before, **decode_change(raws, before, upload)}["x"]
    if upload == "float32":
        assert torch.equal(arrived, after["x"])
    else:
        assert (arrived - after["x"]).abs().max() <= abs(step) / 128 + 1e-6


def test_below_the_quorum_a_round_changes_nothing_and_three_in_a_row_pause_the_run() -> None:
    post = Post(east=BAD["silent"], north=BAD["failed"])
    transport, method, seen = remote(post, quorum=2), Toy(), []
    start = dict(method.named_parameters())["matrix"].detach().clone()
    with pytest.raises(UserError, match=r"Paused in round 3.*east: did not answer.*fedprompt resume"):
        for one in federate(method, transport, clients=range(3), rounds=9, seed=1):
            seen.append(one)
            assert not one.updates and torch.equal(one.shared["matrix"], start)
    assert [one.number for one in seen] == [1, 2] and transport.accepted == {}


def test_sites_are_told_which_of_their_rounds_counted() -> None:
    post = Post()
    transport = remote(post)
    transport.train(1, SHARED, [0, 1])
    post.faults["east"] = BAD["nan"]
    transport.train(2, SHARED, [0, 1])
    post.faults.clear()
    transport.train(3, SHARED, [0, 1, 2])
    since = {name: payload.fields["since"] for name, payload in post.asked[-1].items()}
    assert since == {"east": 1, "north": 2, "south": 0}


def test_a_site_whose_update_the_server_refuses_goes_on_from_the_round_before() -> None:
    transport = remote(Post())
    transport.train(1, SHARED, [0, 1])
    transport.train(2, SHARED, [0, 1, 2])
    transport.undo([1, 2])
    assert transport.accepted == {0: 2, 1: 1} and transport.notes.kept == (0,)


def test_scores_come_from_those_who_have_them() -> None:
    score = {"num_examples": 9, "figures": {"accuracy": 0.5, "macro_f1": None}, "per_class": [None, 1.0]}
    fields = {"east": {"score": score}, "north": {"score": None}, "south": {"score": {"figures": "much"}}}
    post = Post(**{name: lambda _, said=said: Payload(DONE, said) for name, said in fields.items()})
    found = remote(post).evaluate(2, SHARED, range(3))
    assert [one.name for one in found] == ["east"] and found[0].figures["accuracy"] == 0.5
    assert all(payload.kind == EVALUATE for payload in post.asked[-1].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float64])
def test_tensors_travel_exactly(dtype: torch.dtype) -> None:
    state = {"é/x": torch.arange(6, dtype=dtype).reshape(2, 3).T, "scalar": torch.tensor(3, dtype=dtype)}
    state["empty"] = torch.empty(0, 2, dtype=dtype)
    payload = Payload.from_bytes(Payload("train", {"a": [1, None]}, encode(state)).to_bytes())
    assert payload.fields == {"a": [1, None]}
    assert all(torch.equal(tensor, state[name]) for name, tensor in decode(payload.tensors).items())


@pytest.mark.parametrize(
    "tensors",
    [
        [["x", "float32", [2], -8]],
        [["x", "float32", [-2], 8]],
        [["x", "float32", [2.0], 8]],
        [["x", "float32", "2", 8]],
        [[7, "float32", [2], 8]],
        [["x", "float32", [1], 4], ["x", "float32", [1], 4]],
        [["x", "float32", [2], 7]],
    ],
)
def test_a_frame_whose_tensors_are_not_as_declared_is_refused(tensors: list[object]) -> None:
    header = json.dumps({"kind": "train", "fields": {}, "tensors": tensors}).encode()
    with pytest.raises(UserError):
        Payload.from_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def test_a_header_may_be_bounded() -> None:
    content = Payload("train", {"a": "b" * 100}).to_bytes()
    assert Payload.from_bytes(content, largest_header=200).fields == {"a": "b" * 100}
    with pytest.raises(UserError):
        Payload.from_bytes(content, largest_header=100)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_frame_is_refused_in_a_sentence(data: st.DataObject) -> None:
    content = bytearray(Payload("train", {"a": 1}, {"x": RawTensor("float32", (2,), b"12345678")}).to_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        try:
            json.dumps(Payload.from_bytes(damaged).fields)
        except UserError as refusal:
            assert "restart" in str(refusal)
