"""Opt-in (`pytest -m processes`): a server, a proxy and three sites as real processes on loopback; minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedprompt.deploy.daemons import CHILDREN, LOCK, end_orphans, site_up
from fedprompt.deploy.init import init_site
from fedprompt.deploy.rehearsal.checks import RESULT, rehearse
from fedprompt.deploy.settings import SITE, SiteFile, save
from fedprompt.errors import UserError
from fedprompt.records.run_folder import own


@pytest.mark.processes
@pytest.mark.skipif("FEDPROMPT_PROCESSES" not in os.environ, reason="set FEDPROMPT_PROCESSES=1: it takes minutes")
def test_every_promise_of_the_rehearsal_is_held(tmp_path: Path) -> None:
    rows = rehearse(tmp_path / "r", full=False, say=lambda _: None)
    broken = [row for row in rows if not row.held and "overhead" not in row.what]  # seconds are for benchmarks
    assert not broken and json.loads((tmp_path / "r" / RESULT).read_text())["rows"]


def test_what_a_killed_site_left_running_ends_and_strangers_are_spared(tmp_path: Path) -> None:
    wait = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen([*wait, str(tmp_path)], stdin=subprocess.PIPE, start_new_session=True) as own,
        subprocess.Popen(wait, stdin=subprocess.PIPE, start_new_session=True) as stranger,
    ):
        (tmp_path / CHILDREN).write_text(f"{own.pid}\n{stranger.pid}\n999999999\n")
        end_orphans(tmp_path)
        assert own.wait(10) == -9 and stranger.poll() is None
        stranger.kill()


def test_a_folder_is_kept_running_by_one_command(tmp_path: Path) -> None:
    save(tmp_path / SITE, SiteFile(name="east", superlink="localhost:1"))
    init_site(tmp_path)
    with own(tmp_path / LOCK, busy=""), pytest.raises(UserError, match="another command already"):
        site_up(tmp_path, data=None, say=lambda _: None)
