"""Simulated clients on Ray: the bits of the simulator for any number of actors, and whatever happens to them."""

from __future__ import annotations

import copy
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray")

import ray

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.loading import numerics_id
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import Precision
from fedprompt.config.recipe_tables import BackboneTable, RuntimeTable
from fedprompt.data.images import Images
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.experiments.on_ray import SentBackbone
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.rounds import Round, Start, federate, initial_state
from fedprompt.runtimes.ray import alive
from fedprompt.runtimes.ray import cluster as clusters
from fedprompt.runtimes.ray import pool as pools
from fedprompt.runtimes.ray import transport as transports
from fedprompt.runtimes.ray.cluster import Node, actors_and_gpus, connected, require_ray
from fedprompt.runtimes.ray.pool import Pool
from fedprompt.runtimes.ray.queues import Queues
from fedprompt.runtimes.ray.transport import OnRay
from fedprompt.runtimes.simulator import Simulator
from fedprompt.testing import TinyImages
from fedprompt.testing.tiny_families import tiny_family_parts
from toys import Toy, fake_clip, toy_client

SETTINGS = TrainSettings(rounds=6, local_epochs=1, batch_size=2, lr=0.1, seed=2)
CPU = numerics_id(torch.device("cpu"))


@dataclass(frozen=True)
class Trial:
    """What the driver says of a trial: its clients, and one that makes its method do something."""

    clients: int = 5
    empty: tuple[int, ...] = ()
    act: Callable[[int], object] | None = None


class Acting(Toy):
    """A method that calls a function with the first row of every batch."""

    act: Callable[[int], object]

    def loss(self, clip: Any, images: Any, targets: Any, space: Any, *, stream: Any) -> torch.Tensor:
        self.act(images.rows[0])
        return super().loss(clip, images, targets, space, stream=stream)


def simulator(clip: Any, trial: Trial, **options: Any) -> Simulator:
    clients = {
        number: toy_client(number, examples=0 if number in trial.empty else 5, test=4)
        for number in range(trial.clients)
    }
    method = Toy()
    if trial.act is not None:
        method = Acting()
        method.act = trial.act
    return Simulator(method, clip, clients, SETTINGS, **options)


@dataclass(frozen=True)
class Setup:
    """The toy backbone and clients of this file, as an actor makes them."""

    reason: str = ""
    sources: tuple[Any, ...] = ()

    def open_backbone(self) -> Any:
        clip = fake_clip()
        clip.cache, clip.fingerprint = FeatureCache(memory_bytes=0), "toy"
        clip.batch, clip.image_width = 1, 8
        return clip

    def unreadable(self) -> str:
        return self.reason

    def simulator(self, clip: Any, trial: Any) -> Simulator:
        return simulator(clip, trial)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "cores", lambda: 2)
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected() as found:
            yield list(found)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def warnings() -> list[str]:
    return []


def make_pool(warnings: list[str], *, count: int, setup: Setup | None = None, fingerprint: str = "toy") -> Pool:
    table = RuntimeTable(name="ray", cpus=0.5)
    pool = Pool(setup or Setup(), table, gpus=0.0, expected=(fingerprint, CPU), warn=warnings.append)
    pool.start(count)
    return pool


@pytest.fixture(scope="module")
def pool(nodes: list[Node], warnings: list[str]) -> Iterator[Pool]:
    found = make_pool(warnings, count=2)
    yield found
    found.close()


def on_ray(pool: Pool, trial: Trial | None = None, **options: Any) -> OnRay:
    trial = trial or Trial()
    # The driver's method trains nothing, so it needs nothing of what the actors' does.
    return OnRay(pool, trial, (), simulator(fake_clip(), replace(trial, act=None), **options))


