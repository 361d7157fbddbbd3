"""Sites that lie in their answers (attack 12), counts that leave a site (14), and clocks that differ (18)."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedprompt.deploy.checked_channel import CheckedChannel, MessageNumbers, Terms
from fedprompt.deploy.disclosure import class_counts, releasable, releasable_score, releasable_total
from fedprompt.deploy.preflight import clock_problem, read_report
from fedprompt.deploy.settings import Deployment, Policy
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.federated.screening import Limits
from fedprompt.federated.server import Server
from fedprompt.records.events import SitesEvent
from fedprompt.runtimes.payload import DONE, EVALUATE, HELLO, TRAIN, Fields, Payload, RawTensor
from fedprompt.runtimes.remote import Remote, RemoteSettings
from fedprompt.runtimes.tensor_codec import decode, encode_change
from fedprompt.seeding import numpy_stream
from fedprompt.text_files import load_json
from toys import Toy

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "40"))
NAMES = ("east", "north", "south")
FACTS = {"fedprompt": "1", "method": "m", "backbone": "b", "classes": "c"}
# JSON texts of values that a lying site may send in place of any other.
HOSTILE = (
    *("1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 5000, "1e999", "-1e999", "1e308", "1e30", "-1", "0", "0.5"),
    *("NaN", "Infinity", "null", "true", "{}", "[]", '""', '"' + "x" * 100_000 + '"', '"\\ud800"', '"<b>\\u001b[2J"'),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, '{"a": 1, "a": 2}', "[1e999]", "[[]]", '{"x": []}'),
    *("18446744073709551616", "9223372036854775808", "[" + "0," * 200_000 + "0]", "not json", "", "{"),
)


def honest(name: str, request: Payload) -> Payload:
    """What a site that follows the protocol answers."""
    marks = {"serial": request.fields["serial"], "facts": FACTS | {"data": name}}
    if request.kind == HELLO:
        about = {"site": name, "versions": {"torch": "2"}, "images": 5, "labels": [5, None], "unreadable": 0}
        return Payload(DONE, {**about, **marks, "tests": True, "scores": "exact", "time": time.time()})
    if request.kind == EVALUATE:
        score = {"num_examples": 9, "figures": {"accuracy": 0.5, "macro_f1": None}, "per_class": [None, 1.0]}
        return Payload(DONE, {"score": score, **marks})
    shared = decode(request.tensors)
    sent = encode_change({name: tensor + 0.01 for name, tensor in shared.items()}, shared, "float32")
    return Payload(DONE, {"num_examples": 4, "loss": 0.5, "seconds": 1.0, "validation": 0.25, **marks}, sent)


class Wire:
    """Carries answers as JSON text, as Flower does; `lies` gives the text and tensors that the site north sends."""

    def __init__(self, lies: Callable[[Payload], tuple[str, str, Mapping[str, RawTensor]]]) -> None:
        self.lies = lies

    def sites(self) -> Mapping[str, int]:
        return dict.fromkeys(NAMES, 1)

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        return {name: self._answer(name, request) for name, request in payloads.items()}

    def _answer(self, name: str, request: Payload) -> Payload | str:
        answer = honest(name, request)
        if name != "north":
            return answer
        kind, text, tensors = self.lies(answer)
        try:
            return Payload(kind, dict(load_json(text)), tensors)
        except (ValueError, TypeError):
            return "sent a malformed message."


def lie(draws: np.random.Generator, answer: Payload) -> tuple[str, str, Mapping[str, RawTensor]]:
    """The answer with a value anywhere in its fields, or anything in its tensors or kind, replaced."""
    text = json.dumps(answer.fields)
    values = [text, *(json.dumps(value) for value in _values(answer.fields))]
    for _ in range(int(draws.integers(1, 3))):
        text = text.replace(str(draws.choice(values)), HOSTILE[draws.integers(len(HOSTILE))], 1)
    kind = str(draws.choice([DONE] * 8 + ["refused", "failed", "diverged", "", "x" * 9999]))
    tensors = dict(answer.tensors)
    if tensors and draws.integers(2):
        name = str(draws.choice(list(tensors)))
        raw = tensors[name]
        odd = [
            replace(raw, dtype="float64"),
            replace(raw, shape=(2**40,)),
            replace(raw, shape=(-1, 4)),
            replace(raw, shape=("4",)),
            replace(raw, data=raw.data[:-1]),
            replace(raw, data=b"\xff" * len(raw.data)),
            replace(raw, data=draws.bytes(len(raw.data))),
            replace(raw, data=np.full(len(raw.data) // 4, 3e38, "<f4").tobytes()),
        ]
        tensors[name] = odd[draws.integers(len(odd))]
    return kind, text, tensors


def _values(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for item in inner for one in (item, *_values(item))]


def federation(wire: Wire) -> tuple[CheckedChannel, list[Fields]]:
    admitted: list[Fields] = []

    def admit(name: str, report: Fields) -> None:
        SitesEvent(trial="t", sites={name: report}).to_json()  # as a run records it
        admitted.append(report)

    deployment = Deployment(name="test", address="localhost", sites=NAMES, connect_timeout=0, quorum=2)
    terms = Terms(NAMES, {"recipe": "r"}, FACTS, {}, admit)
    return CheckedChannel(wire, deployment, MessageNumbers(1), terms), admitted


def test_no_answer_of_one_site_ends_the_run_or_costs_another_site_a_round() -> None:
    """Attack 12: loss = 10**400, num_examples = 1e999, answers nested 900 deep, and whatever else."""
    draws, refused = numpy_stream(0, "attack 12"), 0
    for _ in range(TRIES):
        wire = Wire(lambda answer: (DONE, json.dumps(answer.fields), answer.tensors))
        channel, _ = federation(wire)
        channel.preflight(on_warning=print)
        wire.lies = lambda answer: lie(draws, answer)
        remote = Remote(Toy(), channel, RemoteSettings(NAMES, quorum=2, deadline=1), {"run": "r", "trial": "t"})
        server = Server(limits=Limits(norm=100.0))
        for record in federate(Toy(), remote, clients=range(3), rounds=3, seed=0, server=server):
            failed = remote.notes.failed | record.refused
            assert {0, 2} <= {update.client for update in record.updates} and failed.keys() <= {1}
            assert all(len(why) < 400 and why.isprintable() for why in failed.values())
            assert all(tensor.isfinite().all() for tensor in record.shared.values())
            assert all(math.isfinite(update.loss) for update in record.updates)
            refused += len(failed)
        scores = remote.evaluate(4, initial_state(Toy())[0], range(3))
        assert {"east", "south"} <= {score.name for score in scores}
        for score in scores:
            assert all(value != value or 0 <= value <= 1e5 for value in (*score.figures.values(), *score.per_class))
    assert refused > TRIES / 2


def test_a_report_of_the_preflight_is_of_known_types_or_refused() -> None:
    draws, read = numpy_stream(0, "attack 12, preflight"), 0
    for _ in range(TRIES):
        lies = draws.integers(4) > 0
        wire = Wire(lambda answer, lies=lies: lie(draws, answer) if lies else (DONE, json.dumps(answer.fields), {}))
        channel, admitted = federation(wire)
        try:
            channel.preflight(on_warning=print)
        except UserError as stop:
            assert "north: " in str(stop) and "east" not in str(stop) and "south" not in str(stop)
            assert len(str(stop)) < 1000 and str(stop).isprintable()
        else:
            read += 1
        assert {"east", "south"} <= {report["site"] for report in admitted}
    assert 0 < read < TRIES


@pytest.mark.parametrize("text", HOSTILE)
def test_every_hostile_number_is_refused_by_name(text: str) -> None:
    kinds = {TRAIN: ("num_examples", "loss", "seconds", "validation")}
    for field in kinds[TRAIN]:

        def spoil(answer: Payload, field: str = field) -> tuple[str, str, Mapping[str, RawTensor]]:
            fields = json.dumps({**answer.fields, field: "HERE"}).replace('"HERE"', text)
            return DONE, fields if answer.tensors else json.dumps(answer.fields), answer.tensors

        channel, _ = federation(Wire(spoil))
        channel.preflight(on_warning=print)
        remote = Remote(Toy(), channel, RemoteSettings(NAMES, deadline=1), {"run": "r", "trial": "t"})
        used = {update.client for update in remote.train(1, initial_state(Toy())[0], range(3))}
        assert used >= {0, 2}
        if 1 not in used:
            why = remote.notes.failed[1]
            assert why.startswith(f"number: its {field} is not a") or why == "sent a malformed message."


def test_most_sites_that_diverge_raise_and_a_few_do_not() -> None:
    class Some(Wire):
        def __init__(self, *diverging: str) -> None:
            self.diverging = diverging

        def _answer(self, name: str, request: Payload) -> Payload | str:
            return Payload("diverged") if name in self.diverging and request.kind == TRAIN else honest(name, request)

    for diverging, raises in ((("north",), False), (("north", "east"), True)):
        channel, _ = federation(Some(*diverging))
        channel.preflight(on_warning=print)
        remote = Remote(Toy(), channel, RemoteSettings(NAMES, deadline=1), {"run": "r", "trial": "t"})
        if raises:
            with pytest.raises(NotFiniteError, match="not finite at east, north"):
                remote.train(1, initial_state(Toy())[0], range(3))
        else:
            assert [update.client for update in remote.train(1, initial_state(Toy())[0], range(3))] == [0, 2]
            assert remote.notes.failed[1].startswith("diverged: ")


def worlds(leaves: tuple[Sequence[int | None], int], classes: int, smallest: int, most: int) -> list[tuple[int, ...]]:
    """All counts per class of which exactly this leaves a site."""
    return [
        counts
        for counts in itertools.product(range(most + 1), repeat=classes)
        if (releasable(counts, smallest), releasable_total(sum(counts), Policy(smallest_count=smallest))) == leaves
    ]


def test_no_withheld_count_follows_from_what_leaves() -> None:
    """Attack 14: [7, null, 7] beside 16 training images gives the hidden 2."""
    assert releasable([7, 2, 7], 5) == [None, None, None] and releasable([7, 0, 5], 5) == [7, 0, 5]
    draws = numpy_stream(0, "attack 14")
    for _ in range(TRIES):
        classes, smallest = int(draws.integers(1, 4)), int(draws.integers(2, 6))
        counts = [int(count) for count in draws.integers(0, 9, size=classes)]
        leaves = (releasable(counts, smallest), releasable_total(sum(counts), Policy(smallest_count=smallest)))
        possible = worlds(leaves, classes, smallest, sum(counts) + smallest)
        for place, count in enumerate(counts):
            if 0 < count < smallest:
                assert {world[place] for world in possible} >= set(range(1, smallest)), (counts, smallest)


def test_an_exact_score_leaves_with_figures_per_class_only_if_every_class_has_enough_images() -> None:
    def examples(*targets: int) -> SimpleNamespace:
        return SimpleNamespace(targets=torch.tensor(targets), space=range(2))

    score = Score("local", 10, {"accuracy": 0.7, "macro_f1": math.nan}, (0.6, 0.8))
    policy, many, few = Policy(scores="exact"), examples(*[0] * 5, *[1] * 5), examples(*[0] * 7, *[1] * 3)
    assert class_counts(few) == [7, 3]
    assert releasable_score(score, many, policy) == {
        "num_examples": 10,
        "figures": {"accuracy": 0.7, "macro_f1": None},
        "per_class": [0.6, 0.8],
    }
    assert releasable_score(score, few, policy)["per_class"] == [None, None]
    assert releasable_score(replace(score, num_examples=4), many, policy) is None
    assert releasable_score(score, None, policy) is None


def test_a_clock_that_is_off_is_named_with_its_site_and_the_seconds() -> None:
    """Attack 18: any clock, however long the exchange takes."""
    draws = numpy_stream(0, "attack 18")
    for _ in range(TRIES):
        skew, asked = float(draws.uniform(1, 300)), 1e9
        received = asked + float(draws.uniform(0, 100))
        off = float(draws.normal(scale=2 * skew))
        said = clock_problem(received + off, asked=asked, received=received, skew=skew)
        assert bool(said) == (off > skew or received + off < asked - skew)
        if said and off > 0:
            assert said.startswith(f"its clock is {off:.0f} s ahead of the server's, and {skew:.0f} s are allowed")
        elif said:
            assert "behind the server's" in said


def test_the_preflight_measures_a_clock_when_the_answer_arrives() -> None:
    class Late(Wire):
        ahead = 0.0

        def _answer(self, name: str, request: Payload) -> Payload | str:
            answer = honest(name, request)
            now = time.time() - 50  # this answer arrived before those of other sites
            clock = now + (self.ahead if name == "north" else 0.0)
            return replace(answer, fields={**answer.fields, "time": clock}, received=now)

    wire = Late(lambda answer: (DONE, "", {}))
    channel, _ = federation(wire)
    wire.ahead = 59.0
    channel.preflight(on_warning=print)
    wire.ahead = 75.0
    channel, _ = federation(wire)
    with pytest.raises(UserError, match=r"north: preflight: its clock is 75 s ahead of the server's, and 60 s are"):
        channel.preflight(on_warning=print)


def test_flower_leaves_the_comparison_of_clocks_to_the_preflight() -> None:
    pytest.importorskip("flwr")
    program = (
        "from fedprompt.runtimes.flower import superlink\n"
        "import sys, types\n"
        "sys.modules['flwr.superlink.cli'] = types.SimpleNamespace(flower_superlink=lambda: None)\n"
        "superlink.main()\n"
        "from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor as grpc\n"
        "from flwr.superlink.routers.fleet import node_auth as http\n"
        "print(-grpc.MIN_TIMESTAMP_DIFF, http.SYSTEM_TIME_TOLERANCE)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["86400", "86400"]


def test_a_report_has_no_more_than_the_known_fields(tmp_path: Path) -> None:
    request = Payload(HELLO, {"serial": [1, 1]})
    report = read_report({**honest("east", request).fields, "extra": "x" * 10**6})
    assert set(report) == {"site", "versions", "images", "labels", "unreadable", "tests", "scores", "time", "facts"}
