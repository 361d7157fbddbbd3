"""Fuzzing of messages: ten thousand mutated updates, answers, requests and secure-sum steps, which must not crash.

Updates and answers reach the server, requests reach a site, steps of a secure sum reach either.
"""

from __future__ import annotations

import itertools
import logging
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedprompt
from benchmarks.acceptance.images import write_images
from fedprompt import methods
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.deploy.settings import SITE, Policy, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.experiments.experiment import load_backbone
from fedprompt.federated.aggregation.robust import multi_krum
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import Limits, RefusedUpdateError
from fedprompt.federated.secure.envelope import STEPS
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.simulation import Exchange, local_session
from fedprompt.federated.server import Server
from fedprompt.methods.base import Classifier, Method
from fedprompt.runtimes.payload import (
    DONE,
    EVALUATE,
    FAILED,
    HELLO,
    REFUSED,
    SECURE,
    TRAIN,
    VERSION,
    Payload,
    RawTensor,
)
from fedprompt.runtimes.remote import Remote, RemoteSettings
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.seeding import numpy_stream
from fedprompt.updates import State, Update, fedavg

SHARED: State = {"context": torch.zeros(4, 64), "bias": torch.zeros(64)}
CLIENTS = 7
ANSWER = Payload(DONE, {"num_examples": 4, "loss": 0.5, "seconds": 1.0, "validation": None}, encode(SHARED))
NAMES = ("", "ñ\x00\u202e", "../../etc", "a" * 10_000, "shared/context", "personal")
ODD_WORDS: tuple[Any, ...] = (None, "1", -1, 0, 10**12, 1.5, True, float("nan"), [], {"a": [1]}, "../" * 99, "\x00")
RECIPE = """
name = "job"
[data]
source = "sites"
classes = ["cat", "dog"]
[partition]
rule = "by_site"
sites = ["a", "b"]
[method]
name = "promptfl"
[train]
rounds = 3
"""

Kind = Callable[[np.random.Generator], str]


def fuzz(count: int) -> tuple[Counter[str], float]:
    """Mutate `count` messages: the counts of reasons for refusal ("used" for none), and the growth of memory.

    Growth is the process's peak over its peak after honest rounds, so the process should do nothing else before.
    """
    draws, reasons = numpy_stream(0, "mutations"), Counter[str]()
    logging.disable()  # a site's own log would hold thousands of tracebacks
    with tempfile.TemporaryDirectory() as folder:
        requests = Requests(Path(folder))
        kinds: tuple[Kind, ...] = (_update, _answer, _secure, _update, _answer, _secure, _update, _answer, requests)
        _honest_rounds(requests)
        nominal = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for kind in itertools.islice(itertools.cycle(kinds), count):
            reasons[kind(draws)] += 1
    logging.disable(logging.NOTSET)
    return reasons, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / nominal


def _honest(client: int, draws: np.random.Generator) -> Update:
    sent = {name: torch.from_numpy(draws.normal(size=tuple(t.shape))).float() for name, t in SHARED.items()}
    return Update(client, 5, sent, {}, 0.5, 0.0)


def _honest_rounds(requests: Requests) -> None:
    draws = numpy_stream(1, "mutations")
    for _ in range(20):
        requests.site.answer(requests.honest())
        _answered({})
        _combine([_honest(client, draws) for client in range(CLIENTS)])
        _exchange(lambda answer: answer, "share_keys")


def _combine(sent: list[Update]) -> str:
    server = Server(rule=multi_krum(adversaries=1), limits=Limits(most_examples=10_000, norm=5.0))
    out = server.combine(fedavg, SHARED, sent, {}, asked=range(CLIENTS))
    assert all(tensor.isfinite().all() for tensor in out.shared.values())
    return next(iter(out.refused.values()), "used").partition(":")[0]


def _odd(draws: np.random.Generator) -> Any:
    return ODD_WORDS[draws.integers(len(ODD_WORDS))]


