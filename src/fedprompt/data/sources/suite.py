"""Several published data sets in one federation: some are held by clients, others are for testing only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from fedprompt.data.dataset import Dataset
from fedprompt.data.images import OnStep
from fedprompt.data.joined import join
from fedprompt.data.published.catalog import Options, entry, folder_of
from fedprompt.data.sources.published import published
from fedprompt.errors import UserError


def suite(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    root: Path,
    sets: tuple[str, ...],
    targets: tuple[str, ...] = (),
    base: Literal["half", "all"] = "half",
    missing: Literal["refuse", "skip"] = "refuse",
    options: Mapping[str, Mapping[str, JsonValue]] | None = None,
    attributes: Path | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read `sets`, which are partitioned over clients set by set, and `targets`, all of whose classes are only tested.

    `options` are those of a data set's layout, by its name; `attributes` is a folder with a file of attributes per
    data set. Raises UserError for a data set that is named twice or not found.
    """
    names = (*sets, *targets)
    if not sets or len(set(names)) < len(names):
        raise UserError(f"A suite needs different data sets, and one to train on; it has {', '.join(names) or 'none'}.")
    own: Mapping[str, Options] = options or {}
    if foreign := sorted(set(own) - set(names)):
        raise UserError(f"The options name {foreign[0]!r}, which is not in the suite; it has {', '.join(names)}.")
    _require_folders(names, root)
    return join(
        [
            published(
                name=name,
                root=root,
                base=base if name in sets else "all",
                train=name in sets,
                missing=missing,
                options=own.get(name),
                attributes=attributes,
                seed=seed,
                on_step=on_step,
            )
            for name in names
        ]
    )


def _require_folders(names: Sequence[str], root: Path) -> None:
    """Look for all folders before the first is listed, which may take long; UserError naming all that are missing."""
    missing = [name for name in names if folder_of(name, root) is None]
    if len(missing) > 1:
        where = "".join(
            f"\n  {name}: {entry(name).origin} ({entry(name).size}; {entry(name).licence})" for name in missing
        )
        raise UserError(
            f"{len(missing)} of {len(names)} data sets are not in {root}. `fedprompt data info NAME` has the expected "
            f"tree; get them:{where}"
        )
