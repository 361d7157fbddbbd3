"""What transformers raises on a backbone that cannot be opened, as a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from fedprompt.errors import UserError

BREAKS = (TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)  # whose text is on code alone
REFUSALS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError, *BREAKS)
PARTS = "A backbone's folder holds config.json, model.safetensors, preprocessor_config.json and the tokenizer's files."


class MissingPartError(UserError):
    """A folder lacks a part that every backbone has."""


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn what transformers raises into a UserError; where a part is missing, it says which there are."""
    try:
        yield
    except REFUSALS as error:
        parts = f" {PARTS}" if isinstance(error, (MissingPartError, OSError)) else ""
        raise UserError(f"The backbone {name!r} cannot be opened: {reason(error)}{parts}") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say of which backbone a UserError is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"The backbone {name!r} cannot be opened: {error}") from error


def reason(error: Exception) -> str:
    """What an error says as a sentence, with the way out where a package or a form of weights is the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, StrictDataclassError):  # whose last line has the reason, behind the name of an exception
        lines = [lines[-1].partition("Error: ")[2] or lines[-1]] if lines else []
    if not lines or isinstance(error, BREAKS):
        lines = ["its configuration or tokenizer has a value that transformers cannot use."]
    found = lines[0].partition(" If you were trying to load it")[0]  # what follows is on paths, of which none is meant
    if isinstance(error, ImportError):  # whose further sentences go on in the next lines
        found = re.split(r"(?<=\w)\.(?=\s|$)", found, maxsplit=1)[0]
    found = found if found.endswith((".", "!", "?")) else f"{found}."
    if isinstance(error, ImportError):
        found += " Install the package that its tokenizer needs, e.g. pip install sentencepiece protobuf."
    if "pytorch_model.bin" in found or "no file named model.safetensors" in found:
        found += " Weights in another form are converted once: fedprompt backbone convert FOLDER OUT."
    return found
