"""What the words of a recipe mean: each row is a function whose keywords are its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fedprompt.errors import UserError, did_you_mean

SOURCES: Mapping[str, str] = {
    "pictograms": "fedprompt.demo.world:pictograms",
    "scenes": "fedprompt.demo.world:scenes",
    "folder": "fedprompt.data.readers:image_folder",
    "table": "fedprompt.data.tables:label_table",
}
RULES: Mapping[str, str] = {
    "class_chunks": "fedprompt.data.partition:class_chunks",
    "iid": "fedprompt.data.partition:iid",
    "dirichlet": "fedprompt.data.partition:dirichlet",
    "by_domain": "fedprompt.data.partition:by_domain",
    "label_clusters": "fedprompt.data.multilabel:label_clusters",
}


def find(table: Mapping[str, str], word: str, *, place: str) -> Callable[..., Any]:
    """Import the function a word stands for; `package.module:function` reaches code of one's own."""
    address = table.get(word, word)
    module, colon, function = address.partition(":")
    if not colon:
        known = ", ".join(table)
        raise UserError(
            f"{place} knows no {word!r}{did_you_mean(word, table)} (known: {known}; your own: package.module:function)."
        )
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{place}: {word!r} cannot be imported ({error}); check the module and the function's name."
        ) from error
    return found  # type: ignore[no-any-return]
