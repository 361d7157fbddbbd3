"""Metrics of servers and sites: what they count, what they never show, and who can read them."""

from __future__ import annotations

import re
import shutil
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")
pytest.importorskip("prometheus_client")

import fedprompt
from fedprompt import methods
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.deploy import daemons, metrics, metrics_server, metrics_site
from fedprompt.deploy.audit import AUDIT, AuditTrail, Verdict
from fedprompt.deploy.init import init_deployment, init_site
from fedprompt.deploy.ledger import Budget, ImageSet, SiteLedger, Training
from fedprompt.deploy.metrics import Metric, Values, exported
from fedprompt.deploy.metrics_server import MOST_REASONS, OTHER, ServerMetrics, reason_of
from fedprompt.deploy.metrics_site import SiteMetrics, reported_epsilon
from fedprompt.deploy.settings import DEPLOYMENT, SITE, Deployment, Policy, SiteFile, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.deploy.submit import SiteStatus
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import load_backbone
from fedprompt.federated.privacy.accounting import Mechanism, composed_epsilon
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.federated.rounds import initial_state
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.events import BaseEvent, HeaderEvent, PrivacyEvent, RoundEvent, TrialEvent
from fedprompt.runtimes.payload import DONE, HELLO, REFUSED, TRAIN, VERSION, Payload, RawTensor
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.testing import tiny_images
from pages import ROOT

pytestmark = pytest.mark.usefixtures("kept_backbone")

SITES = ("east", "north")
HEADER = HeaderEvent(partition=PartitionCounts(clients=SITES, classes=("cat",), counts=((5,), (5,))))
BEGUN = TrialEvent(trial="fedmvp", status="running", rounds=4)
RECIPE = """
name = "job"
[data]
source = "sites"
classes = ["cat", "dog"]
[partition]
rule = "by_site"
sites = ["east", "north"]
[method]
name = "promptfl"
[train]
rounds = 2
batch_size = 4
{server}
"""
SAMPLE = '[train.server.privacy]\nname = "sample"\nclip = 1.0\nnoise = 2.0\nepsilon = 50.0\ndelta = 1e-3'
NUMBER = Metric("fedprompt_number", "gauge", "A number", ("site",))


def round_event(number: int, **more: object) -> RoundEvent:
    return RoundEvent(trial="fedmvp", round=number, loss=0.5, seconds=2.0, **more)


def log(server: Path, *events: BaseEvent, run: str = "one") -> Path:
    path = server / "runs" / run / "run.jsonl"
    write_atomic(path, "".join(event.to_json() + "\n" for event in events))
    return path


