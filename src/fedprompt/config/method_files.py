"""Names of methods and their options, read from their files without importing them: torch takes seconds to import."""

from __future__ import annotations

import ast
import functools
import pkgutil
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from fedprompt.config.blocks import SUPPLIED, require_options
from fedprompt.config.outside_code import is_outside
from fedprompt.config.recipe import Recipe, recipe_key_hint
from fedprompt.errors import UserError, did_you_mean, wording

PACKAGE = "fedprompt.methods"
_IN_PLACE = ", or its class in place of the name: {}, without quotes"  # where calls take settings of a recipe


@functools.cache
def method_files() -> dict[str, Path]:
    """The file of each method of this package, by name."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    names = sorted(module.name for module in pkgutil.iter_modules(places) if module.name != "base")
    return {name: Path(place, f"{name}.py") for place in places for name in names}


def unknown_method(name: str, known: Collection[str]) -> UserError:
    """The error for a name that no method has."""
    by_class = {"shell": "", "keywords": f", or its class, `method={name}`", "settings": _IN_PLACE.format(name)}
    own = "package.module" + (by_class[wording()] if name.isidentifier() else "")
    return UserError(
        f"There is no method {name!r}{did_you_mean(name, known)} (known: {', '.join(known)}; your own: {own})."
    )


@functools.cache
def written_options(name: str) -> tuple[str, ...] | None:
    """The options in the one constructor of a method's file; None if that is not clear without importing it."""
    file = method_files().get(name)
    if file is None or not file.is_file():
        return None
    classes = [node for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef)]
    methods = [one for one in classes if any(isinstance(base, ast.Name) and base.id == "Method" for base in one.bases)]
    makers = [
        node
        for kind in methods
        for node in kind.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg is None
    ]
    if len(methods) != 1 or len(makers) != 1:
        return None
    return tuple(one.arg for one in makers[0].args.kwonlyargs if one.arg not in SUPPLIED)


def require_known_methods(recipe: Recipe, *, origin: str) -> None:
    """Raise UserError for a method or an option of one that does not exist, as far as files tell."""
    named = {"method": recipe.method} | {f"compare.{number}": table for number, table in enumerate(recipe.compare)}
    for key, table in named.items():
        if is_outside(table.name):
            continue
        if table.name not in method_files():
            raise unknown_method(table.name, tuple(method_files()))
        known = written_options(table.name)
        if known is not None:
            require_options(table.name, table.options, known, place=f"{origin}: [{key}]", hint=recipe_key_hint)
