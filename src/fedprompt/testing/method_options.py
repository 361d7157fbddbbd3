"""The conformance tests of the options of methods: each has a default, an effect, and impossible values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import LargeLossError, UserError
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Method
from fedprompt.testing import federation
from fedprompt.testing.federation import SETTINGS, SPACE, batch, shared_clip
from fedprompt.testing.properties import assert_refused, differing, impossible_values
from fedprompt.updates import State

# Values at which an option is tried besides its default, by its type.
VALUES: Mapping[Any, tuple[Any, ...]] = {
    bool: (False, True),
    int: (2, 1, 0),
    float: (1e3, 0.5, 0.0),
    str: ("", "the", "the {} tree."),
    tuple[str, ...]: (("dog", "cat"), ()),
}


class MethodOptionTests:
    """Properties of a method's options, and how the tests build and train the method."""

    method: ClassVar[str | type[Method]]
    options: ClassVar[Mapping[str, object]] = {}
    family: ClassVar[str] = "clip"

    def test_options_are_keywords_with_defaults(self) -> None:
        """The constructor is `(clip, *, options with defaults, generator)`."""
        name, (clip, *options) = self._name, inspect.signature(self._kind).parameters.values()
        assert clip.name == "clip" and options[-1].name == "generator", (
            f"The constructor of {name} must take clip first and generator last, not {clip.name} and "
            f"{options[-1].name if options else 'nothing'}."
        )
        positional = [option.name for option in options if option.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert not positional, f"The options {positional} of {name} must be keyword-only; put them behind a star."
        bare = [option.name for option in options if option.default is inspect.Parameter.empty]
        assert not bare, f"The options {bare} of {name} have no default."
        untyped = [key for key, one in methods.options(self._kind).items() if one.annotation is inspect.Parameter.empty]
        assert not untyped, f"The options {untyped} of {name} have no type, so values cannot be checked; annotate them."

    def test_every_option_does_something(self) -> None:
        """Other values change what is trained or predicted, or are refused with the option's name."""
        for option in methods.options(self._kind):
            changes, refusals = 0, ""
            for value in self._other_values(option):
                try:
                    changed = self._trained_state({option: value})
                except LargeLossError:  # the loss rises above what a server takes, which is a difference too
                    changes += 1
                    continue
                except UserError as refusal:
                    assert option in str(refusal), f"{option} = {value!r} is refused without its name: {refusal}"
                    refusals += str(refusal)
                    continue
                assert all(tensor.isfinite().all() for tensor in changed.values()), (
                    f"Training with {option} = {value!r} gives tensors that are not finite."
                )
                changes += bool(differing(changed, self._default_state))
                changes += not torch.equal(self._initial_logits({option: value}), self._initial_logits())
            together = any(other in refusals for other in methods.options(self._kind) if other != option)
            assert changes or together, f"The option {option} changes neither what is trained nor what is predicted."

    def test_impossible_options_are_refused(self) -> None:
        """A negative count, a number that is none, or an unknown word raises a `UserError` that names the option."""
        annotations = get_type_hints(self._kind.__init__, include_extras=True)
        for option in methods.options(self._kind):
            words = ("nonsense",) if get_origin(annotations[option]) is Literal else ()
            for value in (*words, *impossible_values(annotations[option])):
                assert_refused(option, value, self._build)

    @property
    def _kind(self) -> type[Method]:
        return methods.load(self.method) if isinstance(self.method, str) else self.method

    @property
    def _clip(self) -> Clip:
        return shared_clip(self.family)

    @property
    def _name(self) -> str:
        return self._kind.__name__

    def _build(self, options: Mapping[str, object] | None = None, *, seed: int = SETTINGS.seed) -> Method:
        return federation.build(self._kind, self._clip, {**self.options, **(options or {})}, seed=seed)

    def _trained_state(self, options: Mapping[str, object] | None = None, *, clip: Clip | None = None) -> State:
        """What two rounds of three clients leave behind."""
        return _trained_state(self._kind, clip or self._clip, tuple({**self.options, **(options or {})}.items()))

    @property
    def _default_state(self) -> State:
        return self._trained_state()

    def _initial_logits(self, options: Mapping[str, object] | None = None) -> Tensor:
        return self._predict(self._build(options), SPACE, 0, 1)

    def _predict(self, method: Method, space: LabelSpace, *rows: int) -> Tensor:
        return predict(method, self._clip, batch(*rows), space)

    def _other_values(self, option: str) -> tuple[Any, ...]:
        """Values of an option that differ from the one that it is tested with."""
        annotation = get_type_hints(self._kind.__init__)[option]
        set_ = {**methods.class_options(self._kind, SPACE.names), **self.options}
        default = set_.get(option, methods.options(self._kind)[option].default)
        values = get_args(annotation) if get_origin(annotation) is Literal else VALUES.get(annotation)
        assert values is not None, (
            f"The option {option} of {self._name} has the type {annotation}; use one of bool, int, float, str, "
            "tuple[str, ...] and Literal, which recipes can write."
        )
        return tuple(value for value in values if value != default)


@functools.lru_cache(maxsize=8)  # a test compares many values of options with the default's result
def _trained_state(kind: type[Method], clip: Clip, options: tuple[tuple[str, object], ...]) -> State:
    method = federation.build(kind, clip, dict(options))
    return federation.trained_state(method, federation.simulator(method, clip))
