"""Registries of building blocks: sources, partition rules, aggregation rules, server optimisers, privacy, attacks.

A block is registered by being there: a public function of a scanned module whose return type and positional parameters
are those of its kind. Its name is what a recipe calls it; its keyword-only parameters are its options.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from fedprompt.errors import UserError, did_you_mean

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
Builder = Callable[..., Any]
Marked = TypeVar("Marked", bound=Builder)


@dataclass(frozen=True)
class Registry:
    """All building blocks of one kind, found by scanning modules at the first look-up.

    `places` are packages, of which every module is scanned, or single modules. `returns` is the name of the return type
    and `takes` are the names of the positional parameters. With `classes`, the blocks are the subclasses of `returns`
    instead, and the kind is left out of their names: ClientPrivacy of the kind "privacy" is called "client".
    """

    what: str
    places: tuple[str, ...]
    returns: str
    takes: tuple[str, ...] = ()
    classes: bool = False

    def names(self) -> tuple[str, ...]:
        """What a recipe may call a block, sorted."""
        return tuple(self.builders)

    @cached_property
    def builders(self) -> Mapping[str, Builder]:
        """Every block by its name, sorted; UserError if two have the same name."""
        found: dict[str, Builder] = {}
        for module in self._modules():
            for builder in filter(self._is_one, _defined_in(module)):
                name = self._name(builder)
                if name in found:
                    raise UserError(
                        f"Two blocks of the kind {self.what!r} are called {name!r}: {_address(found[name])} and "
                        f"{_address(builder)}; rename one of them."
                    )
                found[name] = builder
        return MappingProxyType(dict(sorted(found.items())))

    def find(self, name: str, *, place: str) -> Builder:
        """The block with a name, or code of one's own as `package.module:function`.

        Raises UserError if there is none; `place` ("demo.toml: [data] source") says where the name stands.
        """
        if name in self.builders:
            return self.builders[name]
        module, colon, function = name.partition(":")
        if not colon:
            raise UserError(
                f"{place}: there is no {self.what} {name!r}{did_you_mean(name, self.names())} "
                f"(known: {', '.join(self.names())}; your own: package.module:function)."
            )
        try:
            if not all(part.isidentifier() for part in (*module.split("."), function)):
                raise ImportError("it is not of the form package.module:function")
            builder: Builder = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{place}: {name!r} cannot be imported ({error}); check the module and the function's name."
            ) from error
        return self.own(builder, name, place=place)

    def own(self, builder: Builder, name: str, *, place: str) -> Builder:
        """Code of one's own; UserError if it does not take what a block of this kind is given."""
        if not self._may_be_called(builder):
            form = f"({', '.join((*self.takes, '*', 'options'))}) -> {self.returns}"
            raise UserError(f"{place}: {name!r} is no {self.what}; give a function {form}.")
        return builder

    def _may_be_called(self, builder: object) -> bool:
        try:
            signature = inspect.signature(builder)  # type: ignore[arg-type]
            signature.bind_partial(*self.takes)
        except (TypeError, ValueError):  # it is no function, has no readable signature, or takes fewer objects
            return False
        if self.classes:  # whose constructors may name their options in any way
            return True
        positional = [one for one in signature.parameters.values() if one.kind in POSITIONAL]
        return all(one.default is not one.empty for one in positional[len(self.takes) :])

    def _modules(self) -> Iterator[ModuleType]:
        for place in self.places:
            module = import_module(place)
            yield module
            for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
                yield import_module(f"{place}.{inner.name}")

    def _is_one(self, builder: Builder) -> bool:
        if inspect.isclass(builder) or self.classes:
            return self.classes and self.returns in {base.__name__ for base in getattr(builder, "__bases__", ())}
        signature = inspect.signature(builder)
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        positional = tuple(name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY)
        return positional == self.takes and _type_name(signature.return_annotation) == self.returns

    def _name(self, builder: Builder) -> str:
        if not inspect.isclass(builder):
            return builder.__name__
        words = re.findall("[A-Z][a-z0-9]*", builder.__name__.removesuffix(self.what.title()))
        return "_".join(words).lower()


def _defined_in(module: ModuleType) -> Iterator[Builder]:
    """The public functions and classes that a module defines itself."""
    for name, value in vars(module).items():
        own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        if own and not name.startswith("_"):
            yield value


def _type_name(annotation: object) -> str:
    """The last part of a type's name: an annotation is text where annotations are postponed."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.strip("'\"").rpartition(".")[2]


def _address(builder: Builder) -> str:
    return f"{builder.__module__}:{builder.__name__}"


def at_sites(builder: Marked) -> Marked:
    """Mark a source whose images stay at the sites of a federation, or a partition rule whose clients are its sites."""
    builder.at_sites = True  # type: ignore[attr-defined]
    return builder


def is_at_sites(builder: Builder) -> bool:
    """Whether a source or a partition rule is marked by `at_sites`."""
    return bool(getattr(builder, "at_sites", False))


def recognised_by(test: Callable[[Path], bool], *, last: bool = False) -> Callable[[Marked], Marked]:
    """Mark a source with a test that tells from names and heads of files whether a path is in the source's form.

    One that is `last` reads what no other source recognises.
    """

    def mark(builder: Marked) -> Marked:
        builder.recognises, builder.recognised_last = test, last  # type: ignore[attr-defined]
        return builder

    return mark


def _recognises(source: Builder, path: Path) -> bool:
    test: Callable[[Path], bool] | None = getattr(source, "recognises", None)
    return test is not None and test(path)


def sources_of(path: Path) -> tuple[str, ...]:
    """The names of the sources that recognise a file or folder."""
    found = [name for name, source in SOURCES.builders.items() if _recognises(source, path)]
    first = [name for name in found if not getattr(SOURCES.builders[name], "recognised_last", False)]
    return tuple(first or found)


SOURCES = Registry("source", ("fedprompt.data.sources", "fedprompt.demo.emoji", "fedprompt.demo.scenes"), "Dataset")
PARTITION_RULES = Registry("partition rule", ("fedprompt.data.partition",), "Partition", ("dataset",))
AGGREGATION_RULES = Registry("aggregation rule", ("fedprompt.federated.aggregation",), "AggregationRule")
SERVER_OPTIMIZERS = Registry("server optimiser", ("fedprompt.federated.server_optimizers",), "ServerOptimizer")
PRIVACY = Registry("privacy", ("fedprompt.federated.privacy",), "GaussianPrivacy", classes=True)
ATTACKS = Registry("attack", ("fedprompt.federated.attacks",), "Attack")
