"""The same recipe in the simulator and over Flower messages: one global model to the bit, for every method there is."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

import fedprompt
from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.recipe import load_recipe, parse_recipe
from fedprompt.deploy import apps
from fedprompt.deploy.audit import AUDIT, AuditTrail, Verdict, read_audit
from fedprompt.deploy.hash_chain import HashChain
from fedprompt.deploy.identity import identities_of, make_site_keys, public_line
from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.server_run import run_on_sites
from fedprompt.deploy.settings import (
    DEPLOYMENT,
    SITE,
    Deployment,
    OwnImagesTable,
    Policy,
    Roster,
    SiteFile,
    load_site,
    save,
)
from fedprompt.deploy.site import Site
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.federated.privacy.accounting import Mechanism
from fedprompt.records.checkpoints import Checkpoint, load_tensors
from fedprompt.records.events import EVENTS, Event, PrivacyEvent
from fedprompt.records.run_folder import RunFolder, read_events
from fedprompt.runtimes.flower.apps import client_app
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.flower.records import from_records, to_records
from fedprompt.runtimes.payload import (
    DONE,
    EVALUATE,
    HELLO,
    MALFORMED,
    MASKED_INPUT,
    REFUSED,
    SECURE,
    SHARE_KEYS,
    TRAIN,
    UNMASK,
    VERSION,
    Payload,
)
from fedprompt.testing import tiny_images
from fedprompt.text_files import DEEPEST
from fedprompt.updates import State
from grids import Clock, MemoryGrid

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = methods.names()
SITES, CLASSES = ("east", "north", "south"), ("cat", "dog", "tree")
RECIPE = """
name = "small"
seed = 3
[data]
source = "sites"
classes = ["dog", "cat", "tree"]
[data.folders]
{folders}
[partition]
rule = "by_site"
[method]
name = "{first}"
{others}
[train]
rounds = 2
batch_size = 4
lr = 0.01
fraction = 0.67
[evaluate]
samples = 0
"""


def recipe(folder: Path) -> str:
    others = "".join(f'[[compare]]\nname = "{name}"\n' for name in NAMES[1:])
    folders = "".join(f'{site} = "{folder / site / "data"}"\n' for site in SITES)
    return RECIPE.format(first=NAMES[0], others=others, folders=folders)


def pictures(folder: Path) -> None:
    """Six pictures a site, of two of the three classes."""
    for number, site in enumerate(SITES):
        for row in range(6):
            place = folder / site / "data" / CLASSES[(number + row % 2) % 3] / f"{row}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            tiny_images(18).open(6 * number + row).save(place)


def deployment(**changes: object) -> Deployment:
    return Deployment(name="test", address="localhost", sites=SITES, connect_timeout=0, **changes)


def grid(folder: Path, *, policy: Policy | None = None, seed: int = 3, **options: object) -> MemoryGrid:
    """Sites with folders and pictures of their own, each with a worker's memory; they are split as the recipes say."""
    pictures(folder)
    folders = {name: folder / name for name in SITES}
    (folder / "keys").mkdir()
    for name, own in folders.items():
        shutil.copy(make_site_keys(own, name), folder / "keys")
    keys = {name: public_line(key, name) for name, key in identities_of(folder).items()}
    for name, own in folders.items():
        about = {
            "superlink": "localhost:1",
            "device": "cpu",
            "data": str(own / "data"),
            "images": OwnImagesTable(seed=seed, validation_fraction=0.5),
            "policy": policy or Policy(smallest_count=1),
            "roster": Roster(sites={peer: line for peer, line in keys.items() if peer != name}),
        }
        save(own / SITE, SiteFile(name=name, **about))
    sites = {str(own): Site(own) for own in folders.values()}
    return MemoryGrid(
        client_app(lambda payload, settings: sites[str(settings["home"])].answer(payload)), folders, **options
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one recipe run by the simulator and over the grid."""
    folder = tmp_path_factory.mktemp("grid")
    channel, over = GridChannel(grid(folder), poll=0), deployment()
    runs.start(resolve(parse_recipe(recipe(folder))), folder / "simulated")
    run_on_sites(recipe(folder), folder / "federated", channel, over, home=folder)
    return folder / "simulated", folder / "federated"


def events_of(folder: Path, trial: str, kind: str) -> list[Event]:
    return [event for event in read_events(folder) if event.event == kind and event.trial == trial]


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def checkpoint(folder: Path, trial: str) -> Checkpoint:
    with RunFolder.open(folder) as run:
        return run.load_checkpoint(trial) or Checkpoint(0, {}, {})


def test_every_line_of_a_run_over_sites_fits_the_schema(both: tuple[Path, Path]) -> None:
    for folder in both:
        for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            assert EVENTS[fields["event"]].model_validate(fields).to_json() == line


@pytest.mark.parametrize("name", NAMES)
def test_the_global_model_is_that_of_the_simulator(name: str, both: tuple[Path, Path]) -> None:
    simulated, federated = (checkpoint(folder, name) for folder in both)
    assert simulated.round_number == federated.round_number and same(simulated.shared, federated.shared)
    for key in ("clients", "losses"):
        there, here = ([getattr(event, key) for event in events_of(folder, name, "round")] for folder in both)
        assert there == here
    there, here = ([event for event in events_of(folder, name, "score") if event.split == "local"] for folder in both)
    assert there == here


@pytest.mark.parametrize("name", NAMES)
def test_personal_states_stay_on_the_sites_disks(name: str, both: tuple[Path, Path]) -> None:
    simulated, federated = (checkpoint(folder, name) for folder in both)
    assert federated.personal == {}
    for client, state in simulated.personal.items():
        files = sorted((both[1].parent / SITES[client] / "state").glob(f"*/{name}@*.safetensors"))
        assert same(load_tensors(files[-1])[0], state)


SUMS = "[train.server.secure]\nshare = 0.6\n"


def one(folder: Path, server: str) -> str:
    """A recipe of one method, whose server has a table of its own."""
    text = recipe(folder).replace("fraction = 0.67", "fraction = 1.0")
    return text[: text.index("[[compare]]")] + text[text.index("[train]") :] + server


def test_a_secure_sum_over_the_grid_is_that_of_the_simulator(tmp_path: Path) -> None:
    over = grid(tmp_path)
    runs.start(resolve(parse_recipe(one(tmp_path, SUMS))), tmp_path / "simulated")
    run_on_sites(one(tmp_path, SUMS), tmp_path / "federated", GridChannel(over, poll=0), deployment(), home=tmp_path)
    simulated, federated = (checkpoint(tmp_path / name, NAMES[0]) for name in ("simulated", "federated"))
    assert federated.round_number == 2 and same(simulated.shared, federated.shared)
    kinds = [
        message.metadata.message_type for message in over.sent if message.metadata.message_type.startswith("train")
    ]
    assert kinds == [kind for _ in range(2) for kind in SECURE for _ in SITES], "no site is asked for its own update"
    for event in events_of(tmp_path / "federated", NAMES[0], "round"):
        assert event.losses == {} and event.kept == (0, 1, 2) and min(event.bytes_up.values()) > 0


def test_a_secure_sum_survives_a_site_that_goes_and_a_site_sums_a_round_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(site: str, reply: Message) -> Message | None:
        step = reply.metadata.message_type
        return None if (site == "north" and step == MASKED_INPUT) or (site == "south" and step == UNMASK) else reply

    over = grid(tmp_path, fault=lost, policy=Policy(smallest_count=1, minimum=2))
    channel = GridChannel(over)
    monkeypatch.setattr("fedprompt.runtimes.flower.grid.time", Clock())  # only waiting takes time, no work does
    run_on_sites(one(tmp_path, SUMS), tmp_path / "out", channel, deployment(deadline=3), home=tmp_path)
    rounds = events_of(tmp_path / "out", NAMES[0], "round")
    assert [event.skipped[:6] for event in rounds] == ["secure", "secure"], "two of three must stay"
    over.fault = lambda site, reply: None if site == "north" and reply.metadata.message_type == MASKED_INPUT else reply
    run_on_sites(one(tmp_path, SUMS), tmp_path / "again", channel, deployment(deadline=3), home=tmp_path)
    rounds = events_of(tmp_path / "again", NAMES[0], "round")
    assert [event.kept for event in rounds] == [(0, 2)] * 2 and all(1 in event.failed for event in rounds)
    before = checkpoint(tmp_path / "again", NAMES[0])
    for message in [message for message in over.sent if message.metadata.message_type == SHARE_KEYS][-3:]:
        site = Site(tmp_path / over.nodes[message.metadata.dst_node_id])
        request = from_records(message.content)
        assert "order" in site.answer(request).fields["reason"], "a replay"
        answer = site.answer(Payload(request.kind, {**request.fields, "serial": [9, 1]}, request.tensors))
        assert answer.kind == ("done" if site.folder.name == "north" else REFUSED) and before.round_number == 2


def test_no_site_helps_to_sum_fewer_survivors_than_its_minimum(tmp_path: Path) -> None:
    """share = 0.51 lets two of three survive, and the sum of two tells each of them the other's update."""
    over = grid(tmp_path)
    over.fault = lambda site, reply: None if site == "north" and reply.metadata.message_type == MASKED_INPUT else reply
    text = one(tmp_path, SUMS.replace("0.6", "0.51"))
    run_on_sites(text, tmp_path / "out", GridChannel(over, poll=0), deployment(deadline=8), home=tmp_path)
    for event in events_of(tmp_path / "out", NAMES[0], "round"):
        assert event.kept == () and event.skipped and set(event.failed) == {0, 1, 2}
        assert all("over 2 clients would be below its minimum of 3" in event.failed[client] for client in (0, 2))
    steps = [message.metadata.message_type for message in over.sent]
    assert UNMASK not in steps, "there is nobody left to ask for shares"


def test_a_site_with_strangers_in_the_job_stops_the_run_at_the_preflight(tmp_path: Path) -> None:
    over = grid(tmp_path)
    known = load_site(tmp_path / "east")
    less = Roster(sites={"north": known.roster.sites["north"]})
    save(tmp_path / "east" / SITE, known.model_copy(update={"roster": less}))
    with pytest.raises(UserError, match=r"east: refused: the site south is not in the roster of east.*rule roster"):
        run_on_sites(one(tmp_path, SUMS), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    (tmp_path / "keys" / "south.pub").unlink()
    with pytest.raises(UserError, match=r"keys/south\.pub has none"):
        run_on_sites(one(tmp_path, SUMS), tmp_path / "new", GridChannel(over, poll=0), deployment(), home=tmp_path)


def test_a_site_whose_policy_gives_another_threshold_is_named_and_left_out(tmp_path: Path) -> None:
    over = grid(tmp_path, policy=Policy(smallest_count=1, minimum=2))
    settings = load_site(tmp_path / "south")
    careful = settings.policy.model_copy(update={"colluders": 1})
    save(tmp_path / "south" / SITE, settings.model_copy(update={"policy": careful}))
    run_on_sites(one(tmp_path, SUMS), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    for event in events_of(tmp_path / "out", NAMES[0], "round"):
        assert event.kept == (0, 1) and "threshold (3, here 2) differs" in event.failed[2]


def test_distributed_noise_over_the_grid_is_charged_and_hides_the_loss(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    noisy = (
        SUMS + '[train.server.privacy]\nname = "distributed"\nclip = 1.0\nnoise = 2.0\nepsilon = 30.0\ndelta = 1e-3\n'
    )
    over = grid(tmp_path, policy=Policy(smallest_count=1, epsilon=30.0, minimum_noise=2.0))
    run_on_sites(one(tmp_path, noisy), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    for event in events_of(tmp_path / "out", NAMES[0], "round"):
        assert event.kept == (0, 1, 2) and event.loss is None and event.epsilon > 0 and event.protects == "client"
    charged = [event for event in read_events(tmp_path / "out") if isinstance(event, PrivacyEvent)]
    assert [event.clients for event in charged] == [(0, 1, 2)] * 2
    for site in SITES:
        assert [line.mechanism for line in SiteLedger(tmp_path / site).lines()] == [Mechanism(2.0)] * 2
        ((_, epsilon),) = SiteLedger(tmp_path / site).spent(lambda images: 1e-3)
        assert epsilon == charged[-1].epsilon


def test_a_site_asked_for_its_own_update_of_a_secure_sum_refuses(tmp_path: Path) -> None:
    over = grid(tmp_path)
    run_on_sites(one(tmp_path, SUMS), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    message = next(message for message in over.sent if message.metadata.message_type == MASKED_INPUT)
    asked = from_records(message.content)
    site = Site(tmp_path / over.nodes[message.metadata.dst_node_id])
    answer = site.answer(Payload(TRAIN, {**asked.fields, "serial": [9, 1]}, asked.tensors))
    assert answer.kind == REFUSED and not answer.tensors and "(rule request)" in answer.fields["reason"]


def test_a_site_counts_what_its_pictures_pay_for_itself(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    noisy = '[train.server.privacy]\nname = "sample"\nclip = 1.0\nnoise = 2.0\nepsilon = 30.0\ndelta = 1e-3\n'
    over = grid(tmp_path, policy=Policy(smallest_count=1, epsilon=30.0))
    channel = GridChannel(over, poll=0)
    run_on_sites(one(tmp_path, noisy), tmp_path / "first", channel, deployment(), home=tmp_path)
    lines = SiteLedger(tmp_path / "east").lines()
    charged = [event for event in read_events(tmp_path / "first") if isinstance(event, PrivacyEvent)]
    assert [line.round for line in lines] == [1, 2] and len(charged) == 2
    ((_, spent),) = SiteLedger(tmp_path / "east").spent(lambda images: 1e-3)
    assert spent <= charged[-1].epsilon <= 30
    site = load_site(tmp_path / "east")
    policy = Policy(smallest_count=1, epsilon=1.01 * spent)
    save(tmp_path / "east" / SITE, site.model_copy(update={"policy": policy}))
    noisy = noisy.replace("30.0", str(policy.epsilon))
    run_on_sites(one(tmp_path, noisy), tmp_path / "second", channel, deployment(), home=tmp_path)
    for event in events_of(tmp_path / "second", NAMES[0], "round"):
        assert "epsilon" in event.failed[0] and set(event.losses) == {1, 2}


def test_a_torn_checkpoint_over_the_grid_falls_back_to_the_same_bits(tmp_path: Path) -> None:
    name = next(name for name in NAMES if methods.load(name).personal)
    text = one(tmp_path, "").replace("rounds = 2", "rounds = 3").replace(f'"{NAMES[0]}"', f'"{name}"')
    over = grid(tmp_path)

    def power_cut(site: str, reply: Message) -> Message:
        if sum(message.metadata.message_type == TRAIN for message in over.sent) > 2 * len(SITES):
            raise KeyboardInterrupt
        return reply

    over.fault = power_cut
    channel = GridChannel(over, poll=0)
    with pytest.raises(KeyboardInterrupt):
        run_on_sites(text, tmp_path / "out", channel, deployment(), home=tmp_path)
    newest = max((tmp_path / "out" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    over.fault = lambda site, reply: reply
    run_on_sites(text, tmp_path / "out", channel, deployment(), home=tmp_path)
    runs.start(resolve(parse_recipe(text)), tmp_path / "simulated")
    simulated = checkpoint(tmp_path / "simulated", name)
    assert [event.round for event in events_of(tmp_path / "out", name, "resume")] == [1]
    assert same(simulated.shared, checkpoint(tmp_path / "out", name).shared)
    for client, state in simulated.personal.items():
        files = sorted((tmp_path / SITES[client] / "state").glob(f"*/{name}@*.safetensors"))
        assert same(load_tensors(files[-1])[0], state)


def test_words_reach_sites_without_their_files(tmp_path: Path) -> None:
    fields = {"fedprompt_descriptions": 1, "attributes": {"dog": ["fur"], "cat": ["claws", "whiskers"], "tree": []}}
    (tmp_path / "descriptions.json").write_text(json.dumps(fields))
    named = (
        f"[descriptions]\nattributes = '{tmp_path / 'descriptions.json'}'\nshuffled = true\nconditions = ['at night']\n"
    )
    over = grid(tmp_path)
    runs.start(resolve(parse_recipe(one(tmp_path, named))), tmp_path / "simulated")
    run_on_sites(one(tmp_path, named), tmp_path / "federated", GridChannel(over, poll=0), deployment(), home=tmp_path)
    simulated, federated = (checkpoint(tmp_path / name, NAMES[0]) for name in ("simulated", "federated"))
    assert federated.round_number == 2 and same(simulated.shared, federated.shared)
    assert all("descriptions.json" not in from_records(message.content).fields["recipe"] for message in over.sent)


@pytest.mark.parametrize(
    "line", ["sharing = 'local'", "sharing = 'pooled'", "server.attack = { name = 'sign_flip', adversaries = 1 }"]
)
def test_attacks_and_the_ends_of_the_scale_are_for_simulations(tmp_path: Path, line: str) -> None:
    text = one(tmp_path, "").replace("[train]", f"[train]\n{line}")
    with pytest.raises(UserError, match="simulations"):
        run_on_sites(text, tmp_path / "o", GridChannel(grid(tmp_path), poll=0), deployment(), home=tmp_path)


def test_every_message_of_a_run_has_one_line_in_the_trail_of_its_site(tmp_path: Path) -> None:
    over = grid(tmp_path)
    for number, server in enumerate(("", SUMS)):
        run_on_sites(
            one(tmp_path, server), tmp_path / f"{number}", GridChannel(over, poll=0), deployment(), home=tmp_path
        )
    for site in SITES:
        sent = [
            from_records(message.content) for message in over.sent if over.nodes[message.metadata.dst_node_id] == site
        ]
        lines = [entry.fields for entry in read_audit(tmp_path / site)]
        assert [(line["kind"], line["serial"]) for line in lines] == [(one.kind, one.fields["serial"]) for one in sent]
        assert {line["rule"] for line in lines} == {"allowed"} and all(line["left"]["bytes"] for line in lines)
        assert len({line["run"] for line in lines}) == 2


def test_images_that_change_during_a_run_end_the_sites_part_in_it(tmp_path: Path) -> None:
    def change(site: str, reply: Message) -> Message:
        tiny_images(30).open(29).save(next((tmp_path / "north" / "data").rglob("*.png")))
        return reply

    over = grid(tmp_path)
    channel = GridChannel(over, poll=0)

    def after_round_one(site: str, reply: Message) -> Message:
        trained = sum(message.metadata.message_type == TRAIN for message in over.sent)
        return change(site, reply) if trained == len(SITES) else reply

    over.fault = after_round_one
    run_on_sites(one(tmp_path, ""), tmp_path / "out", channel, deployment(), home=tmp_path)
    first, second = events_of(tmp_path / "out", NAMES[0], "round")
    assert not first.failed and "pinned data" in second.failed[1] and second.kept == (0, 2)


def test_a_site_that_joins_late_is_asked_for_its_preflight_first(tmp_path: Path) -> None:
    over = grid(tmp_path)
    (late,) = (node for node, name in over.nodes.items() if name == "south")
    del over.nodes[late]

    def join(site: str, reply: Message) -> Message:
        if reply.metadata.message_type == TRAIN:
            over.nodes[late] = "south"
        return reply

    over.fault = join
    text = one(tmp_path, "").replace("rounds = 2", "rounds = 3")
    run_on_sites(text, tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    rounds = events_of(tmp_path / "out", NAMES[0], "round")
    assert [event.kept for event in rounds] == [(0, 1), (0, 1), (0, 1, 2)]
    assert "not connected" in rounds[0].failed[2] and "passed the preflight" in rounds[1].failed[2]
    assert {name for event in events_of(tmp_path / "out", NAMES[0], "sites") for name in event.sites} == set(SITES)


def test_the_hash_that_a_command_prints_before_a_run_is_the_one_that_sites_record(tmp_path: Path) -> None:
    over, server = grid(tmp_path), deployment()
    save(tmp_path / DEPLOYMENT, server)
    others = '[[compare]]\nname = "fedlora"\nlabel = "low"\n[descriptions]\nconditions = ["at night"]\n'
    text = one(tmp_path, others)
    (tmp_path / "lungs.toml").write_text(text)
    said = call("deploy", "recipe", tmp_path, tmp_path / "lungs.toml", "--set", "seed=4", "--out", tmp_path / "sent")
    printed = {trial: found for found, trial in (line.split("  ") for line in said.splitlines())}
    assert list(printed) == [NAMES[0], "low"]
    for trial, found in printed.items():
        file = tmp_path / "sent" / f"{trial}.toml"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == found
        assert call("site", "recipe", file) == f"{found}  {trial}, 2 rounds"
    known = load_site(tmp_path / "east")
    policy = known.policy.model_copy(update={"recipes": tuple(found[:16] for found in printed.values())})
    save(tmp_path / "east" / SITE, known.model_copy(update={"policy": policy}))
    submitted = load_recipe(tmp_path / "lungs.toml", ["seed=4"]).to_toml()  # as `fedprompt run` does
    run_on_sites(submitted, tmp_path / "out", GridChannel(over, poll=0), server, home=tmp_path)
    lines = [entry.fields for entry in read_audit(tmp_path / "east") if entry.fields["recipe"]]
    assert {line["recipe"] for line in lines} == set(printed.values())
    assert {line["rule"] for line in lines} == {"allowed"}


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_every_message_that_flower_delivers_has_one_line_in_the_trail(tmp_path: Path) -> None:
    """Also of types, and with contents, that no fedprompt sends."""
    save(tmp_path / SITE, SiteFile(name="east", superlink="localhost:1"))
    settings = {"home": str(tmp_path)}
    client = client_app(apps.answer)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    context = Context(1, 1, settings, RecordDict(), {})
    own = {VERSION: fedprompt.__version__}
    deep = Payload(TRAIN, {**own, "round": json.loads("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))})
    assert Payload.from_bytes(from_records(to_records(deep)).to_bytes()) == deep, "the worker can read it too"
    cases = (
        (HELLO, to_records(Payload(HELLO, {**own, "only": "name"})), HELLO, "request"),
        ("query.zzz", to_records(Payload("query.zzz", {**own, "only": "name"})), "query.zzz", "request"),
        (TRAIN, RecordDict(), MALFORMED, "request"),
        (MASKED_INPUT, to_records(Payload(MASKED_INPUT)), MASKED_INPUT, "secure sums"),
        ("train.evil", to_records(Payload("train.evil", own)), "train.evil", "request"),
        ("train.older", to_records(Payload("train.older")), "train.older", "version"),
        ("query.evil", to_records(Payload(TRAIN)), MALFORMED, "request"),
        (TRAIN, to_records(Payload(EVALUATE)), MALFORMED, "request"),
        ("evaluate", RecordDict({"a": ConfigRecord({"fields": "{"})}), MALFORMED, "request"),
        (TRAIN, to_records(deep), TRAIN, "request"),
    )
    for kind, content, _, rule in cases:
        message = Message(content, 7, kind)
        message.metadata.__dict__["_message_id"] = "message"
        reply = from_records(client(message, context).content)
        assert reply.kind == REFUSED and str(reply.fields["reason"]).endswith(f"(rule {rule})."), reply
    empty = Message(Error(1, "no content"), reply_to=message)
    empty.metadata.__dict__["_message_id"] = "message"
    assert from_records(client(empty, context).content).kind == REFUSED
    found = [(entry.fields["kind"], entry.fields["rule"]) for entry in read_audit(tmp_path)]
    assert found == [*((kind, rule) for _, _, kind, rule in cases), (MALFORMED, "request")]


def test_no_message_is_answered_while_the_records_are_damaged(tmp_path: Path) -> None:
    """Whatever it asks: a former probe for the site's name was answered without a look at trail and ledger."""
    save(tmp_path / SITE, SiteFile(name="east", superlink="localhost:1"))
    settings = {"home": str(tmp_path)}
    AuditTrail(tmp_path).record(Payload(TRAIN), Payload(DONE), Verdict(ledger="0" * 64))
    for kind in (HELLO, "query.zzz", TRAIN, EVALUATE):
        answer = apps.answer(Payload(kind, {"only": "name"}), settings)
        assert answer.kind == REFUSED and "(rule records)" in answer.fields["reason"]
    trail = HashChain(tmp_path / AUDIT)
    assert [entry.fields["rule"] for entry in trail.new()] == ["allowed", *["records"] * 4]


def test_a_node_without_a_registered_name_is_not_asked(tmp_path: Path) -> None:
    nodes = MemoryGrid(client_app(apps.answer), {"": tmp_path, "east": tmp_path})
    channel = GridChannel(nodes)
    assert list(channel.sites()) == ["east"] and not nodes.sent
