"""Finished and unfinished runs as tables, figures, reports and adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprompt.api.adapters import Adapter, given_clip, given_method
from fedprompt.arguments import as_path, listed, require, shown
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError, did_you_mean, worded
from fedprompt.experiments.adapters import unknown_trial
from fedprompt.file_system import TemporaryFolder, is_file, require_folder
from fedprompt.methods.base import Method
from fedprompt.records import reading, run_record
from fedprompt.records.predictions import predictions_path
from fedprompt.report import render
from fedprompt.report.comparison import by_seed
from fedprompt.report.figures import headline_drawing, loss_figure, score_figure
from fedprompt.report.inline import Figure, Page
from fedprompt.report.verdict import verdict

if TYPE_CHECKING:
    import pandas


class Run:
    """A run: tables of what it recorded, its figures and report, and the adapters that it trained.

    `fp.train`, `fp.run`, `fp.resume` and `fp.read_run` give one. `scores`, `rounds` and `intervals` are tidy, with
    values in [0, 1]; `table` is the report's, in percent. `records` has everything else, as typed values. What is read
    from the run's folder raises UserError if the folder is gone or damaged.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=2, test=2)
        >>> clients = fp.partition(data, "iid", clients=2)
        >>> run = fp.train("promptfl", fp.load_clip(), data, clients, rounds=1, compare="zeroshot", progress=False)
        >>> run.trials
        ('zeroshot', 'promptfl')
        >>> run.table.index.tolist()
        ['Zero-shot CLIP', 'PromptFL']
        >>> len(run.rounds)
        1
        >>> sorted(fp.compare(run).columns)
        ['column', 'run', 'seed', 'trial', 'value']
    """

    def __init__(
        self,
        folder: Path,
        *,
        clip: Clip | None = None,
        given: Mapping[str, type[Method]] | None = None,
        kept: TemporaryFolder | None = None,
    ) -> None:
        self.folder = folder
        self._clip = clip
        self._given = dict(given or {})
        self._kept = kept  # a temporary folder, which goes with this object

    @cached_property
    def records(self) -> run_record.Run:
        """Everything that the run recorded, as typed values."""
        return reading.read_run(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run has ended without an error."""
        return self.records.end is not None and self.records.end.status == "done"

    @property
    def trials(self) -> tuple[str, ...]:
        """The names of the trials, in the order of the tables: those without training first, the main one last."""
        return tuple(trial.name for trial in self.records.trials)

    @property
    def table(self) -> pandas.DataFrame:
        """The table of the report: a row per trial, a column per headline metric, in percent."""
        import pandas

        run = self.records
        rows = [
            {run.title(column): 100 * trial.figures[column] for column in run.columns if column in trial.figures}
            for trial in run.trials
        ]
        names = pandas.Index([trial.label for trial in run.trials], name="method")
        return pandas.DataFrame(rows, index=names, columns=[run.title(column) for column in run.columns])

    @property
    def scores(self) -> pandas.DataFrame:
        """All scores, tidy: trial, round, test_set, name, part, client, metric, images and value in [0, 1].

        `test_set` is a column of `table` ("base" is its "Base"), and `metric` each figure that was recorded: accuracy
        and macro_f1, or with several labels per image those of `Score` (classes_without_positive is a number of
        classes). A value that is undefined is NaN.
        """
        import pandas

        return pandas.DataFrame(list(self._scores()), columns=list(SCORE_COLUMNS)).astype({"client": "Int64"})

    def _scores(self) -> Iterator[Mapping[str, Any]]:
        for trial in self.records.trials:
            for score in trial.scores:
                about = {
                    "trial": trial.name,
                    "round": score.round,
                    "test_set": score.split,
                    "name": score.name,
                    "part": score.part,
                    "client": score.client,
                }
                for metric, value in score.figures.items():
                    yield {**about, "metric": metric, "images": score.num_examples, "value": value}

    @property
    def rounds(self) -> pandas.DataFrame:
        """A row per trial and round, in the order of training; empty for trials without training.

        `round` counts from 1. `clients` is the number of clients that were asked and `failed` of those whose update
        was not used. `loss` is the mean of the training losses of the others, each client's over its steps of the
        round; NaN in a round without an update. `bytes_up` are the bytes that all clients of the round sent,
        `seconds` is the wall time of the round, and `epsilon` the differential privacy spent up to it (at the delta
        of the recipe), NaN without.
        """
        import pandas

        rows = [
            {
                "trial": trial.name,
                "round": event.round,
                "clients": len(event.clients),
                "loss": event.loss,
                "bytes_up": sum(event.bytes_up.values()),
                "seconds": event.seconds,
                "failed": len(event.failed),
                "epsilon": event.epsilon,
            }
            for trial in self.records.trials
            for event in trial.rounds
        ]
        return pandas.DataFrame(rows, columns=list(ROUND_COLUMNS))

    @property
    def intervals(self) -> pandas.DataFrame:
        """95% intervals of figures, or of differences to the trial `against`, by bootstrap over the test images."""
        import pandas

        columns = ["trial", "column", "against", "value", "low", "high", "images"]
        rows = [{name: getattr(one, name) for name in columns} for one in self.records.intervals]
        return pandas.DataFrame(rows, columns=columns)

    def predictions(self, trial: str | None = None) -> pandas.DataFrame:
        """The predictions of a trial, by default the main one, for every test image; UserError if none are recorded."""
        import pandas

        path = predictions_path(self.folder, self._trial(trial).name)
        if not is_file(path):
            raise UserError(f"The trial {self._trial(trial).name!r} has no predictions yet; finish the run.")
        return pandas.read_parquet(path)

    @property
    def verdict(self) -> str:
        """What the figures show and what they do not, in sentences, and what to try next, a line each."""
        found = verdict(self.records)
        return "\n".join((" ".join(found.sentences), *(f"Next: {step}" for step in found.steps)))

    def plot(self, column: str | None = None) -> Figure:
        """The headline figures of all trials; with `column` ("base" or its heading "Base", "loss", ...) its curve.

        A curve is over the rounds, of scores in percent. A notebook shows it, and `plot().save("figure.png")` writes
        PNG or, with the suffix `.svg`, SVG. Raises UserError for an unknown column, and one that was recorded only
        once.
        """
        if column is None:
            return Figure(headline_drawing(self.records))
        require(column, str, "column", 'give a name, such as "base" or "loss"')
        column = {self.records.title(one): one for one in self.records.columns}.get(column, column)
        if column != "loss" and column not in self.records.columns:
            known = ("loss", *self.records.columns)
            hint = did_you_mean(column, known)
            raise UserError(f"The run has no column {column!r}{hint} (columns: {', '.join(known)}).")
        drawn = loss_figure(self.records) if column == "loss" else score_figure(self.records, column)
        if drawn is None:
            fix = 'train with settings={"evaluate.every": 1} for a curve'
            raise UserError(f"{column!r} was recorded less than twice; {fix}.")
        return Figure(drawn)

    def report(self) -> Page:
        """Write the HTML report again; the result shows it in a notebook, and its `path` is the file."""
        return Page(render(self.folder))

    @worded("keywords")
    def adapter(
        self, trial: str | None = None, *, method: type[Method] | None = None, clip: Clip | None = None
    ) -> Adapter:
        """The trained adapter of a trial, by default of the main one; UserError if it is not finished or not shared.

        A run that was read from its folder does not have what was given from Python: `method` is the class of a method
        of one's own, and `clip` a backbone that is open already.
        """
        given = {**self._given, **given_method(method)}
        return Adapter.of_run(self.folder, trial=trial, clip=given_clip(clip) or self._clip, given=given, keep=self)

    def _trial(self, name: str | None) -> run_record.TrialRecord:
        known = {trial.name: trial for trial in self.records.trials}
        main = self.records.main
        if name is None and main is not None:
            return main
        if name not in known:
            raise UserError(unknown_trial(str(name), known))
        return known[name]

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"Run of {', '.join(self.trials)} in {self.folder}, {state}"

    def _repr_html_(self) -> str:
        sentences = "<br>".join(escape(self.verdict).splitlines())
        return f"{self.table.style.format('{:.1f}', na_rep='').to_html()}<p>{sentences}</p>"


