"""Opt-in (`pytest -m processes`): a server, a proxy and three sites as real processes on loopback; minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.deploy.daemons import CHILDREN, LOCK, kill_orphans, site_up
from fedprompt.deploy.init import init_site
from fedprompt.deploy.rehearsal.checks import RESULT, rehearse
from fedprompt.deploy.rehearsal.processes import SHOTS, SITES, TESTS, _write_images
from fedprompt.deploy.settings import SITE, SiteFile, save
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.records.atomic_files import acquire_lock


@pytest.mark.processes
@pytest.mark.skipif("FEDPROMPT_PROCESSES" not in os.environ, reason="set FEDPROMPT_PROCESSES=1: it takes minutes")
def test_the_rehearsal_meets_every_criterion(tmp_path: Path) -> None:
    results = rehearse(tmp_path / "r", full=False, say=lambda _: None)
    failed = [one for one in results if not one.met and "overhead" not in one.what]  # seconds are for benchmarks
    assert not failed and json.loads((tmp_path / "r" / RESULT).read_text())["results"]


def test_the_sites_of_a_rehearsal_have_images_of_all_its_classes(tmp_path: Path) -> None:
    recipe, demo = (resolve(load_recipe(find_recipe(name))) for name in ("rehearsal", "demo"))
    dataset = demo.source()
    for number, site in enumerate(SITES):
        _write_images(dataset, recipe.recipe, number, tmp_path / site)
    drawn = {site: {path.parent.name for path in (tmp_path / site).rglob("*.png")} for site in SITES}
    assert sorted(name for names in drawn.values() for name in names) == sorted(recipe.recipe.data.options["classes"])
    assert len(list(tmp_path.rglob("*.png"))) == 12 * (SHOTS + TESTS)


def test_processes_of_a_killed_site_are_killed_and_unrelated_ones_are_not(tmp_path: Path) -> None:
    wait = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen([*wait, str(tmp_path)], stdin=subprocess.PIPE, start_new_session=True) as own,
        subprocess.Popen(wait, stdin=subprocess.PIPE, start_new_session=True) as stranger,
    ):
        (tmp_path / CHILDREN).write_text(f"{own.pid}\n{stranger.pid}\n999999999\n")
        kill_orphans(tmp_path)
        assert own.wait(10) == -9 and stranger.poll() is None
        stranger.kill()


def test_only_one_command_runs_a_folder(tmp_path: Path) -> None:
    save(tmp_path / SITE, SiteFile(name="east", superlink="localhost:1"))
    init_site(tmp_path)
    with acquire_lock(tmp_path / LOCK, busy=""), pytest.raises(UserError, match="Another command already"):
        site_up(tmp_path, data=None, say=lambda _: None)
