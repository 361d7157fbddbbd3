"""The registry of backbone families: one file per `model_type` of a configuration, named like it, with its `FAMILY`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from fedprompt.clip.backbone import Family
from fedprompt.errors import UserError, did_you_mean


def names() -> tuple[str, ...]:
    """The supported values of `model_type`, sorted."""
    return tuple(sorted(one.name for one in iter_modules(__path__)))


@cache
def find(model_type: str) -> Family:
    """The family of a `model_type`; UserError, with the reason, if it is none that can be prompted."""
    if model_type in names():
        family: Family = import_module(f"{__name__}.{model_type}").FAMILY
        return family
    if model_type in REFUSED:
        raise UserError(REFUSED[model_type])
    raise UserError(
        f"it is a {model_type}, not a contrastive pair of an image and a text tower{did_you_mean(model_type, names())}"
        f"; supported are {', '.join(names())}."
    )


REFUSED = {
    "siglip2": "it is a SigLIP 2 of the NaFlex kind, whose number of patches varies with the image; use one of fixed "
    "resolution, such as google/siglip2-base-patch16-224, whose model_type is siglip.",
}