def run(transport: Simulator, start: Start | None = None, rounds: int = 6) -> list[Round]:
    return list(federate(Toy(), transport, clients=range(5), rounds=rounds, fraction=0.6, seed=2, start=start))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_rounds_have_the_bits_of_the_simulator_also_when_resumed(pool: Pool) -> None:
    alone, spread = simulator(fake_clip(), Trial()), on_ray(pool)
    expected, found = run(alone), run(spread, rounds=3)
    resumed = on_ray(pool, personal=spread.personal)
    found += run(resumed, Start(3, found[-1].shared))
    for one, other in zip(expected, found, strict=True):
        assert same(one.shared, other.shared) and one.clients == other.clients
        assert [update.loss for update in one.updates] == [update.loss for update in other.updates]
    assert alone.personal.keys() == resumed.personal.keys()
    assert all(same(alone.personal[client], resumed.personal[client]) for client in alone.personal)
    shared = expected[-1].shared
    # By their text, as an undefined score is not equal to itself.
    assert repr(resumed.evaluate(6, shared, range(5))) == repr(alone.evaluate(6, shared, range(5)))
    assert resumed.validate(6, shared, range(5)) == {}


def test_a_round_that_is_undone_leaves_no_trace_in_the_actors(pool: Pool) -> None:
    alone, spread = simulator(fake_clip(), Trial()), on_ray(pool)
    shared = initial_state(Toy())[0]
    for transport in (alone, spread):
        transport.train(1, shared, [0, 1, 2])
        transport.train(2, {name: tensor + 1 for name, tensor in shared.items()}, [0, 1])
        transport.undo([0, 1])
    for one, other in zip(alone.train(2, shared, [0, 1, 2]), spread.train(2, shared, [0, 1, 2]), strict=True):
        assert same(one.shared, other.shared) and same(one.personal, other.personal)


def test_the_first_client_with_a_mistake_is_named_and_no_personal_state_changes(pool: Pool) -> None:
    transport = on_ray(pool, Trial(empty=(1, 3)))
    with pytest.raises(UserError, match="Client 1"):
        transport.train(1, initial_state(Toy())[0], [0, 1, 2, 3, 4])
    assert transport.personal == {}


def test_a_loss_that_is_not_finite_is_the_error_that_rolls_a_round_back(pool: Pool) -> None:
    shared = {name: torch.full_like(tensor, torch.nan) for name, tensor in initial_state(Toy())[0].items()}
    with pytest.raises(NotFiniteError, match="client 2"):
        on_ray(pool).train(1, shared, [2, 4])


def test_personal_states_are_sent_only_to_actors_that_lack_them_and_the_shared_one_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, packed = on_ray(pool), []
    pack = transports.pack
    monkeypatch.setattr(Queues, "_steal", lambda *_: [])
    monkeypatch.setattr(transports, "pack", lambda state: packed.append(sorted(state)) or pack(state))
    state = initial_state(Toy())[0]
    shared, personal = sorted(state), ["own", "phase"]
    for number in range(1, 4):
        transport.train(number, state, range(5))
    transport.evaluate(3, state, range(5))
    assert packed.count(shared) == 4 and personal not in packed
    for client in range(3):
        pool.homes.home[client] = 1 - pool.homes.home[client]
    transport.train(4, state, range(5))
    assert packed.count(personal) == 3


def test_progress_counts_clients(pool: Pool) -> None:
    calls: list[tuple[int, int]] = []
    transport = on_ray(pool, on_client=lambda done, total: calls.append((done, total)))
    transport.train(1, initial_state(Toy())[0], range(5))
    assert calls[-1] == (5, 5) and calls == sorted(calls)


def test_an_actor_that_is_killed_in_a_round_costs_its_unfinished_clients_only(pool: Pool, warnings: list[str]) -> None:
    expected = run(simulator(fake_clip(), Trial()))
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            member = next(iter(pool.members.values()))
            killed.append(member.process)
            os.kill(member.process, signal.SIGKILL)

    spread = on_ray(pool, on_client=kill)
    found = run(spread)
    assert all(same(one.shared, other.shared) for one, other in zip(expected, found, strict=True))
    assert killed and "died" in warnings[-1]
    spread.train(7, found[-1].shared, range(5))


def exit_at_client_3(row: int) -> None:
    if row // 100 == 3:
        os._exit(1)


