"""Fixtures of the whole suite: those of `fedprompt.testing`, and the parts of the tiny CLIP."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings
from PIL import Image

from fedprompt.clip.model import Clip
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.experiments.experiment import load_backbone
from fedprompt.testing import tiny
from fedprompt.testing.pytest_plugin import forgetful_cache, tiny_clip, tiny_images  # noqa: F401  (fixtures)

settings.register_profile("fedprompt", deadline=None)  # how long a case takes depends on the machine
settings.load_profile("fedprompt")


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Small tensors are faster on one thread; what has real dimensions uses what there is."""
    torch.set_num_threads(os.cpu_count() or 1 if request.node.get_closest_marker("large") else 1)


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[Any, ...]:
    """What `Clip` is made of, to build one with another cache or batch."""
    return tiny.tiny_parts()


@pytest.fixture(scope="session")
def opened() -> dict[str, Clip]:
    """The demo backbones that tests have opened, by their table of a recipe."""
    return {}


@pytest.fixture(scope="module")
def kept_backbone(opened: dict[str, Clip]) -> Iterator[None]:
    """The demo backbone stays open, as in a site's process, so the images of many runs are encoded only once."""

    def load(table: BackboneTable) -> Clip:
        if table.path != "demo":
            return load_backbone(table)
        kept = table.model_copy(update={"disk": None})  # features are in memory
        key = kept.model_dump_json()
        if key not in opened:
            opened[key] = load_backbone(kept)
        return opened[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("deploy.jobs", "experiments.experiment", "experiments.adapters"):
            patch.setattr(f"fedprompt.{module}.load_backbone", load)
        yield


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs end without a report, which takes most of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedprompt.experiments.run.render", lambda folder: folder / "report.html")
        yield


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are written with empty figures, for tests of their text."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, format="PNG")
    blank = {"svg": b'<svg viewBox="0 0 1 1"></svg>', "png": file.getvalue()}
    monkeypatch.setattr("fedprompt.report.style.draw", lambda *_, form="svg", **__: blank[form])
