"""The attacks that a rehearsal plays: each one against real sites without their processes, and how it is judged."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.supernode.runtime import run_clientapp

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.deploy import apps
from fedprompt.deploy.rehearsal import records_attacks
from fedprompt.deploy.rehearsal.attacks import play_attacks
from fedprompt.deploy.rehearsal.lying_server import LyingServer, new_run
from fedprompt.deploy.rehearsal.lying_worker import CLOCK, lied
from fedprompt.deploy.rehearsal.processes import SITES, prepare_containers
from fedprompt.deploy.rehearsal.records_attacks import damaged_records
from fedprompt.deploy.rehearsal.relay import END, RelayChannel, serve
from fedprompt.deploy.rehearsal.server_attacks import attack_sites
from fedprompt.deploy.rehearsal.site_attacks import LIES, judge_course, judge_lie
from fedprompt.deploy.settings import SITE, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.deploy.worker_socket import ADDRESS, request_worker
from fedprompt.records.events import RoundEvent
from fedprompt.runtimes.flower import clientapp
from fedprompt.runtimes.flower.apps import client_app
from fedprompt.runtimes.flower.records import from_records
from fedprompt.runtimes.payload import DONE, HELLO, MALFORMED, REFUSED, TRAIN, Payload, RawTensor


class Direct:
    """A channel to sites in this process."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.sites = {name: Site(folder) for name, folder in folders.items()}

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        return {name: self.sites[name].answer(payload) for name, payload in payloads.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folders of three sites, each with the other two in its roster."""
    place = tmp_path_factory.mktemp("rehearsal")
    prepare_containers(place, address="localhost")
    found = {name: place / "machines" / name for name in SITES}
    for folder in found.values():
        save(folder / SITE, load_site(folder).model_copy(update={"data": str(folder / "images")}))
    return found


def test_sites_refuse_every_attack_of_a_lying_server_and_record_it(folders: Mapping[str, Path]) -> None:
    pytest.importorskip("dp_accounting")
    server = LyingServer.of(Direct(folders), load_recipe(find_recipe("rehearsal")), folders)
    found = attack_sites(server)
    assert len(found) == 32
    assert all(one.held for one in found), [one for one in found if not one.held]


def test_an_attack_that_is_answered_or_refused_by_another_rule_has_not_held(folders: Mapping[str, Path]) -> None:
    server = LyingServer.of(Direct(folders), load_recipe(find_recipe("rehearsal")), folders)
    site = SITES[1]
    for kind, fields, rule in ((HELLO, {}, "order"), (TRAIN, {"round": 0}, "name")):
        answer = server.ask(site, kind, new_run(), **fields)
        outcome = server.judge("an attack", site, answer, (rule,))
        assert not outcome.held and ("not refused" in outcome.happened) == (kind == HELLO)
    assert server.judge("an attack", site, answer, ("order",)).held
    assert not server.judge("an attack", site, Payload("", {"reason": "is not connected."}), ("order",)).held


def test_records_that_are_damaged_unnoticed_or_stay_damaged_have_not_held(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LyingServer.of(Direct(folders), load_recipe(find_recipe("rehearsal")), folders)
    monkeypatch.setattr(records_attacks, "lost_ledger", lambda folder: nullcontext())
    (lost, edited), sent = damaged_records(server, SITES[2]), server.sent[SITES[2]]
    assert not lost.held and lost.happened.startswith("not refused: done") and edited.held
    monkeypatch.setattr(records_attacks, "UNKNOWN", (HELLO,))
    (known,) = records_attacks.unknown_types(server, SITES[2])
    assert not known.held and "not refused" in known.happened and sent == 5


def round_of(number: int, losses: Mapping[int, float], failed: Mapping[int, str]) -> RoundEvent:
    return RoundEvent(trial="t", round=number, loss=0.5, losses=dict(losses), failed=dict(failed))


def test_a_lie_has_failed_only_if_its_site_alone_lost_its_round() -> None:
    honest = {0: 0.5, 2: 0.5}
    assert judge_lie("12", round_of(1, honest, {1: "number: its loss"})).held
    assert not judge_lie("12", round_of(1, {**honest, 1: 0.5}, {})).held
    assert not judge_lie("12", round_of(1, {0: 0.5}, {1: "number", 2: "late"})).held
    whole = [round_of(1, honest, {1: "number"}), round_of(2, {**honest, 1: 0.5}, {})]
    assert judge_course(whole, 2).held and not judge_course(whole[:1], 2).held and not judge_course(whole, 3).held


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_worker_lies_in_its_rounds_only(lie: str) -> None:
    tensors = {"context": RawTensor("float32", (2,), bytes(8))}
    answer = Payload(DONE, {"loss": 0.5, "num_examples": 4, "serial": [1, 7], "time": 0.0}, tensors)
    request = Payload(TRAIN, {"round": 2})
    assert lied(request, answer, ["", lie]) != answer
    assert lied(Payload(TRAIN, {"round": 1}), answer, ["", lie]) == answer
    assert lied(Payload(TRAIN, {"round": 3}), answer, ["", lie]) == answer
    assert lied(request, Payload(REFUSED), ["", lie]) == Payload(REFUSED)
    assert lied(Payload(HELLO), answer, [CLOCK]).fields["time"] == 3600.0


def test_the_relay_passes_on_any_payload(tmp_path: Path) -> None:
    class Sites:
        def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
            assert deadline == 5.0
            return {name: payload if name == "east" else "is not connected." for name, payload in payloads.items()}

    serving = threading.Thread(target=serve, args=(Sites(), {"out": str(tmp_path)}))
    serving.start()
    while not (tmp_path / ADDRESS).exists():
        time.sleep(0.01)
    odd = Payload("train.unmask", {"x": [1]}, {"w": RawTensor("float32", (1,), b"\xff\xff\xff\xff")})
    assert RelayChannel(tmp_path).ask({"east": odd, "north": odd}, deadline=5.0) == {
        "east": odd,
        "north": "is not connected.",
    }
    request_worker(tmp_path, Payload(END))
    serving.join(10)
    assert not serving.is_alive()


def test_a_site_runs_its_own_app_whatever_the_server_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app of a run is a bundle of code from the server, which Flower would install and import."""
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))  # put back afterwards
    called: list[dict[str, object]] = []
    monkeypatch.setattr(run_clientapp, "run_clientapp", lambda **options: called.append(options))
    clientapp.answer_one(apps.client, "127.0.0.1:1", "a token", "7")
    run_clientapp.install_from_fab(b"no bundle", skip_prompt=True)
    load = run_clientapp.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("server/app", "1.0", "0" * 64) is apps.client
    assert called[0]["token"] == "a token" and called[0]["runtime_dependency_install"] is False
    monkeypatch.delattr(run_clientapp, "install_from_fab")
    with pytest.raises(SystemExit, match="no install_from_fab"):
        clientapp.answer_one(apps.client, "127.0.0.1:1", "a token", "7")
    assert len(called) == 1


