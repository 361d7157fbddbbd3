"""What every table of a recipe is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

Toml = dict[str, Any]


class Table(BaseModel):
    """A recipe table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(BaseModel):
    """A recipe table that names a piece; its other keys are that piece's keyword arguments, by its signature."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> Toml:
        """The keys that belong to the named piece."""
        return dict(self.model_extra or {})
