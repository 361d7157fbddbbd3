"""The registry of backbone families: one file per `model_type` of a configuration, named like it, with its `FAMILY`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fedprompt.clip.backbone import Family
from fedprompt.errors import UserError, did_you_mean


def names() -> tuple[str, ...]:
    """The supported values of `model_type`, sorted."""
    return tuple(sorted(one.name for one in iter_modules(__path__)))


def find(model_type: object) -> Family:
    """The family of a `model_type`; UserError, with the reason, if it is none that can be prompted."""
    if isinstance(model_type, str):
        return _named(model_type)
    what = "states no model_type" if model_type is None else f"sets model_type = {model_type!r}, which is no text"
    raise UserError(f"its config.json {what}; supported are {', '.join(names())}.")


@cache
def _named(model_type: str) -> Family:
    if model_type in names():
        family: Family = import_module(f"{__name__}.{model_type}").FAMILY
        return family
    if model_type in REFUSED:
        raise UserError(REFUSED[model_type])
    hint = "" if model_type in CONFIG_MAPPING_NAMES else did_you_mean(model_type, names())  # another model is no slip
    raise UserError(
        f"its model_type is {model_type!r}, which is none of the supported families ({', '.join(names())}){hint or '.'}"
    )


REFUSED = {
    "siglip2": "it is a SigLIP 2 of the NaFlex kind, whose number of patches varies with the image; use one of fixed "
    "resolution, such as google/siglip2-base-patch16-224, whose model_type is siglip.",
}
