"""What all conformance tests share: running all of one class, impossible values of options, global generators."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints

import numpy
import torch

from fedprompt.config.blocks import option_parameters
from fedprompt.config.registry import Registry
from fedprompt.config.values import Infinity, Signed
from fedprompt.errors import UserError, series
from fedprompt.updates import State

# Values that no option of a type can have; seeds are exempt.
IMPOSSIBLE: Mapping[Any, tuple[Any, ...]] = {int: (-1,), float: (-1.0, math.nan, math.inf)}


def check(group: type, **subject: object) -> None:
    """Run all conformance tests of a class on a subject, in order; AssertionError for the first that does not hold."""
    tests = type(f"{group.__name__}Of", (group,), {name: _as_attribute(value) for name, value in subject.items()})()
    for name in dict.fromkeys(name for kind in reversed(type(tests).__mro__) for name in vars(kind)):
        if name.startswith("test_"):
            _run(getattr(tests, name))


def _run(test: Callable[[], None]) -> None:
    """Run one test; an error that is not of its own words is said to have ended it."""
    try:
        test()
    except (AssertionError, UserError):
        raise
    except Exception as error:
        promise = (inspect.getdoc(test) or test.__name__).split("\n")[0]
        raise AssertionError(f'"{promise}" cannot be checked: {type(error).__name__}: {error}') from error


def _as_attribute(value: object) -> object:
    return staticmethod(value) if inspect.isfunction(value) else value


def builder_of(tests: object, attribute: str, registry: Registry) -> Callable[..., Any]:
    """The builder that an attribute of the tests holds, or names as a recipe does."""
    value = inspect.getattr_static(tests, attribute)  # getattr would bind a function to the tests
    value = value.__func__ if isinstance(value, staticmethod) else value
    return registry.find(value, place=f"{type(tests).__name__}.{attribute}") if isinstance(value, str) else value


def assert_options_are_keywords(builder: Callable[..., Any], *, positional: tuple[str, ...], defaults: bool) -> None:
    """A recipe sets options by name and may leave them out, so they are keyword-only, typed, and have defaults."""
    name = getattr(builder, "__name__", str(builder))
    parameters, hints = inspect.signature(builder).parameters, get_type_hints(builder)
    found = tuple(key for key, one in parameters.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY)
    assert found == positional, (
        f"{name} takes the positional parameters {found}, but must take {positional}; put options behind a star."
    )
    for key, option in option_parameters(builder).items():
        assert key in hints, f"The option {key} of {name} has no type, so values cannot be checked; annotate it."
        assert not defaults or option.default is not inspect.Parameter.empty, (
            f"The option {key} of {name} has no default, so a recipe that only names {name} would fail; give it one."
        )


def assert_refuses_impossible_options(
    builder: Callable[..., Any], build: Callable[[Mapping[str, Any]], object], *, exempt: tuple[str, ...] = ("seed",)
) -> None:
    """`build` must refuse each impossible value of an option with a `UserError` that names the option."""
    hints = get_type_hints(builder, include_extras=True)
    for option in option_parameters(builder):
        if option not in exempt:
            for value in impossible_values(hints[option]):
                assert_refused(option, value, lambda chosen: build(chosen))


def impossible_values(annotation: Any) -> tuple[Any, ...]:
    """Numbers that make no sense for an option of this type; a recipe refuses values of another type by itself.

    Numbers below zero are among them unless the type is declared as `OrNegative`, infinity unless as `OrInfinite`.
    """
    kinds = get_args(annotation) or (annotation,)
    values = next((IMPOSSIBLE[kind] for kind in kinds if isinstance(kind, Hashable) and kind in IMPOSSIBLE), ())
    infinite = any(isinstance(kind, Infinity) for kind in kinds)  # of `OrInfinite`
    signed = any(isinstance(kind, Signed) for kind in kinds)  # of `OrNegative`
    return tuple(value for value in values if not ((infinite and value == math.inf) or (signed and value < 0)))


def assert_refused(option: str, value: object, build: Callable[[Mapping[str, Any]], object]) -> None:
    """AssertionError unless building with this value of an option raises a `UserError` that names the option."""
    try:
        build({option: value})
    except UserError as error:
        assert option in str(error), (
            f"The error for {option} = {value!r} does not name the option, so nobody can find it: {error}"
        )
    else:
        negative = isinstance(value, int | float) and value < 0
        hint = ", or declare its type as OrNegative (fedprompt.config.values)" if negative else ""
        raise AssertionError(f"{option} = {value!r} makes no sense but is accepted; raise a UserError on it{hint}.")


@contextmanager
def untouched_generators(what: str) -> Iterator[None]:
    """AssertionError if the global generator of Python, NumPy or torch has been used when the block ends."""
    before = _global_generators()
    yield
    used = [name for name, state in _global_generators().items() if state != before[name]]
    assert not used, (
        f"{what} draws from the global generator of {series(used)}, so its results depend on what ran before; "
        "draw from fedprompt.seeding.stream(seed, ...)."
    )


def _global_generators() -> Mapping[str, str]:
    numbers = numpy.random.get_state(legacy=False)
    return {
        "Python": str(random.getstate()),
        "NumPy": str(numbers["state"]["key"].tolist()) + str(numbers["state"]["pos"]),
        "torch": str(torch.get_rng_state().tolist()),
    }


def differing(ours: State, theirs: State) -> list[str]:
    """Names of tensors that only one state has, or that differ in any bit."""
    both = ours.keys() & theirs.keys()
    return sorted((ours.keys() ^ theirs.keys()) | {name for name in both if not torch.equal(ours[name], theirs[name])})


def largest_difference(ours: State, theirs: State) -> float:
    """The largest absolute difference of two states with the same tensors; NaN if one holds a NaN."""
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)
