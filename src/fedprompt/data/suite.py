"""Several data sets in one federation: some that clients hold, others that the result is only tested on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from fedprompt.data.dataset import Dataset
from fedprompt.data.named import Options, named_set
from fedprompt.errors import UserError


def suite(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    root: Path,
    sets: tuple[str, ...],
    targets: tuple[str, ...] = (),
    base: Literal["half", "all"] = "half",
    missing: Literal["refuse", "skip"] = "refuse",
    options: Mapping[str, Mapping[str, JsonValue]] | None = None,
    seed: int = 1,
) -> tuple[Dataset, ...]:
    """Read `sets`, whose classes are dealt out to clients set by set, and `targets`, all classes, for testing alone.

    `options` are a data set's own by its name. Raises UserError for a set that is named twice or not there.
    """
    every = (*sets, *targets)
    if not sets or len(set(every)) < len(every):
        raise UserError(f"A suite needs different data sets, and one to train on; it has {', '.join(every) or 'none'}.")
    own: Mapping[str, Options] = options or {}
    if foreign := sorted(set(own) - set(every)):
        raise UserError(f"The options name {foreign[0]!r}, which is not in the suite; it has {', '.join(every)}.")
    return tuple(
        named_set(
            name=name,
            root=root,
            base=base if name in sets else "all",
            train=name in sets,
            missing=missing,
            options=own.get(name),
            seed=seed,
        )
        for name in every
    )
