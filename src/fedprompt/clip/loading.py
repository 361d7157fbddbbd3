"""Loading a CLIP from a folder or the Hub: model, tokenizer and preprocessing; safetensors only, works offline.

Another dual encoder, such as SigLIP or EVA-CLIP, would be opened in `open_parts`, which refuses every model that is not
a `CLIPModel`; its blocks would be run in `towers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel
from transformers.utils import logging

from fedprompt.clip.hub import hub_answers, require_available
from fedprompt.data.decode_workers import Pixels
from fedprompt.errors import UserError
from fedprompt.text_files import json_text

SHAPING = ("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size")
SCALING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def open_parts(path: str | Path) -> tuple[Any, Any, Any]:
    """Return (CLIPModel in float32, tokenizer, PIL image processor) of a folder or Hub id.

    Raises UserError if there is none, it is not a CLIP, or a part is missing, damaged or not safetensors.
    """
    name, folder = str(path), Path(path).expanduser()
    require_available(path)
    origin = str(folder) if folder.is_dir() else name
    # Without a network the library would try for half a minute before it looks into its cache.
    local = folder.is_dir() or not hub_answers()
    try:
        about, _ = CLIPConfig.get_config_dict(origin, local_files_only=local)
        kind = about.get("model_type", "model of no stated type")
        if kind != "clip":
            raise ValueError(f"it is a {kind}, not a CLIP.")
        with _quiet() if folder.is_dir() else nullcontext():
            model, report = CLIPModel.from_pretrained(
                origin, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=local
            )
            tokenizer = AutoTokenizer.from_pretrained(origin, local_files_only=local, trust_remote_code=False)
            processor = CLIPImageProcessorPil.from_pretrained(origin, local_files_only=local)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The backbone {name!r} cannot be opened: {str(error).strip().splitlines()[0]} A CLIP folder holds "
            "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"The backbone {name!r} lacks {len(missing)} weights, {missing[0]!r} first; give a whole CLIP.")
    return model, tokenizer, processor


def fingerprint(model: torch.nn.Module, processor: Any) -> str:
    """sha256 over the float32 bytes of all tensors in name order and the preprocessing, however they were loaded."""
    preprocessing = _plain({key: getattr(processor, key, None) for key in SHAPING + SCALING})
    digest = hashlib.sha256(json_text(preprocessing).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().float().contiguous().reshape(-1).numpy()).cast("B"))
    return digest.hexdigest()


def numerics_id(device: torch.device) -> str:
    """What the last bits of a result depend on besides weights and inputs: versions, device, threads."""
    versions = f"{torch.__version__} {PIL.__version__}"
    if device.type == "cuda":
        return f"{versions} {torch.cuda.get_device_name(device)}"
    return f"{versions} {device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar of loading from a folder; downloads keep theirs."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
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
    """Raise UserError unless the preprocessing makes images of `size` x `size` pixels, as the image tower expects."""
    made = dict(processor.crop_size if processor.do_center_crop else processor.size)
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
