"""State of a site on disk: personal states per round, unreadable images, secure sums, and the privacy budget spent."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from fedprompt.deploy.site_policy import RefusedError
from fedprompt.errors import UserError
from fedprompt.experiments.server import epsilon_function
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.privacy.accounting import Ledger
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.records.run_folder import load_tensors, save_tensors, write_atomic
from fedprompt.text_files import json_text
from fedprompt.updates import State

KEPT = 4  # rounds: a server goes back by one checkpoint at most, and one round may be running
SPENT = "privacy.json"  # in a site's folder: for each run and trial, the rounds charged and their epsilon
_log = logging.getLogger(__name__)


class SiteState:
    """What a site keeps of one trial of a run: a personal state per round, so that the server can resume, and marks."""

    def __init__(self, folder: Path, run: str, trial: str) -> None:
        if not re.fullmatch(r"[0-9a-f]{32}", run):
            raise UserError("The job's run id is not one; update the server.")
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

    def save(self, round_number: int, state: State) -> None:
        """Save the personal state after a round and delete those that are too old to be needed."""
        if not state:
            return
        save_tensors(self._path(round_number), state)
        known = sorted(self.folder.glob(f"{self._prefix}@*.safetensors"))
        for old in known[:-KEPT]:
            old.unlink()

    def left_out(self) -> dict[int, str] | None:
        """The unreadable images that the run leaves out at this site, with reasons; None before the first check."""
        if not self._left_out.exists():
            return None
        return {int(row): reason for row, reason in json.loads(self._left_out.read_text(encoding="utf-8")).items()}

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


def charge_privacy(
    folder: Path, trial: str, privacy: SamplePrivacy, settings: TrainSettings, *, images: int, budget: float | None
) -> None:
    """Charge one more round of a trial to the site's privacy ledger, before the round runs.

    `budget` is the site's epsilon for all runs together: the epsilons of different trials add up. Raises RefusedError
    if the round would exceed it, or the trial's own budget.
    """
    path = folder / SPENT
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = table.get(trial, {"charges": 0})["charges"]
    others = sum(entry["epsilon"] for name, entry in table.items() if name != trial)

    def record(number: int, clients: Sequence[int], epsilon: float) -> None:
        write_atomic(path, json_text({**table, trial: {"charges": before + 1, "epsilon": epsilon}}, indent=2))

    limit = privacy.epsilon if budget is None else min(privacy.epsilon, budget - others)
    epsilon = epsilon_function(privacy, settings, lambda client: images)
    if not Ledger(epsilon, budget=limit, charges={0: before}, record=record).admit(before + 1, [0]):
        raise RefusedError("one more round would exceed the privacy budget of the site's images.", rule="epsilon")
