"""FedAvg (McMahan et al., 2017) as a rule that a recipe names; the average itself is `fedprompt.updates.fedavg`."""

from __future__ import annotations

from fedprompt import updates
from fedprompt.updates import AggregationRule


def fedavg() -> AggregationRule:
    """FedAvg (McMahan et al., 2017): the weighted mean. It withstands no adversary: one can move it anywhere."""
    return updates.fedavg
