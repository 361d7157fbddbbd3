"""Models of the `llm` library and its plugins, remote or on this machine. `llm` is imported here and nowhere else."""

from __future__ import annotations

import os
import threading
from typing import Any

from pydantic import JsonValue

from fedprompt.descriptions.endpoint import Answer, Request, TransientError
from fedprompt.errors import UserError

MISSING = "A model without --url is one of the llm library; install it with: pip install 'fedprompt[llm]'."


class PluginModel:
    """A model by its name or alias in the `llm` library.

    Models on this machine take one request at a time. API keys come from the environment alone: the library's own key
    store is not read, and requests are not written to its log.
    """

    def __init__(self, model: str) -> None:
        try:
            import llm
        except ImportError as error:
            raise UserError(MISSING) from error
        try:
            self._model = llm.get_model(model)
        except llm.UnknownModelError:
            known = ", ".join(sorted(found.model.model_id for found in llm.get_models_with_aliases())[:20])
            raise UserError(f"The llm library knows no model {model!r} (known: {known}); install its plugin.") from None
        self._errors: tuple[type[Exception], ...] = (llm.ModelError, OSError, RuntimeError, ValueError)
        self._key = self._find_key()
        self._guard = threading.Lock()
        self.model = str(self._model.model_id)
        self.name = f"{self.model} through llm"
        self.parallel = 8 if self._key else 1

    def _find_key(self) -> str | None:
        if not self._model.needs_key:
            return None
        variable = self._model.key_env_var or ""
        key = os.environ.get(variable)
        if not key:
            raise UserError(f"The model {self._model.model_id} needs a key; set the variable {variable or '(none)'}.")
        return key

    def ask(self, request: Request) -> Answer:
        """Send the request, with those of its parameters that the model has as options."""
        if self.parallel > 1:
            return self._ask(request)
        with self._guard:
            return self._ask(request)

    def _ask(self, request: Request) -> Answer:
        options = self._options(request)
        arguments: dict[str, Any] = {**options}
        if self._key:
            arguments["key"] = self._key
        if self._model.supports_schema:
            arguments["schema"] = request.schema
        try:
            response = self._model.prompt(_flat(request), system=_system(request) or None, stream=False, **arguments)
            text, usage = response.text(), response.usage()
        except self._errors as error:  # plugins have no common exception
            raise TransientError(f"{type(error).__name__}: {_hide(str(error), self._key)[:200]}") from error
        return Answer(text, usage.input, usage.output, options)

    def _options(self, request: Request) -> dict[str, JsonValue]:
        wanted: dict[str, JsonValue] = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        return {name: value for name, value in wanted.items() if name in self._model.Options.model_fields}


def _system(request: Request) -> str:
    return "\n".join(message.text for message in request.messages if message.role == "system")


def _flat(request: Request) -> str:
    """The turns of a conversation as one prompt: plugins have no common way to pass earlier turns."""
    turns = [message for message in request.messages if message.role != "system"]
    labels = {"user": "Question", "assistant": "Answer"}
    if len(turns) == 1:
        return turns[0].text
    return "\n\n".join(f"{labels[turn.role]}: {turn.text}" for turn in turns) + "\n\nAnswer:"


def _hide(text: str, key: str | None) -> str:
    return text.replace(key, "***") if key else text
