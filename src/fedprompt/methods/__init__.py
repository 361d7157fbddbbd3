"""The registry of methods: one file per method, named like it; the keywords of its constructor are its options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from fedprompt.clip.backbone import Family
from fedprompt.clip.prompts import TEMPLATE
from fedprompt.config.blocks import option_parameters
from fedprompt.config.method_files import method_files, unknown_method
from fedprompt.errors import UserError, series
from fedprompt.methods.base import Method


def names() -> tuple[str, ...]:
    """The methods of this package, sorted: one per file."""
    return tuple(method_files())


def load(name: str) -> type[Method]:
    """Return a method's class: `"promptfl"` from this package, `"my_package.mine"` from anywhere.

    Raises UserError when there is no such method or its file does not define exactly one.
    """
    module = _import(name)
    found = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"The module {module.__name__} defines {len(found)} methods; it must define exactly one.")
    return found[0]


def require_method(value: object) -> type[Method]:
    """A class of a method, if all that a method must define is defined; UserError otherwise."""
    if not (inspect.isclass(value) and issubclass(value, Method)):
        raise UserError(f"A method is a name, a class derived from fedprompt.Method, or a table, not {value!r}.")
    if lacking := sorted(getattr(value, "__abstractmethods__", ())):
        raise UserError(f"{value.__name__} does not define {series(lacking)}, which every method must define.")
    return value


def method_summary(method: type[Method]) -> str:
    """What a method is and whose idea it is: the first line of its file."""
    return (inspect.getdoc(inspect.getmodule(method)) or "").split("\n")[0]


def missing(method: type[Method]) -> tuple[str, ...]:
    """The optional packages that a method needs and that are not installed."""
    return tuple(package for package in method.needs if find_spec(package) is None)


def installed() -> tuple[str, ...]:
    """The methods of this package whose optional packages are installed, sorted."""
    return tuple(name for name in names() if not missing(load(name)))


def refusal(method: type[Method], family: Family) -> str:
    """Why a method does not run on a family of backbones, in a sentence; "" if it does."""
    return family.refusal(method.requires, method.__name__)


def refused_by(family: Family) -> tuple[str, ...]:
    """The methods of this package that do not run on a family of backbones, sorted."""
    return tuple(name for name in names() if refusal(load(name), family))


def options(method: type[Method]) -> Mapping[str, inspect.Parameter]:
    """What a recipe's [method] table may set: the constructor's keywords, without the generator of initial draws."""
    return option_parameters(method)


def class_options(method: type[Method], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The option `classes` for a method that has it: the names of all classes that any client trains on."""
    return {"classes": tuple(classes)} if "classes" in options(method) else {}


def filled_options(
    method: type[Method], given: Mapping[str, object], classes: Sequence[str], template: str
) -> dict[str, object]:
    """The options that a run fills in: `classes`, if none are given, and the data set's template in place of `init`.

    An option `template` that is the data set's is left to it, so that it is known to be the same.
    """
    found: dict[str, object] = {name: own for name, own in class_options(method, classes).items() if not given[name]}
    if given.get("init") == TEMPLATE:
        found["init"] = template
    if given.get("template") == template:
        found["template"] = ""
    return found


def _import(name: str) -> ModuleType:
    if name in names():
        return import_module(f"{__name__}.{name}")
    if "." not in name:
        raise unknown_method(name, names())
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"The method {name!r} is not the name of a module; write package.module.")
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"The method {name!r} cannot be imported ({error}); check its name and installation."
        ) from error
