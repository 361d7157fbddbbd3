"""Methods are found by their file's name, and every mistake in a name is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt import methods
from fedprompt.config.blocks import check_options
from fedprompt.errors import UserError
from fedprompt.methods.base import Method


def test_the_folder_is_the_registry() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert set(methods.names()) == files
    assert len({methods.load(name) for name in methods.names()}) == len(files)


def test_a_method_of_ones_own_is_loaded_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    mine = "from fedprompt.methods.base import Method\nclass Mine(Method):\n    pass\n"
    (tmp_path / "outsider").mkdir()
    (tmp_path / "outsider" / "mine.py").write_text(mine)
    (tmp_path / "outsider" / "two.py").write_text(mine + "class Other(Mine):\n    pass\n")
    (tmp_path / "outsider" / "none.py").write_text("from fedprompt.methods.base import Method\n")
    (tmp_path / "outsider" / "broken.py").write_text("import no_such_package\n")
    mine_class = methods.load("outsider.mine")
    assert issubclass(mine_class, Method) and mine_class.__name__ == "Mine"
    for name, sentence in [
        ("outsider.two", "outsider.two defines 2 methods; it must define exactly one"),
        ("outsider.none", "outsider.none defines 0 methods"),
        ("outsider.broken", "'outsider.broken' cannot be imported .*no_such_package"),
        ("outsider.absent", "'outsider.absent' cannot be imported"),
    ]:
        with pytest.raises(UserError, match=sentence):
            methods.load(name)


def test_a_misspelt_method_is_suggested() -> None:
    known = methods.names()[0]
    with pytest.raises(UserError, match=rf"no method '{known}x'; did you mean '{known}'\? \(known: .*{known}"):
        methods.load(known + "x")
    with pytest.raises(UserError, match="no method 'base'"):
        methods.load("base")


@pytest.mark.parametrize("name", methods.names())
def test_options_are_the_constructors_keywords(name: str) -> None:
    kind = methods.load(name)
    assert "generator" not in methods.options(kind)
    defaults = {option: parameter.default for option, parameter in methods.options(kind).items()}
    assert check_options(kind, {}, place="here") == defaults
    with pytest.raises(UserError, match=r"here: \w+ has no option 'no_such_option'"):
        check_options(kind, {"no_such_option": 1}, place="here")
