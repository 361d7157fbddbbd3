"""Loading a backbone from a folder, a checkpoint or the Hub: model, tokenizer and preprocessing; works offline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from fedprompt.clip import families
from fedprompt.clip.backbone import Family
from fedprompt.clip.checkpoints.config import COLOURS, SPREADS, read_config
from fedprompt.clip.checkpoints.opening import Checkpoint, find_checkpoint, open_checkpoint
from fedprompt.clip.folders import POSITIONS, check_configuration, check_number_types, check_parts, read_configuration
from fedprompt.clip.hub import cached_folder, hub_answers, hub_checkpoint, require_available
from fedprompt.clip.refusals import refusing
from fedprompt.data.decode_workers import Pixels
from fedprompt.errors import UserError, plural
from fedprompt.file_system import is_file, is_folder
from fedprompt.text_files import json_text

SHAPING = ("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size")
SCALING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# What is computed with the weights, where their shapes do not say it already.
COMPUTING: tuple[str, ...] = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")
COMPUTING += ("max_position_embeddings", "image_size", "patch_size")
PROBES = [
    "a photo of a Cat.",
    "X-ray, 3 mm; it\u2019s l\u00f8ve",
    "two  blanks_and 1,024 \u732b",
]  # texts that tokenizers split apart


def open_parts(path: str | Path) -> tuple[Any, Any, Any]:
    """Return (model in float32, tokenizer, PIL image processor) of a folder, a checkpoint or a Hub id.

    Raises UserError if there is none, it is no contrastive pair of a supported family, or a part is missing or damaged.
    """
    place = _locate(path)
    if isinstance(place, Checkpoint):
        opened = open_checkpoint(place)
        return opened.model, opened.tokenizer, opened.processor
    local, name = place.local, str(path)
    with refusing(name):
        family = _family(place)
        if not place.hub:
            check_parts(Path(place.origin))
            check_number_types(Path(place.origin))
        with quiet(progress=place.hub):
            model, report = _open_model(family, place)
            if place.hub:  # the files are in the cache now
                check_number_types(cached_folder(place.origin))
            tokenizer = AutoTokenizer.from_pretrained(place.origin, local_files_only=local, trust_remote_code=False)
            processor = family.processor.from_pretrained(place.origin, local_files_only=local)
    _check_report(report, name, model)
    _check_finite(model, name)
    return model, tokenizer, processor


def family_of(path: str | Path) -> Family:
    """The family of a folder, a checkpoint or a Hub id, from its configuration alone; UserError as `open_parts`."""
    place = _locate(path)
    if isinstance(place, Checkpoint):
        return families.find("vit_bert" if place.config and read_config(place.config).bert else "clip")
    with refusing(str(path)):
        return _family(place)


@dataclass(frozen=True)
class HuggingFacePlace:
    """Where transformers finds a model: a folder, or an id of the Hub; `local` if it must not ask the network."""

    origin: str
    hub: bool
    local: bool


def _locate(path: str | Path) -> Checkpoint | HuggingFacePlace:
    name, folder = str(path), Path(path).expanduser()
    require_available(path)
    hub = not (is_folder(folder) or is_file(folder))
    if hub and (fetched := hub_checkpoint(name)):
        folder = fetched
    if found := find_checkpoint(folder):
        return found
    # Without a network the library would try for half a minute before it looks into its cache.
    return HuggingFacePlace(name if hub else str(folder), hub, local=not hub or not hub_answers())


def _family(place: HuggingFacePlace) -> Family:
    """The family that a configuration names; UserError also for sizes that no model of it can have."""
    if place.hub:
        about: Mapping[str, Any] = PreTrainedConfig.get_config_dict(place.origin, local_files_only=place.local)[0]
    else:
        about = read_configuration(Path(place.origin))
    family = families.find(about.get("model_type"))
    check_configuration(about)
    return family


def _open_model(family: Family, place: HuggingFacePlace) -> tuple[Any, Mapping[str, Any]]:
    """A model in float32, and what transformers reports of its weights; those of other shapes are in the report."""
    model, report = family.model.from_pretrained(
        place.origin,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=place.local,
        ignore_mismatched_sizes=True,
    )
    return model, report


def _check_report(report: Mapping[str, Any], name: str, model: PreTrainedModel) -> None:
    """Raise UserError unless the weights are those of the configuration: all, no others, in their shapes."""
    missing = sorted(report["missing_keys"])
    extra = sorted(key for key in report["unexpected_keys"] if not key.endswith(POSITIONS))
    if missing and extra:
        raise UserError(
            f"The backbone {name!r} lacks {plural(len(missing), 'weight')}, {missing[0]!r} first, and has "
            f"{plural(len(extra), 'other one')}, {extra[0]!r} first: the model_type {model.config.model_type!r} in its "
            "config.json may be another model's; give the configuration that belongs to the weights."
        )
    if missing:
        raise UserError(
            f"The backbone {name!r} lacks {plural(len(missing), 'weight')}, {missing[0]!r} first; give a whole one."
        )
    if extra:
        raise UserError(
            f"The backbone {name!r} has {plural(len(extra), 'weight')} that its config.json does not speak of, "
            f"{extra[0]!r} first; correct config.json, or give the image and text towers alone."
        )
    for key, found, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weight {key!r} of the backbone {name!r} is {list(found)}, but by its config.json {list(wanted)}; "
            "give the configuration that belongs to the weights."
        )


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Raise UserError for weights that are NaN or infinite, which a run would blame on its training."""
    for key, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"The weight {key!r} of the backbone {name!r} has numbers that are not finite; copy it again."
            )


