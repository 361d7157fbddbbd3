"""The same recipe in the simulator and over Flower messages: one global model to the bit, for every method there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from conftest import Pictures
from fedprompt import methods
from fedprompt.build import runs
from fedprompt.config import parse_recipe
from fedprompt.deploy.conduct import conduct
from fedprompt.deploy.settings import SITE, Deployment, Policy, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.ops.averaging import State
from fedprompt.records import Checkpoint, Event, RunFolder, load_tensors, read_events
from fedprompt.runtimes.flower.apps import client_app
from fedprompt.runtimes.flower.grid import GridMailbox
from grids import MemoryGrid

NAMES = methods.names()
SITES, CLASSES = ("east", "north", "south"), ("cat", "dog", "tree")
RECIPE = """
name = "small"
seed = 3
[data]
source = "federation"
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
            Pictures().open(6 * number + row).save(place)


def deployment(**changes: object) -> Deployment:
    return Deployment(name="test", address="localhost", sites=SITES, patience=0, **changes)


def grid(folder: Path, *, policy: Policy | None = None, **options: object) -> MemoryGrid:
    """Sites with folders and pictures of their own, each with a worker's memory."""
    pictures(folder)
    folders = {name: folder / name for name in SITES}
    for name, own in folders.items():
        about = {
            "superlink": "localhost:1",
            "device": "cpu",
            "data": str(own / "data"),
            "policy": policy or Policy(smallest_count=1),
        }
        save(own / SITE, SiteFile(name=name, **about))
    sites = {str(own): Site(own) for own in folders.values()}
    return MemoryGrid(
        client_app(lambda parcel, settings: sites[str(settings["home"])].answer(parcel)), folders, **options
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one recipe run by the simulator and over the grid."""
    folder = tmp_path_factory.mktemp("grid")
    mailbox, over = GridMailbox(grid(folder), poll=0), deployment()
    runs.start(parse_recipe(recipe(folder)), folder / "simulated")
    conduct(recipe(folder), folder / "federated", mailbox, over, home=folder)
    return folder / "simulated", folder / "federated"


def lines(folder: Path, trial: str, kind: str) -> list[Event]:
    return [event for event in read_events(folder) if event["event"] == kind and event["trial"] == trial]


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def checkpoint(folder: Path, trial: str) -> Checkpoint:
    with RunFolder.open(folder) as run:
        return run.load_checkpoint(trial) or Checkpoint(0, {}, {})


@pytest.mark.parametrize("name", NAMES)
def test_the_global_model_is_that_of_the_simulator(name: str, both: tuple[Path, Path]) -> None:
    simulated, federated = (checkpoint(folder, name) for folder in both)
    assert simulated.round_number == federated.round_number and same(simulated.shared, federated.shared)
    for key in ("clients", "losses"):
        there, here = ([event[key] for event in lines(folder, name, "round")] for folder in both)
        assert there == here
    there, here = ([event for event in lines(folder, name, "score") if event["split"] == "local"] for folder in both)
    assert there == here


@pytest.mark.parametrize("name", NAMES)
def test_personal_states_stay_on_the_sites_disks(name: str, both: tuple[Path, Path]) -> None:
    simulated, federated = (checkpoint(folder, name) for folder in both)
    assert federated.personal == {}
    for client, state in simulated.personal.items():
        files = sorted((both[1].parent / SITES[client] / "state").glob(f"*/{name}@*.safetensors"))
        assert same(load_tensors(files[-1])[0], state)
