"""The conformance battery of methods on every family of backbones that can carry them; what is refused says why."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

import fedprompt as fp
from fedprompt import methods
from fedprompt.errors import UserError
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from fedprompt.testing import FAMILIES, MethodTests, tiny_backbone, tiny_dataset
from fedprompt.testing.federation import build, examples, shared_clip, train
from fedprompt.testing.tiny_families import tiny_family_parts
from test_cli import call, sentence
from test_cli_check import distinct
from test_data_users_files import images

CHOSEN = (
    "fedmvp",
    "fedmpt",
    "promptfl",
    "fedvpt",
    "fedlora",
)  # a method of every kind: text, image, both, deep, weights
OTHERS = tuple(name for name in FAMILIES if name != "clip")  # on which all methods are tested elsewhere
INSTALLED = tuple(name for name in CHOSEN if not methods.missing(methods.load(name)))


OF_OPTIONS = ("test_every_option_does_something", "test_impossible_options_are_refused")  # whatever the backbone


def _battery(method: str, family: str) -> type:
    name = f"TestMethod_{method}_on_{family}"
    return type(name, (MethodTests,), {"method": method, "family": family, **dict.fromkeys(OF_OPTIONS)})


globals().update({one.__name__: one for one in (_battery(*pair) for pair in itertools.product(INSTALLED, OTHERS))})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", methods.installed())
def test_a_method_takes_a_step_on_a_family_or_is_refused_in_a_sentence(method: str, family: str) -> None:
    clip, kind = shared_clip(family), methods.load(method)
    if reason := methods.refusal(kind, clip.family):
        assert reason.startswith(kind.__name__) and "does not offer, since" in reason
        with pytest.raises(UserError):
            step(kind, family)
    else:
        assert step(kind, family).isfinite()


def step(kind: type[Method], family: str) -> torch.Tensor:
    """The loss after one step on two images of each kind of task."""
    method, losses = build(kind, shared_clip(family), {}), []
    for task in ("single", "multi"):
        data = examples((0, 1, 2), (0, 1, 2), kind=task)
        train(method, shared_clip(family), data, 1)
        losses.append(method.loss(shared_clip(family), data.images, data.targets, data.space, stream=stream(0)))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("family", ["siglip", "vit_bert"])
def test_a_run_refuses_a_method_before_it_reads_data(family: str, tmp_path: Path) -> None:
    folder = tmp_path / family
    for part in tiny_family_parts(family):
        part.save_pretrained(folder)
    (tmp_path / "images").mkdir()  # with nothing in it to read
    said = sentence(
        *("run", "own_folder", "--set", f"backbone.path={folder}", "--set", f"data.path={tmp_path / 'images'}"),
        *("--set", "method.name=fedtcp", "--out", tmp_path / "run"),
    )
    assert "FedTCP changes tokens between the blocks of the text tower, which a" in said
    assert not (tmp_path / "run").exists()


def test_doctor_names_the_methods_of_a_recipe_that_the_backbone_cannot_carry(tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    for part in tiny_family_parts("siglip"):
        part.save_pretrained(folder)
    own = ("-s", f"backbone.path={folder}", "-s", f"data.path={distinct(images(tmp_path / 'own', 'cat', 'dog'))}")
    said = call("doctor", "own_folder", *own, "-s", 'compare=[{name="fedtcp"}]', "--out", tmp_path / "runs")
    assert "left out: FedTCP changes tokens between the blocks of the text tower" in re.sub(r"[\s│]+", " ", said)
    said = call("doctor", "own_folder", *own, "-s", "method.name=fedtcp", "--out", tmp_path / "runs", code=2)
    assert said.count("FAILED") == 1 and "FedTCP changes tokens between the blocks" in re.sub(r"[\s│]+", " ", said)


def test_refused_methods_are_those_that_the_battery_skips() -> None:
    refused = methods.refused_by(shared_clip("siglip").family)
    assert "fedtcp" in refused and "promptfl" not in refused
    assert methods.refused_by(shared_clip("clip").family) == ()


def test_an_open_backbone_that_lacks_something_is_refused_when_the_method_is_made() -> None:
    data = tiny_dataset()
    clients = fp.partition(data, "iid", clients=2, seed=1)
    with pytest.raises(UserError, match="FedMaPLe changes tokens between the blocks"):
        fp.train("fedmaple", tiny_backbone("siglip"), data, clients, rounds=1, progress=False)
