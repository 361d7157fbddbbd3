"""What a Hugging Face folder of a backbone must hold, said before transformers reads it, whose errors name no file."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from fedprompt.clip.checkpoints.config import WHOLE, check_kinds
from fedprompt.clip.checkpoints.opening import SUFFIXES, TOKENIZER
from fedprompt.clip.checkpoints.reading import number_types, refuse_pointer
from fedprompt.clip.refusals import MissingPartError
from fedprompt.errors import UserError
from fedprompt.file_system import entries, is_file, is_folder, read_bytes
from fedprompt.text_files import load_json_object

CONFIG, PREPROCESSING = "config.json", ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of transformers
SHARDS = "model-*-of-*.safetensors"  # of weights in several files
POSITIONS = ".position_ids"  # the end of the names of constants, which older files hold
READ = (CONFIG, *PREPROCESSING, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # JSON objects
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


def read_configuration(place: Path) -> Mapping[str, Any]:
    """The config.json of a folder; UserError where there is none, saying what may be meant, or it is no JSON object."""
    if not is_folder(place):
        raise UserError(f"it is a file, but no checkpoint by its name ({', '.join(SUFFIXES)}); give one, or a folder.")
    if not is_file(place / CONFIG):
        found = sorted(one.name for one in entries(place) if one.name.endswith(SUFFIXES) and one.name not in WEIGHTS)
        hint = f"; give the file {found[0]} itself" if found else ""
        raise MissingPartError(f"the folder has no {CONFIG}{hint}.")
    return _json_object(place, CONFIG)


def check_parts(folder: Path) -> None:
    """Raise UserError if a folder lacks preprocessing or tokenizer, or a part is no JSON object."""
    names = {one.name for one in entries(folder)}
    if names.isdisjoint(PREPROCESSING):
        raise UserError(f"the folder has no {PREPROCESSING[0]}; copy it there.")
    if names.isdisjoint(TOKENIZER) and not any(name.endswith(".model") for name in names):
        raise UserError(f"the folder has no tokenizer ({', '.join(TOKENIZER)}); copy its files there.")
    for name in sorted(names):
        if name in READ or name.endswith((".model", *TOKENIZER)):
            refuse_pointer(folder / name)
        if name in READ:
            _json_object(folder, name)


def check_number_types(folder: Path) -> None:
    """Raise UserError if a weight in a folder is no floating-point number, as transformers would read it as one."""
    names = [one.name for one in entries(folder)]
    whole = [name for name in names if name == WEIGHTS[0]]
    for file in whole or [name for name in names if fnmatch(name, SHARDS)]:
        for name, kind in number_types(folder / file).items():
            if not (kind.startswith(("F", "BF")) or name.endswith(POSITIONS)):
                raise UserError(
                    f"the weight {name!r} in {file} is of the type {kind}, no floating-point number; give a "
                    "backbone that is not quantised."
                )


def check_configuration(about: Mapping[str, Any]) -> None:
    """Raise UserError for sizes and activations that no tower can have, on which transformers only breaks off."""
    for tower in ("text_config", "vision_config"):
        sizes = about.get(tower)
        if not isinstance(sizes, Mapping):
            if sizes is not None:
                raise UserError(f"{CONFIG} sets {tower} = {sizes!r}, which must be a JSON object; correct it.")
            continue
        check_kinds(CONFIG, tower, sizes, dict.fromkeys(SIZES, WHOLE))
        activation = sizes.get("hidden_act", "gelu")
        if not isinstance(activation, str) or activation not in ACT2FN:
            raise UserError(
                f"{CONFIG} sets {tower}.hidden_act = {activation!r}, which is no activation of transformers; correct "
                "it: quick_gelu for OpenAI's models, gelu for most others."
            )


def _json_object(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        return load_json_object(read_bytes(folder / name))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"its {name} is no whole JSON object; copy it again.") from error
