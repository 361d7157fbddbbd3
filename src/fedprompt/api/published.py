"""Published experiments from Python: their runs, and our figures beside the published ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprompt.api.callbacks import joined
from fedprompt.arguments import as_path, require
from fedprompt.config.settings import setting
from fedprompt.errors import plural, worded
from fedprompt.experiments.context import RunCallbacks
from fedprompt.studies import reproduce as published
from fedprompt.studies.published import experiment
from fedprompt.studies.sweep import run_all

if TYPE_CHECKING:
    import pandas

COLUMNS = ("table", "method", "figure", "published", "ours", "difference", "seeds")


@worded("settings")
def reproduce(  # noqa: PLR0913  (as the command of that name)
    name: str,
    /,
    *,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    seeds: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    callbacks: RunCallbacks | Sequence[RunCallbacks] = (),
    progress: bool = True,
) -> pandas.DataFrame:
    """Run a published experiment, or go on with it, and compare our figures with the published ones.

    `name` is one of `fedprompt reproduce --list`, `root` has a folder per data set, `out` is by default
    `runs/reproduce/NAME`, and `seeds` are by default the experiment's. `settings` are dotted keys of a recipe that
    differ from the published ones. A row per published figure: `published` and `ours` (the mean over `seeds`) in
    percent or in the unit that `figure` names. Raises UserError for an unknown experiment and for missing data.
    """
    require(name, str, "name", "give the name of an experiment, such as 'fedmvp/base-to-new'")
    about, changes = experiment(name), [setting(key, value) for key, value in (settings or {}).items()]
    folder = as_path(out, "out") if out is not None else Path("runs") / "reproduce" / name
    todo = published.jobs(about, root=as_path(root, "root"), out=folder, seeds=tuple(seeds), settings=changes)
    with joined(callbacks, progress=progress) as listener:
        for caution in published.cautions(about, changes):
            listener.on_message(f"Note: {caution}")
        for done, _ in run_all(todo, callbacks=listener):
            listener.on_message(f"{done} of {plural(len(todo), 'run')} done.")
    found = published.differences(about, todo)
    if found:
        published.write(about, found, folder, settings=changes)
    import pandas

    rows = [
        (one.expected.table, one.method, one.expected.name, one.expected.value, one.mean, one.difference, len(one.ours))
        for one in found
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))
