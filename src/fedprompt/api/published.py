"""Published experiments from Python: their runs, and our figures beside the published ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprompt.api.callbacks import joined
from fedprompt.api.training import SETTINGS
from fedprompt.arguments import as_path, keyed, listed, require, whole
from fedprompt.config.settings import setting
from fedprompt.errors import plural, worded
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.output_folder import require_study_folder
from fedprompt.studies import reproduce as published_experiments
from fedprompt.studies.published import experiment, experiments, sets, source, targets
from fedprompt.studies.sweep import run_all

if TYPE_CHECKING:
    import pandas

COLUMNS = ("table", "method", "figure", "published", "ours", "difference", "seeds")


def published() -> pandas.DataFrame:
    """The published experiments that `reproduce` runs: a row each.

    `name`, the `methods`, the `data_sets` whose folders must be in `root`, the number of `runs` over all seeds, where
    the training settings are from (`settings`), the `published` figures in sentences, and a `remark` on differences.

    Examples:
        >>> import fedprompt as fp
        >>> "fedmvp/base-to-new" in set(fp.published()["name"])
        True
    """
    import pandas

    rows = [
        {
            "name": about.name,
            "methods": tuple(str(method["name"]) for method in about.methods),
            "data_sets": sets(about),
            "runs": len(about.variants) * len(about.seeds),
            "settings": source(about),
            "published": tuple(targets(about)),
            "remark": about.remark,
        }
        for about in experiments().values()
    ]
    return pandas.DataFrame(rows)


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

    `name` is one of `published()`, `root` has a folder per data set, `out` is by default
    `runs/reproduce/NAME`, and `seeds` are by default the experiment's. `settings` are dotted keys of a recipe that
    differ from the published ones. A row per published figure: `published` and `ours` (the mean over `seeds`) in
    percent or in the unit that `figure` names. Raises UserError for an unknown experiment, an argument of another type
    and missing data, before the first run starts.
    """
    require(name, str, "name", "give the name of an experiment, such as 'fedmvp/base-to-new'; published() lists them")
    about, place = experiment(name), as_path(root, "root")
    folder = as_path(out, "out") if out is not None else Path("runs") / "reproduce" / name
    require_study_folder(folder)
    numbers = tuple(whole(seed, "seeds", least=0) for seed in listed(seeds, "seeds"))
    changes = [setting(key, value) for key, value in keyed(settings, "settings", SETTINGS).items()]
    with joined(callbacks, progress=progress) as listener:
        published_experiments.require_root(place)
        todo = published_experiments.jobs(about, root=place, out=folder, seeds=numbers, settings=changes)
        for caution in published_experiments.cautions(about, changes):
            listener.on_message(f"Note: {caution}")
        for done, _ in run_all(todo, callbacks=listener):
            listener.on_message(f"{done} of {plural(len(todo), 'run')} done.")
    found = published_experiments.differences(about, todo)
    if found:
        published_experiments.write(about, found, folder, settings=changes)
    import pandas

    rows = [
        (one.expected.table, one.method, one.expected.name, one.expected.value, one.mean, one.difference, len(one.ours))
        for one in found
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))
