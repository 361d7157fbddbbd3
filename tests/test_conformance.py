"""The conformance batteries of `fedprompt.testing`, run over all registries: this file names nothing that it tests.

One class per method, rule, source, optimiser or attack, so that processes share the work. Options of sources that read
files are written by functions of `source_files`, called like the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

import source_files
from fedprompt import methods
from fedprompt.config.registry import AGGREGATION_RULES, ATTACKS, PARTITION_RULES, SERVER_OPTIMIZERS, SOURCES
from fedprompt.testing import (
    AggregationRuleTests,
    AttackTests,
    MethodTests,
    PartitionRuleTests,
    ServerOptimizerTests,
    SourceTests,
)

INSTALLED = methods.installed()


def _classes(battery: type, attribute: str, names: Iterable[str]) -> dict[str, type]:
    """A class of tests per name, called like the battery and the name."""
    what = battery.__name__.removesuffix("Tests")
    return {f"Test{what}_{name}": type(f"Test{what}_{name}", (battery,), {attribute: name}) for name in names}


globals().update(_classes(MethodTests, "method", INSTALLED))
globals().update(_classes(PartitionRuleTests, "rule", PARTITION_RULES.names()))
globals().update(_classes(AggregationRuleTests, "rule", AGGREGATION_RULES.names()))
globals().update(_classes(ServerOptimizerTests, "optimizer", SERVER_OPTIMIZERS.names()))
globals().update(_classes(AttackTests, "attack", ATTACKS.names()))
for _title, _class in _classes(SourceTests, "source", filter(partial(hasattr, source_files), SOURCES.names())).items():
    _class.options = staticmethod(getattr(source_files, _class.source))
    globals()[_title] = _class
del _class


@pytest.mark.parametrize("name", SOURCES.names())
def test_every_source_is_tested(name: str) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert hasattr(source_files, name) or re.search(rf'source = "{name}"', tests), (
        f"Write a function {name}(folder, content) in tests/source_files.py, or a class of SourceTests for it."
    )
