"""Experiment trackers that follow a run: TensorBoard, Weights & Biases, MLflow and others, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedprompt.config.recipe import Recipe
from fedprompt.config.settings import dotted
from fedprompt.errors import UserError, did_you_mean
from fedprompt.experiments.context import JoinedCallbacks, RunCallbacks, RunContext
from fedprompt.experiments.plan import Trial
from fedprompt.records.events import ScoreEvent

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

FOLDER = "trackers"  # in a run's folder
# Where trackers write unless the user's own variables say otherwise: into the run's folder, and to no server.
LOCAL = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": "{folder}", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_TRACKING_URI": "sqlite:///{folder}/mlflow.db"},
}
# Trackers whose keywords differ from accelerate's usual ones.
KEYWORDS: Mapping[str, Callable[[str, str, Path], Mapping[str, Any]]] = {
    "wandb": lambda project, trial, folder: {"run_name": project, "name": trial, "reinit": "create_new"},
    "mlflow": lambda project, trial, folder: {
        "experiment_name": project,
        "run_name": trial,
        "logging_dir": (folder / "artifacts").as_uri(),
    },
}
# How a file is kept; accelerate has no common call for it. Other trackers get its path as text.
ARTIFACTS: Mapping[str, Callable[[Any, Path], object]] = {
    "wandb": lambda tracker, path: tracker.tracker.save(str(path), base_path=str(path.parent), policy="now"),
    "mlflow": lambda tracker, path: _mlflow_client().log_artifact(tracker.tracker.info.run_id, str(path)),
}
STAY_OPEN = ("wandb",)  # trackers that take no file once a run of theirs has ended
# How parameters are stored where accelerate makes another run for them (TensorBoard), or asks for the only open one.
CONFIGURATIONS: Mapping[str, Callable[[Any, Mapping[str, Any]], object]] = {
    "tensorboard": lambda tracker, values: _add_to_writer(tracker.tracker, values),
    "wandb": lambda tracker, values: tracker.tracker.config.update(values, allow_val_change=True),
}


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is unknown or whose package is not installed."""
    if not names:
        return
    if find_spec("accelerate") is None:
        raise UserError("Trackers need the package accelerate; install it with: pip install 'fedprompt[track]'.")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = sorted(LOGGER_TYPE_TO_CLASS)
            raise UserError(f"There is no tracker {name!r}{did_you_mean(name, known)} (trackers: {', '.join(known)}).")
        if name not in {str(one.value) for one in get_available_trackers()}:
            raise UserError(f"The tracker {name!r} needs its package; install it with: pip install {name}.")


