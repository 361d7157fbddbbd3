"""State of a site on disk: personal states per round, unreadable images, and secure sums."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from fedprompt.deploy.site_policy import RefusedError
from fedprompt.errors import UserError
from fedprompt.file_system import read_bytes
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.checkpoints import load_tensors, save_tensors
from fedprompt.text_files import json_text, load_json_object
from fedprompt.updates import State

KEPT = 4  # newest rounds: a server goes back by one checkpoint at most, and one round may be running
_log = logging.getLogger(__name__)


class SiteState:
    """What a site keeps of one trial of a run: a personal state per round, so that the server can resume, and marks."""

    def __init__(self, folder: Path, run: str, trial: str) -> None:
        if not re.fullmatch(r"[0-9a-f]{32}", run):
            raise RefusedError("the job's run id is not one.", rule="request")
        self.folder = folder / run
        self._prefix = quote(trial, safe="")

    def load(self, round_number: int, start: State) -> State:
        """The personal state after a round; `start` for round 0, and with a warning if the file is lost or damaged."""
        if not round_number or not start:
            return start
        try:
            state, _ = load_tensors(self._path(round_number))
        except UserError as error:
            _log.warning("The personal state after round %d is lost and starts anew: %s", round_number, error)
            return start
        return state

    def save(self, round_number: int, state: State, *, since: int = 0, keep_all: bool = False) -> None:
        """Save the personal state after a round and, unless all are kept, delete those too old to be needed.

        That of the round `since`, from which this one was trained, is kept: this one may never count.
        """
        if not state:
            return
        save_tensors(self._path(round_number), state)
        known = sorted(self.folder.glob(f"{self._prefix}@*.safetensors"))
        for old in () if keep_all else known[:-KEPT]:
            if old != self._path(since):
                old.unlink()

    def left_out(self) -> dict[int, str] | None:
        """The unreadable images that the run leaves out at this site, with reasons; None before the first check."""
        if not self._left_out.exists():
            return None
        return {int(row): reason for row, reason in load_json_object(read_bytes(self._left_out)).items()}

    def leave_out(self, found: Mapping[int, str]) -> None:
        """Save them, so that a run trains on the same images after a restart of the worker."""
        write_atomic(self._left_out, json_text(found))

    def unmasked(self) -> int:
        """The last round whose secure sum this site helped to unmask; 0 if none."""
        return int(self._mark.read_text(encoding="utf-8")) if self._mark.exists() else 0

    def mark_unmasked(self, round_number: int) -> None:
        """Save the round whose secure sum this site is about to help unmask."""
        write_atomic(self._mark, str(round_number))

    @property
    def _left_out(self) -> Path:
        return self.folder / "left_out.json"  # all trials of a run use the same images

    @property
    def _mark(self) -> Path:
        return self.folder / f"{self._prefix}.unmasked"

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{self._prefix}@{round_number:08d}.safetensors"