def samples(values: Values) -> dict[str, Mapping[tuple[str, ...], float]]:
    return {metric.name.removeprefix("fedprompt_"): numbers for metric, numbers in values.items()}


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a deployment whose list of sites is known at once."""
    folder = tmp_path / "hospitals"
    init_deployment(folder, Deployment(name="hospitals", address="localhost", sites=SITES))
    listed = (SiteStatus("east", "online", 100.0), SiteStatus("north", "offline", 40.0))
    monkeypatch.setattr(metrics_server._Sites, "listed", lambda self: listed)
    return folder


@pytest.fixture
def site(server: Path) -> Path:
    folder = server / "sites" / "east"
    init_site(folder)
    return folder


# The server


def test_rounds_their_seconds_and_who_was_left_out_are_counted_over_all_runs(server: Path) -> None:
    refused = "refused: the job has more than 3 rounds (rule maximum_rounds)."
    events = [round_event(1), round_event(2, failed={1: refused}), round_event(3, skipped="1 of 2 sites")]
    log(server, HEADER, BEGUN, *events)
    log(server, HEADER, BEGUN, round_event(1, failed={1: refused, 0: "shape: 'x' is not float32."}), run="two")
    found = samples(ServerMetrics(server).read())
    assert found["rounds_total"] == {("changed",): 3, ("unchanged",): 1}
    assert found["round_seconds_total"] == {(): 8.0}
    assert found["left_out_total"] == {("north", "maximum_rounds"): 2, ("east", "shape"): 1}


def test_progress_epsilon_and_sites_are_shown_as_they_are_now(server: Path) -> None:
    spent = PrivacyEvent(ledger="fedmvp", number=1, clients=(0, 1), epsilon=0.7)
    log(server, HEADER, BEGUN, spent, round_event(1, site_seconds={0: 1.5}))
    found = samples(ServerMetrics(server).read())
    assert found["run_round"] == {("one", "fedmvp"): 1} and found["run_planned_rounds"] == {("one", "fedmvp"): 4}
    assert found["run_epsilon"] == {("one", "fedmvp"): 0.7} and found["run_active"] == {("one",): 0.0}
    assert found["site_online"] == {("east",): 1.0, ("north",): 0.0}
    assert found["site_last_seen_timestamp_seconds"] == {("east",): 100.0, ("north",): 40.0}
    assert found["site_training_seconds"] == {("east",): 1.5}


def test_only_what_is_new_is_read_and_an_unfinished_line_waits(server: Path) -> None:
    path = log(server, HEADER, BEGUN, round_event(1))
    shown = ServerMetrics(server)
    assert samples(shown.read())["rounds_total"] == {("changed",): 1}
    line = round_event(2).to_json()
    with path.open("a", encoding="utf-8") as file:
        file.write(line[:20])
    assert samples(shown.read())["rounds_total"] == {("changed",): 1}
    with path.open("a", encoding="utf-8") as file:
        file.write(line[20:] + "\n")
    assert samples(shown.read())["rounds_total"] == {("changed",): 2}


def test_counters_never_fall_when_a_resumed_run_writes_its_record_anew(server: Path) -> None:
    log(server, HEADER, BEGUN, round_event(1), round_event(2), round_event(3))
    shown = ServerMetrics(server)
    shown.read()
    log(server, HEADER, BEGUN, round_event(1), round_event(2))
    found = samples(shown.read())
    assert found["rounds_total"] == {("changed",): 3} and found["run_round"] == {("one", "fedmvp"): 2}
    log(server, HEADER, BEGUN, *map(round_event, range(1, 5)))
    assert samples(shown.read())["rounds_total"] == {("changed",): 4}


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("refused: the job has no differential privacy (rule epsilon).", "epsilon"),
        ("refused: client 2 refuses: too few (rule secure).", "secure"),
        ("not finite: NaN or infinity in 'a'.", "not finite"),
        ("failed: ValueError, reference 12 in the site's log.", "failed"),
        ("did not answer within 120 s.", "no answer"),
        ("refused: patient 4711: see me.", "no answer"),
        ("", "no answer"),
    ],
)
def test_a_reason_is_a_rule_or_a_code(why: str, reason: str) -> None:
    assert reason_of(why) == reason


def test_a_site_that_invents_rules_makes_no_more_than_so_many_labels(server: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    invented = [
        round_event(number + 1, failed={0: f"refused: no (rule {letters[number // 26]}{letters[number % 26]})."})
        for number in range(100)
    ]
    log(server, HEADER, BEGUN, *invented)
    counts = samples(ServerMetrics(server).read())["left_out_total"]
    assert len(counts) == MOST_REASONS + 1 and counts["east", OTHER] == 100 - MOST_REASONS


def test_a_list_of_sites_that_is_outdated_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(metrics_server, "time", SimpleNamespace(monotonic=lambda: clock.now))
    answers = [[SiteStatus("east", "online", 5.0)]]

    def sites_of(folder: Path) -> list[SiteStatus]:
        if not answers:
            raise UserError("The server does not answer.")
        return answers.pop()

    monkeypatch.setattr(metrics_server, "sites_of", sites_of)
    sites = metrics_server._Sites(tmp_path)
    sites.listed()
    assert sites._thread is not None
    sites._thread.join()
    assert [one.name for one in sites.listed()] == ["east"]
    clock.now += metrics_server.OUTDATED
    assert sites.listed() == ()


# A site


def test_a_sites_messages_are_counted_by_kind_answer_and_rule(site: Path) -> None:
    trail = AuditTrail(site)
    trail.record(Payload(TRAIN), Payload(DONE), Verdict())
    trail.record(Payload(TRAIN), Payload(REFUSED), Verdict("epsilon"))
    trail.record(Payload("an invention of the server"), Payload(REFUSED), Verdict("request"))
    found = samples(SiteMetrics(site).read())
    assert found["messages_total"] == {(TRAIN, DONE): 1, (TRAIN, REFUSED): 1, ("other", REFUSED): 1}
    assert found["refusals_total"] == {("epsilon",): 1, ("request",): 1}
    assert found["records_intact"] == {(): 1.0} and found["last_message_timestamp_seconds"]


def test_a_changed_line_of_the_audit_trail_is_shown(site: Path) -> None:
    AuditTrail(site).record(Payload(TRAIN), Payload(DONE), Verdict())
    path = site / AUDIT
    path.write_bytes(path.read_bytes().replace(b'"train"', b'"trial"'))
    assert samples(SiteMetrics(site).read())["records_intact"] == {(): 0.0}


def training(count: int, mechanism: Mechanism | None) -> Training:
    return Training("run", "fedmvp", 1, "recipe", "start", "images", count, 1.0, mechanism)


def test_trainings_are_counted_by_where_noise_was_added(site: Path) -> None:
    ledger, images = SiteLedger(site), ImageSet(frozenset({b"x" * 16}))
    ledger.charge(training(20, Mechanism(2.0)), images, Budget(1e-3))
    ledger.charge(training(20, None), images, Budget(1e-3))
    found = samples(SiteMetrics(site).read())
    assert found["trainings_total"] == {("site",): 1, ("none",): 1} and found["epsilon"][()] > 0


@pytest.mark.parametrize("batch_size", [2, 7, 12, 20])
def test_epsilon_depends_on_the_number_of_images_as_the_server_learns_it_alone(batch_size: int) -> None:
    pytest.importorskip("dp_accounting")
    privacy, policy = SamplePrivacy(clip=1.0, noise=1.1, epsilon=9.0, delta=1e-3), Policy(smallest_count=5)
    shown = []
    for count in range(10, 16):
        used = privacy.at_client(images=count, batch_size=batch_size, epochs=3)
        shown.append(reported_epsilon([training(count, used)] * 4, policy))
        if count in (10, 15):
            assert shown[-1] == composed_epsilon([used] * 4, delta=policy.delta_for(count))
    assert len(set(shown[:5])) == 1
    assert (shown[5] != shown[0]) is (batch_size < 15)


@pytest.fixture(scope="module")
def start() -> Mapping[str, RawTensor]:
    return encode(initial_state(methods.load("promptfl")(load_backbone(BackboneTable()), generator=None))[0])


@pytest.mark.parametrize("noisy", [False, True])
def test_what_a_site_shows_is_the_same_for_all_counts_that_its_policy_withholds(
    site: Path, start: Mapping[str, RawTensor], *, noisy: bool
) -> None:
    """A class of one, two or four images, of which the preflight says "fewer than five"; the total stays below 15."""
    pytest.importorskip("dp_accounting")
    recipe = RECIPE.format(server=SAMPLE if noisy else "")
    shown = {exposition(site, recipe, start, dogs=dogs) for dogs in (1, 2, 4)}
    assert len(shown) == 1 and "fedprompt_epsilon" in shown.pop()


def exposition(like: Path, recipe: str, start: Mapping[str, RawTensor], *, dogs: int) -> str:
    """What a site with ten cats and so many dogs shows after a preflight and a training, but for time and disk."""
    folder = like.with_name(f"site-{dogs}")
    folder.mkdir()
    shutil.copy(like / "ca.crt", folder)
    for part, name, count in (("train", "cat", 10), ("train", "dog", dogs), ("test", "cat", 1)):
        place = folder / "images" / part / name
        place.mkdir(parents=True)
        for number in range(count):
            tiny_images(18).open(number).save(place / f"{number}.png")
    about = {"data": str(folder / "images"), "device": "cpu"}
    save(folder / SITE, load_site(like).model_copy(update=about))
    answerer = Site(folder)
    job = {
        VERSION: fedprompt.__version__,
        "recipe": recipe,
        "run": "0" * 32,
        "trial": "promptfl",
        "client": 0,
        "round": 1,
        "since": 0,
    }
    hello = answerer.answer(Payload(HELLO, {**job, "serial": [1, 1]}))
    assert hello.fields["labels"] == [None, None]  # the larger count would tell the smaller one
    trained = answerer.answer(Payload(TRAIN, {**job, "upload": "float32", "serial": [1, 2]}, start))
    assert trained.kind == DONE
    found = samples(SiteMetrics(folder).read())
    found |= {name: {} for name in ("disk_free_bytes", "last_message_timestamp_seconds")}
    return str({f"fedprompt_{name}": dict(numbers) for name, numbers in found.items()})


# The endpoint


def test_metrics_are_served_on_loopback_alone_while_the_block_runs() -> None:
    port = free_port()
    with exported(port, lambda: {NUMBER: {('a"b',): 2.0}}):
        assert 'fedprompt_number{site="a\\"b"} 2.0' in scraped(port) and "python_info" not in scraped(port)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=60)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=60)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"metrics_port {port} cannot be used"), exported(port, dict):
            pass


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'fedprompt[metrics]'")), exported(1, dict):
        pass


@pytest.mark.parametrize("asked", [True, False])
def test_a_site_has_metrics_if_its_file_asks_for_them(
    site: Path, monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    port = free_port()
    save(site / SITE, load_site(site).model_copy(update={"metrics_port": port if asked else None}))
    found: list[str] = []

    def supervise(*_: object) -> None:
        try:
            found.append(scraped(port))
        except OSError:
            found.append("")

    monkeypatch.setattr(daemons, "_supervise", supervise)
    daemons.site_up(site, data=None, say=lambda _: None)
    assert ("fedprompt_records_intact 1.0" in found[0]) is asked


@pytest.mark.parametrize("asked", [True, False])
def test_a_server_has_metrics_if_its_file_asks_for_them(
    server: Path, monkeypatch: pytest.MonkeyPatch, *, asked: bool
) -> None:
    port, found = free_port(), []
    deployment = Deployment(name="hospitals", address="localhost", sites=SITES)
    save(server / DEPLOYMENT, deployment.model_copy(update={"metrics_port": port if asked else None}))
    log(server, HEADER, BEGUN, round_event(1))

    def admit(*_: object, **__: object) -> None:
        try:
            found.append(scraped(port))
        except OSError:
            found.append("")
        raise KeyboardInterrupt

    link = SimpleNamespace(popen=SimpleNamespace(pid=1), ended=None, stop=lambda: None)
    monkeypatch.setattr(daemons, "Process", lambda *_, **__: link)
    monkeypatch.setattr(daemons, "wait_for_port", lambda *_, **__: None)
    monkeypatch.setattr(daemons, "admit_sites", admit)
    with pytest.raises(KeyboardInterrupt):
        daemons.server_up(server, say=lambda _: None)
    assert ('fedprompt_rounds_total{outcome="changed"} 1.0' in found[0]) is asked


def test_metrics_are_off_unless_asked_for() -> None:
    assert Deployment(name="a", address="b", sites=SITES).metrics_port is None
    assert SiteFile(name="east", superlink="localhost:1").metrics_port is None


def test_the_page_lists_the_metrics_that_there_are() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(fedprompt_\w+)`[^|]*\| ([^|]*) \|", page, re.MULTILINE))
    found: dict[str, str] = {}
    for place, declared in (("server", metrics_server.METRICS), ("site", metrics_site.METRICS)):
        for metric in declared:
            found[metric.name] = "both" if metric.name in found else place
    assert listed == found


def test_what_is_read_is_what_is_declared(server: Path, site: Path) -> None:
    log(server, HEADER, BEGUN)
    for shown, declared in ((ServerMetrics(server), metrics_server.METRICS), (SiteMetrics(site), metrics_site.METRICS)):
        values = shown.read()
        assert set(values) == set(declared)
        assert all(len(labels) == len(metric.labels) for metric, found in values.items() for labels in found)
        assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in values)