def test_flower_installs_and_loads_apps_by_the_functions_that_a_site_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own client process, with a task whose bundle is no bundle, answers with the site's own app."""
    sent: list[Message] = []
    told = {"run_id": 1, "message_id": "m", "src_node_id": 1, "dst_node_id": 2, "reply_to_message_id": ""}
    metadata = Metadata(**told, group_id="", created_at=time.time(), ttl=60.0, message_type="train")
    request = Message(RecordDict(), metadata=metadata)
    context = Context(1, 2, {}, RecordDict(), {})
    run, fab = SimpleNamespace(fab_id="server/app", fab_version="1.0", run_id=1), Fab("0" * 64, b"no bundle", {})
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))  # put back afterwards
    own = {
        "pull_task_input": lambda client: (request, context, run, fab),
        "push_message": lambda client, reply, context: sent.append(reply),
        "push_task_output": lambda **_: None,
        "flwr_exit": lambda **_: None,
        "register_signal_handlers": lambda **_: None,
        "start_parent_process_monitor": lambda parent: None,
        "HeartbeatSender": lambda beat: SimpleNamespace(start=lambda: None, stop=lambda: None, is_running=False),
    }
    for name, value in own.items():
        monkeypatch.setattr(run_clientapp, name, value)
    app = client_app(lambda payload, settings: Payload(DONE, {"own": payload.kind}))
    clientapp.answer_one(app, "127.0.0.1:1", "a token", "7")
    assert not sent[0].has_error() and from_records(sent[0].content) == Payload(DONE, {"own": MALFORMED})


@pytest.mark.parametrize("task", TaskType)
def test_a_task_of_any_type_starts_the_sites_own_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: TaskType
) -> None:
    """The server chooses the type of a run, and Flower's program of another type imports the server's app."""
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, cwd: started.append(command))
    monkeypatch.setattr(run_superexec, "get_executor", run_superexec.get_executor)  # put back afterwards
    monkeypatch.setattr(run_superexec, "run_superexec", lambda **_: None)
    clientapp.main("1", "fedprompt.deploy.apps", str(tmp_path))
    executor = run_superexec.get_executor("subprocess", executor_config=None)
    spec = ExecutionSpec(task, "127.0.0.1:1", "a token", True, None, True, 1, False, 1)
    assert executor.launch(spec).status == "accepted"
    assert started[0][1:] == ["-m", "fedprompt.deploy.apps", "127.0.0.1:1", "a token", str(os.getpid())]


@pytest.mark.processes
@pytest.mark.skipif("FEDPROMPT_PROCESSES" not in os.environ, reason="set FEDPROMPT_PROCESSES=1: it takes minutes")
def test_every_guarantee_holds_against_real_processes(tmp_path: Path) -> None:
    found = play_attacks(tmp_path / "r", say=lambda _: None)
    assert len(found) > 40 and all(one.held for one in found), [one for one in found if not one.held]
