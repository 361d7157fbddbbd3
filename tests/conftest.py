"""Fixtures of the whole suite: those of `fedprompt.testing`, and the parts of the tiny CLIP."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from fedprompt.testing import tiny
from fedprompt.testing.pytest_plugin import forgetful_cache, tiny_clip, tiny_images  # noqa: F401  (fixtures)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Small tensors are faster on one thread; what has real dimensions uses what there is."""
    torch.set_num_threads(os.cpu_count() or 1 if request.node.get_closest_marker("large") else 1)


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[Any, ...]:
    """What `Clip` is made of, to build one with another cache or batch."""
    return tiny.tiny_parts()
