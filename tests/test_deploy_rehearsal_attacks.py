"""The attacks that a rehearsal plays: each one against real sites without their processes, and how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.deploy.rehearsal.processes import SITES, prepare_containers
from fedprompt.deploy.rehearsal.server_attacks import LyingServer, attack_sites
from fedprompt.deploy.settings import SITE, load_site, save
from fedprompt.deploy.site import Site
from fedprompt.runtimes.payload import Payload


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
    for one in (found := attack_sites(server)):
        print(one)
    assert all(one.held for one in found), [one for one in found if not one.held]