def fingerprint(model: PreTrainedModel, processor: Any, tokenizer: Any) -> str:
    """sha256 of all that features follow from: weights, what is computed with them, preprocessing and tokenizer.

    Weights are the float32 bytes of all tensors in name order, however they were loaded. Of the configuration count the
    keys of `COMPUTING` in every part of it, of the tokenizer its vocabulary and how it splits some texts.
    """
    preprocessing = _plain({key: getattr(processor, key, None) for key in SHAPING + SCALING})
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = tokenizer(PROBES, add_special_tokens=False, verbose=False)["input_ids"]
    known = [preprocessing, list(_computing(model.config.to_dict())), vocabulary, pieces]
    digest = hashlib.sha256(json_text(known).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().float().contiguous().reshape(-1).numpy()).cast("B"))
    return digest.hexdigest()


def _computing(table: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of `COMPUTING` in a configuration and in the parts of it, with their places, in the order of these."""
    for key, value in sorted(table.items()):
        if isinstance(value, dict):
            yield from _computing(value, f"{place}{key}.")
        elif key in COMPUTING and value is not None:
            yield f"{place}{key}", _plain(value)


def numerics_id(device: torch.device) -> str:
    """What the last bits of a result depend on besides weights and inputs: versions, device, threads."""
    versions = f"{torch.__version__} {PIL.__version__}"
    if device.type == "cuda":
        return f"{versions} {torch.cuda.get_device_name(device)}"
    return f"{versions} {device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


@contextmanager
def quiet(*, progress: bool) -> Iterator[None]:
    """Hide transformers' warnings, in place of which there are sentences, and unless `progress` its progress bar."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _plain(value: Any) -> Any:
    """Preprocessing values in one JSON form, whether they come from defaults, a file or a dataclass."""
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in sorted(dict(value).items()) if item is not None}


def copy_weights_aligned(model: torch.nn.Module) -> None:
    """Give every weight aligned memory of its own: products round differently on a file's unaligned tensors."""
    for weight in model.parameters():
        weight.data = weight.data.clone()


def check_size(processor: Any, size: int) -> None:
    """Raise UserError unless the preprocessing makes images of `size` x `size` pixels, as the image tower expects.

    Its mean and standard deviation must be three numbers, which would otherwise be found out in training.
    """
    for key, (words, fits) in {"image_mean": COLOURS, "image_std": SPREADS}.items():
        if processor.do_normalize and not fits(value := getattr(processor, key)):
            raise UserError(
                f"The preprocessing has {key} = {value!r}, which must be {words}; correct preprocessor_config.json."
            )
    made = dict((processor.crop_size if processor.do_center_crop else processor.size) or {})
    if {made.get("height"), made.get("width")} != {size}:
        raise UserError(
            f"The preprocessing makes images of {made} but the image tower reads {size}x{size} pixels; "
            "correct crop_size in preprocessor_config.json."
        )


def preprocess(processor: Any, size: int, images: Sequence[Image.Image]) -> Pixels:
    """[B, 3, H, W] preprocessed images, for this process and every worker."""
    # differs: transformers rounds half a pixel of the centre crop down, OpenAI's preprocessing to an even number, so
    # that the crop lies one pixel further up or left where an edge exceeds its size by 3, 7, 11, ... pixels
    if not images:
        return np.empty((0, 3, size, size), np.float32)
    pixels: Pixels = processor(images=images, return_tensors="np")["pixel_values"]
    return pixels
