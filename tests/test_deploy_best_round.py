"""The best round over sites: they score their own held-out images, and the round kept is that of the simulator."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr")

from flwr.app import Message

from fedprompt.config.recipe import parse_recipe
from fedprompt.deploy import site as sites
from fedprompt.deploy.audit import read_audit
from fedprompt.deploy.server_run import run_on_sites
from fedprompt.deploy.settings import SITE, Policy, load_site, save
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.federated.client import train_client
from fedprompt.records.checkpoints import load_tensors
from fedprompt.records.events import KeptEvent, ValidationEvent
from fedprompt.records.reading import read_run
from fedprompt.records.run_folder import RunFolder, read_events
from fedprompt.runtimes import simulator
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.flower.records import from_records
from fedprompt.runtimes.payload import EVALUATE, TRAIN, VALIDATE
from fedprompt.updates import State, Update
from grids import MemoryGrid
from test_runtimes_flower_grid import SITES, deployment, events_of, grid, recipe

pytestmark = pytest.mark.usefixtures("undrawn")

PERSONAL = "fedpgp"
IMAGES = {0: 2, 1: 2, 2: 2}  # held-out images per site
POISONED = 2  # the round in which the first client sends an update that destroys the model


def poison(patch: pytest.MonkeyPatch) -> None:
    """Have the simulator and the sites train a client that sends such an update, and whose own tensors are honest."""

    def train(*objects: object, shared: State, round_number: int, **others: object) -> Update:
        update = train_client(*objects, shared=shared, round_number=round_number, **others)
        if (update.client, round_number) != (0, POISONED):
            return update
        changes = {name: tensor - shared[name] for name, tensor in update.shared.items()}
        return replace(update, shared={name: shared[name] + 1e25 * change for name, change in changes.items()})

    for place in (simulator, sites):
        patch.setattr(place, "train_client", train)


def best(folder: Path, *, rounds: int = 6) -> str:
    """A method with a personal state, which goes back to that of an early round at every site."""
    text = recipe(folder)
    text = text[: text.index("[method]")] + f'[method]\nname = "{PERSONAL}"\n' + text[text.index("[train]") :]
    text = text.replace("rounds = 2", f'rounds = {rounds}\nkeep = "best:hm"\nschedule = "constant"')
    text = text.replace("seed = 3", "seed = 4")
    text = text.replace('source = "sites"', 'source = "sites"\nvalidation_fraction = 0.5')
    return text.replace("lr = 0.01", "lr = 0.3") + "[train.server]\nnorm_limit = 1e30\n"


def validations(folder: Path) -> list[ValidationEvent]:
    return [event for event in read_events(folder) if isinstance(event, ValidationEvent)]


def kept(folder: Path) -> KeptEvent:
    return [event for event in read_events(folder) if isinstance(event, KeptEvent)][-1]


def outcome(folder: Path) -> tuple[object, ...]:
    """All that a choice of a round decides: its scores, the round, the clients' figures, and the adapters' tensors."""
    (trial,) = read_run(folder).trials
    return validations(folder), kept(folder), trial.final("local")


def same_adapters(ours: Path, theirs: Path) -> bool:
    names = sorted(path.name for path in (ours / "adapters").iterdir())
    assert names == sorted(path.name for path in (theirs / "adapters").iterdir())
    pairs = [[load_file(folder / "adapters" / name / "adapter_model.safetensors") for folder in (ours, theirs)]
             for name in names]  # fmt: skip
    return all(one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one) for one, two in pairs)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemoryGrid]:
    """The run in the simulator, in which a round is rolled back, and the sites with the same images."""
    folder = tmp_path_factory.mktemp("best")
    over = grid(folder, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        runs.start(resolve(parse_recipe(best(folder))), folder / "simulated")
    return folder / "simulated", over


def test_sites_choose_the_round_of_the_simulator_and_test_it_with_the_personal_states_of_that_time(
    simulated: tuple[Path, MemoryGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    here, over = simulated
    run_on_sites(best(here.parent), here.parent / "out", GridChannel(over, poll=0), deployment(), home=here.parent)
    assert kept(here).round == 1 and kept(here).last == 6, "so sites go back further than four states"
    assert outcome(here.parent / "out") == outcome(here) and same_adapters(here.parent / "out", here)
    tests = [from_records(one.content).fields for one in over.sent if one.metadata.message_type == EVALUATE]
    assert {fields["client"]: fields["since"] for fields in tests} == {
        client: int(client in events_of(here.parent / "out", PERSONAL, "round")[0].kept) for client in range(3)
    }, "sites are tested with the personal states after round 1"
    with RunFolder.open(here) as run:
        best_state = run.load_checkpoint(f"{PERSONAL}@best", round_number=1)
    assert best_state is not None and best_state.personal
    for client, state in best_state.personal.items():
        (path,) = (here.parent / SITES[client] / "state").glob(f"*/{PERSONAL}@00000001.safetensors")
        found, _ = load_tensors(path)
        assert all(torch.equal(found[name], state[name]) for name in state)
    for event in validations(here):
        assert event.images == IMAGES and set(event.scores[0]) == {"base", "local"}


def test_a_run_over_sites_that_stops_in_every_step_ends_as_one_that_never_stopped(
    simulated: tuple[Path, MemoryGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops while each round is trained and while it is scored; one is rolled back."""
    poison(monkeypatch)
    here, over = simulated
    stopped: set[tuple[str, int]] = set()

    def stops(site: str, reply: Message) -> Message:
        step = reply.metadata.message_type, int(str(from_records(over.sent[-1].content).fields.get("round", 0)))
        if step[0] in (TRAIN, VALIDATE) and step not in stopped:
            stopped.add(step)
            raise KeyboardInterrupt
        return reply

    before, channel, out = len(over.sent), GridChannel(over, poll=0), here.parent / "stopped"
    over.fault = stops
    while len(stopped) < 6 + 7:
        with pytest.raises(KeyboardInterrupt):
            run_on_sites(best(here.parent), out, channel, deployment(), home=here.parent)
    run_on_sites(best(here.parent), out, channel, deployment(), home=here.parent)
    assert outcome(out) == outcome(here) and same_adapters(out, here)
    rounds, others = (events_of(folder, PERSONAL, "round") for folder in (out, here))
    assert [event.rolled_back for event in rounds] == [None, None, POISONED, None, None, None]
    assert rounds[2].failed[0].startswith("rolled back: "), "though this client's own losses are not finite either"
    assert rounds[2].failed[1].startswith("diverged: ")
    assert validations(out)[POISONED].value == 0.0, "logits that are not finite are wrong answers"
    for ours, theirs in zip(rounds, others, strict=True):
        assert (ours.losses, ours.failed, ours.skipped) == (theirs.losses, theirs.failed, theirs.skipped)
    checkpoints = [
        load_tensors(folder / "checkpoints" / f"{PERSONAL}@00000006.safetensors")[0] for folder in (out, here)
    ]
    kinds = ("shared/", "memory/", "suspected/")
    ours, theirs = ({name: one[name].tolist() for name in one if name.startswith(kinds)} for one in checkpoints)
    assert ours == theirs
    asked = [from_records(message.content).fields for message in over.sent[before:]
             if message.metadata.message_type == TRAIN]  # fmt: skip
    assert max(Counter((fields["round"], fields["client"]) for fields in asked).values()) == 2, "in a stop alone"