class Tracking(RunCallbacks):
    """Callbacks that send the losses and scores of every trial to trackers; one that fails is left out from then on.

    A trial is one run of a tracker. Scores of several clients or domains are sent as their mean. The report goes to the
    run of the trial with the label `main`; to the last one if that was trained before the run was resumed.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        warn: Callable[[str], None],
        *,
        main: str,
        trials: Sequence[Trial] = (),
    ) -> None:
        self._recipe = recipe
        self._parameters = {trial.label: parameters_of(recipe, trial) for trial in trials}
        self._folder = folder
        self._warn = warn
        self._names = list(recipe.track)
        self._open: dict[str, GeneralTracker] = {}
        self._main = main
        self._is_main, self._had_main = False, False
        self._awaiting: dict[str, GeneralTracker] = {}  # trackers of the main trial, which take the report at the end
        self._scores: dict[str, list[float]] = {}
        self._step = 0

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """End the runs of the last trial and begin those of this one."""
        self._end()
        self._step, self._is_main = done, name == self._main
        self._had_main = self._had_main or self._is_main
        for tracker in tuple(self._names):
            self._call(tracker, partial(self._start, tracker, name))

    def on_score(self, score: ScoreEvent) -> None:
        """Gather the scores of a round."""
        # W&B takes steps only upwards, but the figures of a kept round come after those of the last one.
        if score.round > self._step:
            self._send({})
            self._step = score.round
        for metric, value in score.figures.items():
            if value is not None and isfinite(value):
                key = "/".join(filter(None, (score.split, score.part, metric)))
                self._scores.setdefault(key, []).append(value)

    def on_round(self, number: int, loss: float | None) -> None:
        """Send the loss of a round and the scores after it."""
        self._step = max(self._step, number)
        self._send({} if loss is None else {"loss": loss})

    def finish(self) -> None:
        """Send the last scores and the report, and end the runs."""
        report = self._folder / "report.html"
        self._is_main = self._is_main or not self._had_main
        self._end()
        for name, tracker in self._awaiting.items():
            if report.is_file():
                self._call(name, partial(ARTIFACTS[name], tracker, report))
            if name in STAY_OPEN:
                self._call(name, tracker.finish)

    def _send(self, values: Mapping[str, float]) -> None:
        scores = {key: fmean(found) for key, found in self._scores.items()}
        self._scores = {}
        if values or scores:
            for name, tracker in tuple(self._open.items()):
                self._call(name, partial(tracker.log, {**values, **scores}, step=self._step))

    def _end(self) -> None:
        self._send({})
        for name, tracker in tuple(self._open.items()):
            if self._is_main and name in ARTIFACTS:
                self._awaiting[name] = tracker
            elif self._is_main:
                self._call(name, partial(tracker.log, {"report": str(self._folder / "report.html")}))
            if not (self._is_main and name in STAY_OPEN):
                self._call(name, tracker.finish)
        self._open = {}

    def _start(self, name: str, trial: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, folder = LOGGER_TYPE_TO_CLASS[name], self._place(name)
        folder.mkdir(parents=True, exist_ok=True)
        usual: dict[str, Any] = {"run_name": trial}
        if kind.requires_logging_directory:
            usual["logging_dir"] = str(folder)
        special = KEYWORDS.get(name)
        tracker = kind(**(usual if special is None else special(self._recipe.name, trial, folder)))
        tracker.start()
        self._open[name] = tracker
        configure = CONFIGURATIONS.get(name)
        if configure is None:
            tracker.store_init_configuration(self._parameters.get(trial, {}))
        else:
            configure(tracker, self._parameters.get(trial, {}))

    def _place(self, name: str) -> Path:
        return (self._folder / FOLDER / name).resolve()

    def _call(self, name: str, action: Callable[[], object]) -> None:
        """Call a tracker; leave it out if it fails, for a run does not depend on it."""
        if name not in self._names:
            return
        try:
            with _environment(LOCAL.get(name, {}), self._place(name)):
                action()
        except Exception as error:  # whatever a tracker may raise
            self._names.remove(name)
            self._open.pop(name, None)
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            self._warn(f"The tracker {name!r} failed and is left out ({type(error).__name__}: {reason}).")


def _mlflow_client() -> Any:
    import mlflow

    return mlflow.MlflowClient()


def _add_to_writer(writer: Any, values: Mapping[str, Any]) -> None:
    """Write hyper-parameters into the run of a `SummaryWriter`; its own method makes another run for them."""
    from torch.utils.tensorboard import summary as summaries

    hparams: Callable[..., Iterable[Any]] = summaries.hparams
    for summary in hparams(dict(values), {}):
        writer.file_writer.add_summary(summary)


def parameters_of(recipe: Recipe, trial: Trial) -> dict[str, str | int | float | bool]:
    """The dotted keys of a recipe as one of its trials has them, with values that trackers take; lists are text."""
    table = next(one for one in (recipe.method, *recipe.compare) if one.title == trial.name)
    tables = recipe.model_dump(mode="json", exclude_none=True, exclude={"method", "compare"})
    for name, own in (("train", table.train), ("descriptions", table.descriptions)):
        tables[name] = {**tables[name], **own}
    tables["method"] = {"name": trial.method, "label": table.label, **trial.options}
    found = {key: value for key, value in dotted(tables) if value is not None}
    return {key: value if isinstance(value, str | int | float) else str(value) for key, value in found.items()}


@contextmanager
def _environment(variables: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Set variables that the user has not set, while the block runs."""
    added = {key: value.format(folder=folder) for key, value in variables.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def tracked(context: RunContext) -> Iterator[RunContext]:
    """The context of a run whose recipe names trackers, with callbacks that tell them; else the context itself."""
    recipe = context.experiment.recipe
    if not recipe.track:
        yield context
        return
    trials = context.experiment.trials
    tracking = Tracking(recipe, context.run.path, context.callbacks.on_warning, main=trials[0].label, trials=trials)
    try:
        yield replace(context, callbacks=JoinedCallbacks((context.callbacks, tracking)))
    finally:
        tracking.finish()
