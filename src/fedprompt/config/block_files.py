"""Names of sources and partition rules and their options, read from files without importing them, which takes seconds.

What is not clear from a file is left to `resolve`, which checks everything.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from fedprompt.config.blocks import SUPPLIED, require_options
from fedprompt.config.recipe import Recipe, recipe_key_hint
from fedprompt.config.registry import PARTITION_RULES, SOURCES, Registry


def require_known_options(recipe: Recipe, *, origin: str) -> None:
    """Raise UserError for an option that the source or the partition rule of a recipe does not have."""
    for key, table, name, registry in (
        ("data", recipe.data, recipe.data.source, SOURCES),
        ("partition", recipe.partition, recipe.partition.rule, PARTITION_RULES),
    ):
        known = written_block_options(registry).get(name)
        if known is not None:
            require_options(name, table.options, known, place=f"{origin}: [{key}]", hint=recipe_key_hint)


@functools.cache
def written_block_options(registry: Registry) -> dict[str, tuple[str, ...]]:
    """The options of the blocks of one kind, by name."""
    found = {}
    for file in _files(registry.places):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and _is_one(node, registry):
                found[node.name] = tuple(one.arg for one in node.args.kwonlyargs if one.arg not in SUPPLIED)
    return found


def _is_one(node: ast.FunctionDef, registry: Registry) -> bool:
    """Whether a function is a block of this kind, as `Registry` tells from its signature."""
    positional = tuple(one.arg for one in (*node.args.posonlyargs, *node.args.args))
    returned = ast.unparse(node.returns) if node.returns is not None else ""
    public, closed = not node.name.startswith("_"), node.args.vararg is None and node.args.kwarg is None
    return public and closed and positional == registry.takes and returned == registry.returns


def _files(places: tuple[str, ...]) -> Iterator[Path]:
    for place in places:
        package, _, module = place.rpartition(".")
        folders = map(Path, getattr(find_spec(package), "submodule_search_locations", None) or ())
        for folder in folders:
            own = folder / module
            yield from sorted(own.glob("*.py")) if own.is_dir() else [own.with_suffix(".py")]