def test_a_site_sends_the_figures_that_are_asked_for_and_keeps_small_counts_to_itself(tmp_path: Path) -> None:
    over = grid(tmp_path, seed=4, policy=Policy(smallest_count=2))
    for own in (tmp_path / "south" / "data").iterdir():  # two images each of two classes are left
        min(own.iterdir()).unlink()
    run_on_sites(best(tmp_path, rounds=1), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    assert [event.images for event in validations(tmp_path / "out")] == [{0: 2, 1: 2}] * 2, "one image stays there"
    asked = [message for message in over.sent if message.metadata.message_type == VALIDATE]
    assert len(asked) == 2 * len(SITES) and all("recipe" in from_records(message.content).fields for message in asked)
    for site in SITES:
        lines = [entry.fields for entry in read_audit(tmp_path / site) if entry.fields["kind"] == VALIDATE]
        assert len(lines) == 2 and all(line["left"]["tensors"] == [] for line in lines)
        assert all(line["left"]["fields"] == ["facts", "score", "serial"] for line in lines)
    text = (tmp_path / "out" / "run.jsonl").read_text()
    clients = [json.loads(line)["scores"] for line in text.splitlines() if '"event": "validation"' in line]
    assert all(set(figures) == {"base", "local"} for found in clients for figures in found.values())


def test_a_site_without_test_images_scores_its_held_out_ones(tmp_path: Path) -> None:
    over = grid(tmp_path, seed=4, policy=Policy(smallest_count=2))
    for site in SITES:
        own = load_site(tmp_path / site)
        images = own.images.model_copy(update={"test_fraction": 0.0})
        save(tmp_path / site / SITE, own.model_copy(update={"images": images}))
    run_on_sites(best(tmp_path, rounds=1), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    assert [event.images for event in validations(tmp_path / "out")] == [{0: 4, 1: 4, 2: 4}] * 2
    assert kept(tmp_path / "out").value is not None


def test_without_scores_of_sites_the_last_round_is_kept(tmp_path: Path) -> None:
    over = grid(tmp_path, seed=4, policy=Policy(smallest_count=3))  # no site holds out three images
    run_on_sites(best(tmp_path, rounds=2), tmp_path / "out", GridChannel(over, poll=0), deployment(), home=tmp_path)
    assert [event.value for event in validations(tmp_path / "out")] == [None] * 3
    (trial,) = read_run(tmp_path / "out").trials
    assert trial.kept is None and len(trial.rounds) == 2
    assert sum(message.metadata.message_type == TRAIN for message in over.sent) > 0
