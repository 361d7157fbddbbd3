"""Trained adapters for prediction: found in a folder or a run, restored on their backbone, and their candidates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from fedprompt import methods
from fedprompt.clip.devices import find_device
from fedprompt.clip.hub import require_available
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import Precision
from fedprompt.config.blocks import Block
from fedprompt.config.outside_code import is_outside, require_trusted
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.labels import LabelSpace
from fedprompt.demo import DEMO
from fedprompt.errors import UserError, did_you_mean, option
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.plan import FindMethod, bind_method
from fedprompt.federated.rounds import initial_state
from fedprompt.file_system import is_file, require_folder
from fedprompt.methods import method_summary
from fedprompt.methods.base import Method
from fedprompt.records.adapter import Adapter, check_backbone, check_tensors, load_adapter, load_tensors
from fedprompt.records.output_folder import final_folder, resuming, searching
from fedprompt.records.run_record import trial_label
from fedprompt.report import read_run
from fedprompt.seeding import stream
from fedprompt.updates import State

MOST_NUMBERS = 1 << 28  # that a method may hold, shared and personal: 1 GiB
CACHE_GB = 0.125  # memory for features of a batch, which a method may read more than once


def open_adapter(place: Path, *, trial: str | None = None, trusted: Sequence[str] = ()) -> Adapter:
    """Read an adapter folder, or the adapter of a run's main trial or of `trial`; UserError if there is none.

    Of a search for settings, it is the final run.
    `trusted` are the modules outside fedprompt that the adapter may name as its method.
    """
    require_folder(place, "give the folder of a run or of an adapter")
    place = run_of(place)
    if not is_file(place / "run.jsonl"):
        return replace(load_adapter(place), trusted=tuple(trusted))
    run = read_run(place)
    known = [record.name for record in run.trials]
    name = trial or run.header.main
    if name not in known:
        raise UserError(unknown_trial(str(name), known, f" {place}"))
    if name == ".." or Path(name).name != name:  # a made record must not lead to another folder
        raise UserError(f"The run {place} has a trial {name!r}, which is no name of a folder; restore it from a copy.")
    folder = adapter_folder(place, name)
    if not is_file(folder / "adapter_config.json"):
        raise UserError(f"The run {place} has no finished adapter of {name!r} yet; finish it with {resuming(place)}.")
    return replace(load_adapter(folder), trusted=tuple(trusted))


def run_of(place: Path) -> Path:
    """The folder, or that of the final run if it holds a search for settings; UserError if that has not begun."""
    final = final_folder(place)
    if final is None or is_file(final / "run.jsonl"):
        return final or place
    raise UserError(f"The final run in {final} has not begun: {searching(place)}.")


def unknown_trial(name: str, known: Collection[str], place: str = "") -> str:
    """The sentence about a trial that a run does not have."""
    names = ", ".join(known) or "not begun yet"
    return f"The run{place} has no trial {name!r}{did_you_mean(name, known)} (its trials are {names})."


def label_of(adapter: Adapter) -> str:
    """The adapter's method as tables spell it."""
    name = adapter.card.method
    return trial_label(name, name, method_summary(methods.load(name))) if name in methods.names() else name


def method_of(adapter: Adapter, find_method: FindMethod = methods.load) -> Block[Method]:
    """The adapter's method with its options; UserError if it is code outside fedprompt that is not trusted."""
    name = adapter.card.method
    if is_outside(name):
        require_trusted((name,), adapter.trusted, place=f"The adapter {adapter.folder}")
    return bind_method(name, adapter.card.params, place=str(adapter.folder), find_method=find_method)


def restore(
    adapter: Adapter, *, backbone: str | None = None, clip: Clip | None = None, find_method: FindMethod = methods.load
) -> tuple[Method, Clip]:
    """Open the adapter's backbone, or the copy of it at `backbone`, and load the trained tensors into a method.

    `clip` is a backbone that is open already, and `find_method` looks the method up. Raises UserError if the method is
    code outside fedprompt that is not trusted, if the backbone is another one, or if a tensor does not fit.
    """
    block = method_of(adapter, find_method)
    clip = clip or _open_backbone(adapter, backbone or adapter.card.base_model_name_or_path)
    check_backbone(adapter, clip.fingerprint)
    if not is_outside(adapter.card.method):  # code of others may not support this, and is trusted
        check_tensors(adapter, _without_memory(block, clip, adapter))
    method = block(clip, generator=stream(0, "method")).to(clip.device)
    shared, personal = initial_state(method)
    method.load_state_dict({**load_tensors(adapter, shared, fingerprint=clip.fingerprint), **personal})
    return method, clip


def _open_backbone(adapter: Adapter, path: str) -> Clip:
    """The backbone at a path, in the precision of the adapter's run; UserError if it is not there."""
    if not path:
        raise UserError(
            f"The adapter {adapter.folder} was trained with a backbone that lay in no folder; give it with "
            f"{option('backbone', 'clip')}."
        )
    if path != DEMO:
        require_available(path, fix=f"give the folder of a copy with {option('backbone', 'clip=load_clip(folder)')}")
    return load_backbone(BackboneTable(path=path, memory_gb=CACHE_GB, precision=usable_precision(adapter)[0]))


def usable_precision(adapter: Adapter) -> tuple[Precision, str]:
    """The precision of the adapter's run, or float32 with a sentence where the device does not compute in it."""
    try:
        find_device("auto", adapter.card.precision)
    except UserError:
        return "float32", (
            f"The backbone computed in {adapter.card.precision} in the run and does so in float32 here, since this "
            "device cannot; predictions may differ a little."
        )
    return adapter.card.precision, ""


def _without_memory(block: Block[Method], clip: Clip, adapter: Adapter) -> State:
    """The shared tensors of an adapter's method on PyTorch's meta device, where they have a shape and no memory."""
    with torch.device("meta"):
        method = block(clip, generator=None)
    count = sum(tensor.numel() for tensor in method.state_dict().values())
    if count > MOST_NUMBERS:
        raise UserError(
            f"The options of the adapter {adapter.folder} make a method of {count:,} numbers, more than "
            f"{MOST_NUMBERS:,}; copy the adapter again."
        )
    return {name: tensor for name, tensor in method.named_parameters() if not name.startswith(method.personal)}


def candidates(
    adapter: Adapter, classes: Sequence[str], *, attributes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> LabelSpace:
    """The adapter's own classes, or those named, each with the attributes given or else known to the adapter."""
    if not classes and not attributes:
        return adapter.space
    classes = classes or adapter.space.names
    every = {**adapter.space.attributes, **{name: tuple(own) for name, own in attributes.items()}}
    known = {name: every[name] for name in classes if name in every}
    return replace(adapter.space, names=tuple(classes), attributes=known)


def gives_others(adapter: Adapter, classes: Sequence[str]) -> bool:
    """Whether candidates are given that are not the adapter's own classes."""
    return bool(classes) and set(classes) != set(adapter.space.names)
