"""The conformance battery of methods on every family of backbones that can carry them; what is refused says why."""

from __future__ import annotations

import pytest

from fedprompt import methods
from fedprompt.errors import UserError
from fedprompt.federated.client import TrainSettings
from fedprompt.seeding import stream
from fedprompt.testing import FAMILIES, MethodTests, tiny_backbone

CHOSEN = ("fedmvp", "fedmpt", "promptfl", "fedvpt", "fedlora")  # a method of every kind: text, image, both, deep, weights
OTHERS = tuple(name for name in FAMILIES if name != "clip")  # on which all methods are tested elsewhere
INSTALLED = tuple(name for name in CHOSEN if not methods.missing(methods.load(name)))


def _battery(method: str, family: str) -> type:
    name = f"TestMethod_{method}_on_{family}"
    return type(name, (MethodTests,), {"method": method, "family": family})


globals().update({one.__name__: one for name in INSTALLED for one in (_battery(name, family) for family in OTHERS)})
