"""What every table of a recipe is, and the table of what the server does with what clients send."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

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


class Piece(Choice):
    """A table that names one piece by `name`."""

    name: str


class SecureTable(Table):
    """Secure aggregation: the server sees sums only, so only the plain mean goes with it."""

    share: float = Field(2 / 3, gt=0.5, le=1, description="share of a round's clients that must stay to its end")
    clip: float = Field(100.0, gt=0, description="L2 norm to which a client shortens its change")
    most_examples: int = Field(10_000, ge=1, description="the largest weight of a client, if weighting is by examples")


class AttackTable(Piece):
    """For simulations: some clients are broken, or lie."""

    adversaries: int = Field(2, ge=1, description="how many; the last clients are taken")


class ServerTable(Table):
    """What the server believes and does beyond a weighted mean, and what hides clients or pictures from it."""

    aggregate: Piece | None = Field(None, description="a rule in place of the method's own")
    optimizer: Piece | None = Field(None, description="the server's own step towards what the rule found")
    privacy: Piece | None = Field(None, description='"client" or "sample": whom the noise protects')
    secure: SecureTable | None = None
    attack: AttackTable | None = None
    most_examples: int = Field(10_000_000, ge=1, description="a claim of more training pictures is refused")
    norm_limit: float = Field(0.0, ge=0, description="refuse changes longer than this many medians; 0 refuses none")