SCORE_COLUMNS = ("trial", "round", "test_set", "name", "part", "client", "metric", "images", "value")
ROUND_COLUMNS = ("trial", "round", "clients", "loss", "bytes_up", "seconds", "failed", "epsilon")


@worded("keywords")
def read_run(folder: str | os.PathLike[str], /) -> Run:
    """Open the folder of a run, finished or not, made by `out=` or on the command line; UserError if it is none."""
    place = as_path(folder, "folder")
    require_folder(place, "give the folder of a run")
    run = Run(place)
    run.records  # noqa: B018  (reads the file, so that an error comes here)
    return run


@worded("keywords")
def compare(runs: Run | str | os.PathLike[str] | Sequence[Run | str | os.PathLike[str]], /) -> pandas.DataFrame:
    """Figures of several runs of the same methods, tidy: run, seed, trial, column and value in [0, 1].

    `runs` is a run, its folder, or several of them. Raises UserError if there is none, one is given twice, or runs of
    one seed have different data or trials of the same name with different figures.
    `table.pivot_table(index="trial", columns="column", values="value", aggfunc=["mean", "std"])` gives means and
    standard deviations over seeds.
    """
    import pandas

    given = (runs,) if isinstance(runs, Run) else listed(runs, "runs")
    if wrong := [run for run in given if not isinstance(run, Run | str | os.PathLike)]:
        raise UserError(f"`runs` holds {shown(wrong[0])}; give runs, or the paths of their folders.")
    opened = [run if isinstance(run, Run) else read_run(run) for run in given]
    folders = [run.folder.resolve() for run in opened]
    if not folders:
        raise UserError("There is no run to compare; give runs or their folders.")
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"The run {twice} is given twice; means over it would count it twice.")
    by_seed([run.records for run in opened])  # which refuses what no table can hold
    rows = [
        {
            "run": str(run.folder),
            "seed": run.records.header.seed,
            "trial": trial.name,
            "column": column,
            "value": value,
        }
        for run in opened
        for trial in run.records.trials
        for column, value in trial.figures.items()
    ]
    return pandas.DataFrame(rows, columns=["run", "seed", "trial", "column", "value"])