def test_a_client_at_which_actors_die_again_and_again_is_named(
    nodes: list[Node], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MOST_DEATHS", 2)
    pool = make_pool(warnings, count=1)
    try:
        with pytest.raises(UserError, match="2 actors died at client 3, the last one on "):
            on_ray(pool, Trial(act=exit_at_client_3)).train(1, initial_state(Toy())[0], [3])
    finally:
        pool.close()
    assert "2 actors were lost in this run" in warnings[-1]


def use_up_memory(row: int) -> None:
    raise MemoryError("no memory for a tensor")


def test_memory_that_is_used_up_is_called_so(pool: Pool) -> None:
    with pytest.raises(UserError, match=r"ran out of memory: no memory for a tensor .*runtime\.actors"):
        on_ray(pool, Trial(act=use_up_memory)).train(1, initial_state(Toy())[0], [0])


def fail(row: int) -> None:
    raise KeyError("a mistake of a programmer")


def test_any_other_error_of_an_actor_is_raised_here(pool: Pool) -> None:
    with pytest.raises(KeyError, match="programmer"):
        on_ray(pool, Trial(act=fail)).train(1, initial_state(Toy())[0], [0])


def test_an_actor_that_cannot_work_is_named_with_its_node_before_the_first_round(
    nodes: list[Node], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes[0].name.partition(" ")[0]
    with pytest.raises(UserError, match=f"On the node {node} .*: /data/a.png cannot be read"):
        make_pool(warnings, count=1, setup=Setup("/data/a.png cannot be read; put it there."))
    with pytest.raises(
        UserError, match=rf"The backbone on the node {node} .* is another one \(fingerprint toy, here abc"
    ):
        make_pool(warnings, count=1, fingerprint="abc")
    monkeypatch.setattr(pools, "versions", lambda: {"fedprompt": "9.9"})
    with pytest.raises(UserError, match=rf"The node {node} .* has fedprompt .*, this machine 9.9; .*fedprompt==9.9"):
        make_pool(warnings, count=1)


def test_ray_must_be_installed_in_a_known_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "version", lambda name: "1.13.0")
    with pytest.raises(UserError, match=r"Ray 1\.13\.0 is installed.*pip install 'fedprompt\[ray\]'"):
        require_ray()
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package ray; .*pip install 'fedprompt\[ray\]'"):
        require_ray()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", r"at 127\.0\.0\.1:1 cannot be reached \(Connection refused\); check RAY_ADDRESS"),
        ("ray://head:10001", "names a server of Ray Client; run fedprompt on a node of the cluster"),
        ("head", "is no address; give that of the cluster's head node"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=said), connected():
        pass


def test_a_port_at_which_no_head_node_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(clusters, "ANSWER_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        monkeypatch.setattr(clusters, "DASHBOARD", port)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        said = f"No head node of Ray answers .* {port} is the port of Ray's dashboard"
        with pytest.raises(UserError, match=said), connected():
            pass


def test_a_head_node_answers(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as with any cluster that has one
    assert clusters._is_head(alive.Watch()._head)


def test_no_more_is_asked_than_the_nodes_have() -> None:
    found = [Node("a", 8.0, 0.0), Node("b", 3.0, 2.0)]
    table = RuntimeTable(name="ray")
    assert actors_and_gpus(table.model_copy(update={"gpus": 0.0}), found, wants_gpu=True) == (11, 0.0)
    assert actors_and_gpus(table, found, wants_gpu=True) == (2, 1.0)
    assert actors_and_gpus(table, found, wants_gpu=False) == (11, 0.0)
    assert actors_and_gpus(table.model_copy(update={"cpus": 2.0}), found, wants_gpu=False) == (5, 0.0)
    assert actors_and_gpus(RuntimeTable(actors=3, gpus=0.25), found, wants_gpu=True) == (3, 0.25)
    with pytest.raises(UserError, match=r"gpus = 1\.5 is not possible"):
        actors_and_gpus(RuntimeTable(gpus=1.5), found, wants_gpu=True)
    said = (
        r"4 actors with 1 core and 0\.6 GPUs each, but a has 8 cores and 0 GPUs; b .* give runtime.actors = 2 at most"
    )
    with pytest.raises(UserError, match=said):
        actors_and_gpus(RuntimeTable(actors=4, gpus=0.6), found, wants_gpu=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_backbone_that_is_sent_is_the_same_in_any_precision(precision: Precision) -> None:
    parts = copy.deepcopy(tiny_family_parts("siglip"))  # which other tests share, and a precision changes
    clip = Clip(*parts, batch=2, precision=precision, activation_bytes=5)
    sent = SentBackbone.of(clip)(BackboneTable())
    images = Images(TinyImages(), (0, 1, 2))
    assert torch.equal(sent.image_features(images), clip.image_features(images))
    names = ("fingerprint", "scale", "bias", "origin", "batch", "precision", "activation_bytes", "dtype")
    assert [getattr(sent, name) for name in names] == [getattr(clip, name) for name in names]


def test_the_end_of_ray_itself_is_said_and_no_actor_is_blamed(
    nodes: list[Node], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(warnings, count=1)
    said = len(warnings)
    transport = OnRay(pool, Trial(act=exit_at_client_3), (), simulator(fake_clip(), Trial()), resume="`resume it`")
    ended = iter([""])
    monkeypatch.setattr(alive.Watch, "reason", lambda self: next(ended, "its process is gone"))
    try:
        with pytest.raises(UserError, match=r"Ray has ended in round 4 \(its process is gone\)\. .* `resume it`\."):
            transport.train(4, initial_state(Toy())[0], [3])
    finally:
        monkeypatch.undo()
        pool.close()
    assert len(warnings) == said


def test_a_process_of_ray_is_gone_when_nothing_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = alive.Watch()
    with socket.socket(socket.AF_UNIX) as raylet, socket.create_server(("127.0.0.1", 0)) as head:
        raylet.bind(str(tmp_path / "r"))
        raylet.listen()
        watch._raylet, watch._head = str(tmp_path / "r"), f"127.0.0.1:{head.getsockname()[1]}"
        assert not watch.reason()
        head.close()
        assert not watch.reason(), "a head node may come back"
        monkeypatch.setattr(alive, "HEAD_PATIENCE", 0.0)
        assert "its head node at 127.0.0.1:" in watch.reason()
    assert watch.reason() == "its process on this machine is gone"


@pytest.mark.parametrize("count", [1, 2])
def test_an_actor_that_dies_while_it_is_started_is_replaced(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    made: list[int] = []
    create = Pool._create

    def dying(pool: Pool, number: int) -> Any:
        member = create(pool, number)
        if not made:
            ray.kill(member.actor)
        made.append(number)
        return member

    monkeypatch.setattr(Pool, "_create", dying)
    warnings: list[str] = []
    pool = make_pool(warnings, count=count)
    try:
        assert made == [*range(count), 0] and sorted(pool.members) == list(range(count))
        deaths = [one for one in warnings if "An actor died" in one]
        assert len(deaths) == 1 and "An actor died while it was started; another one takes its place (" in deaths[0]
        assert len(run(on_ray(pool), rounds=1)) == 1
    finally:
        pool.close()


def test_an_actor_that_dies_again_and_again_while_it_is_started_ends_the_run(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Pool._create

    def dying(pool: Pool, number: int) -> Any:
        member = create(pool, number)
        ray.kill(member.actor)
        return member

    monkeypatch.setattr(Pool, "_create", dying)
    monkeypatch.setattr(pools, "MOST_DEATHS", 2)
    with pytest.raises(UserError, match="2 actors died while opening the backbone: "):
        make_pool([], count=1)


def test_a_long_error_of_another_program_is_cut_at_a_sentence() -> None:
    sentences = "It died. " + "Why it died is long. " * 30
    assert pools.last_line(RuntimeError(f"first\n{sentences}")).endswith("Why it died is long.")
    assert len(pools.last_line(RuntimeError("x" * 1000))) < 310