def _update(draws: np.random.Generator) -> str:
    """Mutate one of seven decoded updates: tensors dropped, renamed, retyped, resized, huge, negative or NaN."""
    sent = [_honest(client, draws) for client in range(CLIENTS)]
    shared = dict(sent[0].shared)
    name = str(draws.choice(sorted(shared)))
    tensor = shared[name]
    types = (torch.float64, torch.float16, torch.int64, torch.complex64, torch.bool)
    spot = int(draws.integers(tensor.numel()))
    ways: list[Callable[[], Update]] = [
        lambda: replace(sent[0], shared={k: v for k, v in shared.items() if k != name}),
        lambda: replace(sent[0], shared={**shared, str(draws.choice(NAMES)): shared.pop(name)}),
        lambda: replace(sent[0], shared={**shared, name: tensor.to(types[draws.integers(len(types))])}),
        lambda: replace(
            sent[0], shared={**shared, name: torch.zeros(draws.integers(0, 9, int(draws.integers(4))).tolist())}
        ),
        lambda: replace(sent[0], shared={**shared, name: tensor * float(10.0 ** draws.integers(0, 38))}),
        lambda: replace(
            sent[0],
            shared={
                **shared,
                name: tensor.flatten()
                .index_fill(0, torch.tensor([spot]), float(draws.choice([np.nan, np.inf, -np.inf])))
                .view_as(tensor),
            },
        ),
        lambda: replace(sent[0], shared={**shared, name: _odd(draws)}),
        lambda: replace(sent[0], num_examples=_odd(draws)),
        lambda: replace(sent[0], loss=_odd(draws)),
        lambda: replace(sent[0], client=int(draws.integers(-3, 12))),
    ]
    return _combine([ways[draws.integers(len(ways))](), *sent[1:]])


def _answer(draws: np.random.Generator) -> str:
    """Mutate one of two sites' answers in its fields, kind or tensors, before any tensor is decoded."""
    fields, tensors = dict(ANSWER.fields), dict(ANSWER.tensors)
    name = str(draws.choice([*fields]))
    ways: list[Callable[[], Payload]] = [
        lambda: replace(ANSWER, fields={**fields, name: _odd(draws)}),
        lambda: replace(ANSWER, fields={key: value for key, value in fields.items() if key != name}),
        lambda: replace(ANSWER, kind=str(draws.choice([FAILED, REFUSED, "", "ñ\x00", "x" * 10_000]))),
        lambda: replace(ANSWER, tensors={**tensors, str(draws.choice(NAMES)): _raw(draws)}),
        lambda: replace(ANSWER, tensors={**tensors, str(draws.choice(sorted(SHARED))): _raw(draws)}),
    ]
    return _answered({"a": ways[draws.integers(len(ways))]()})


def _raw(draws: np.random.Generator) -> RawTensor:
    shape = tuple(int(size) for size in draws.choice([1, 4, 64, 2**40, -1], size=int(draws.integers(1, 4))))
    return RawTensor(
        str(draws.choice(["float32", "float64", "bfloat16", "object", "<U8", ""])),
        ((4, 64), (64,), shape)[draws.integers(3)],
        bytes([int(draws.integers(256))]) * int(draws.choice([0, 255, 256, 1024, 10_000])),
    )


def _answered(said: Mapping[str, Payload]) -> str:
    """The outcome of a round over two sites with these answers."""

    class Post:
        def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
            return {name: said.get(name, ANSWER) for name in payloads}

    transport = Remote(Bare(), Post(), RemoteSettings(("a", "b")), {})
    updates = transport.train(1, SHARED, [0, 1])
    assert [update.client for update in updates][-1] == 1, "the other site has said nothing wrong"
    return str(transport.notes.failed.get(0, "used")).partition(":")[0]


