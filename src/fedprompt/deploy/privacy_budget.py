"""What a site's pictures have paid for privacy in all runs together, in the site's own file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fedprompt.deploy.site_policy import RefusedError
from fedprompt.experiments.server import epsilon_function
from fedprompt.federated.client import Settings
from fedprompt.federated.privacy.accounting import Ledger
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.records.run_folder import write_atomic

SPENT = "privacy.json"  # in a site's folder: for each run and trial, the charges and their epsilon


def charge(
    folder: Path, trial: str, privacy: SamplePrivacy, settings: Settings, *, pictures: int, cap: float | None
) -> None:
    """Pay for one more round of a trial before it runs; RefusedError when that would pass its budget or the site's.

    `cap` is the site's budget for everything: the epsilons of different trials add up.
    """
    path = folder / SPENT
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = table.get(trial, {"charges": 0})["charges"]
    others = sum(line["epsilon"] for name, line in table.items() if name != trial)

    def record(number: int, clients: Sequence[int], epsilon: float) -> None:
        write_atomic(path, json.dumps({**table, trial: {"charges": before + 1, "epsilon": epsilon}}, indent=2))

    budget = privacy.epsilon if cap is None else min(privacy.epsilon, cap - others)
    epsilon_of = epsilon_function(privacy, settings, lambda client: pictures)
    if not Ledger(epsilon_of, budget=budget, charges={0: before}, record=record).admit(before + 1, [0]):
        raise RefusedError("one more round would pass the privacy budget of the site's pictures.", rule="epsilon")