class Bare(Method):
    """A method with tensors that never trains, for transports."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in SHARED.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def classifier(self, clip: object, space: object) -> Classifier:
        raise NotImplementedError


class Requests:
    """A site with six images, and mutated requests from a faulty or malicious server."""

    def __init__(self, folder: Path) -> None:
        for number, name in enumerate(("cat", "dog")):
            for split in ("train", "test"):
                write_images(folder / "images" / split / name, count=3, shade=100 * number)
        site = SiteFile(name="a", superlink="localhost:1", device="cpu", data=str(folder / "images"))
        save(folder / SITE, site.model_copy(update={"policy": Policy(maximum_rounds=3)}))
        self.site = Site(folder)
        method = methods.load("promptfl")(load_backbone(BackboneTable()), generator=None)
        about = {VERSION: fedprompt.__version__, "recipe": RECIPE, "trial": "promptfl"}
        fields = {**about, "run": "0" * 32, "round": 1, "client": 0, "since": 0}
        self._request = Payload(TRAIN, {**fields, "upload": "float32"}, encode(initial_state(method)[0]))
        self._numbers = itertools.count(1)
        assert self.site.answer(self.honest()).kind == DONE, "the unmutated request is accepted"

    def honest(self) -> Payload:
        """The next request of an honest server."""
        return replace(self._request, fields={**self._request.fields, "serial": [1, next(self._numbers)]})

    def __call__(self, draws: np.random.Generator) -> str:
        """Mutate a request in its fields, kind, tensors or a line of its recipe.

        A site answers any exception with its type alone, because its text may hold names.
        """
        honest = self.honest()
        fields = dict(honest.fields)
        name, lines = str(draws.choice([*fields])), RECIPE.splitlines()
        place, line = int(draws.integers(len(lines))), str(draws.choice([*lines, "x = [", "\x00", "[" * 900]))
        recipe = "\n".join([*lines[:place], line, *lines[place + draws.integers(2) :]])
        ways: list[Callable[[], Payload]] = [
            lambda: replace(honest, fields={**fields, name: _odd(draws)}),
            lambda: replace(honest, fields={key: value for key, value in fields.items() if key != name}),
            lambda: replace(honest, fields={**fields, "recipe": recipe, "run": f"{fields['serial'][1]:032x}"}),
            lambda: replace(honest, kind=str(draws.choice([HELLO, EVALUATE, *SECURE, DONE, "", "../x"]))),
            lambda: replace(honest, tensors={str(draws.choice(NAMES)): _raw(draws)}),
        ]
        answer = self.site.answer(ways[draws.integers(len(ways))]())
        assert answer.kind == DONE or not answer.tensors, "a refused request is answered without tensors"
        said = str(answer.fields.get("reason", "")).partition(",")[0]
        return {DONE: "used", REFUSED: "refused by a site"}.get(answer.kind, f"{said} at a site")


def _secure(draws: np.random.Generator) -> str:
    """Truncate, extend, flip, reverse or empty one member's bytes in one step of a secure sum."""

    def mutate(content: bytes) -> bytes:
        place = int(draws.integers(len(content)))
        flipped = content[:place] + bytes([content[place] ^ int(draws.integers(1, 256))]) + content[place + 1 :]
        ways = (content[:place], content + content[:place], flipped, content[::-1], b"")
        return ways[draws.integers(len(ways))]

    return _exchange(mutate, STEPS[draws.integers(len(STEPS))])


def _exchange(mutate: Callable[[bytes], bytes], step: str) -> str:
    class Rogue(Exchange):
        def _ask(self, now, members, speak):  # type: ignore[no-untyped-def]
            answers = super()._ask(now, members, speak)
            return {c: mutate(answer) if (c, now) == (0, step) else answer for c, answer in answers.items()}

    session, identities = local_session(range(5), threshold=4, length=8)
    vectors = {client: np.arange(8, dtype=np.uint64) for client in range(5)}
    server = SecureServer(session)
    try:
        Rogue(session, vectors, lambda now, client: True, server, identities).run()
    except RefusedUpdateError as given_up:
        return given_up.code
    return next(iter(server.refused.values()), "used").partition(":")[0]
