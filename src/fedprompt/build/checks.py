"""What is checked before a run starts or goes on: that pictures open, and that it is still the run that it was."""

from __future__ import annotations

from fedprompt.build.desk import Watch
from fedprompt.build.experiment import Experiment
from fedprompt.build.wording import fingerprint
from fedprompt.data.check import check
from fedprompt.data.dataset import Dataset
from fedprompt.data.readers import FileSource
from fedprompt.errors import UserError
from fedprompt.records import RunFolder


def inspect(dataset: Dataset, watch: Watch) -> None:
    """Open every picture file; UserError if one cannot be read, a warning for anything else that is odd."""
    if not all(isinstance(part.source, FileSource) for part in dataset.parts):
        return
    watch.step("Opening every picture")
    problems = check(dataset, on_image=watch.moved)
    unreadable = [problem for problem in problems if problem.kind == "unreadable"]
    if unreadable:
        more = f" ({len(unreadable) - 1} more; list them with: fedprompt check RECIPE)" if len(unreadable) > 1 else ""
        raise UserError(unreadable[0].message + more)
    for problem in problems:
        watch.warn(problem.message)


def check_same(run: RunFolder, experiment: Experiment) -> None:
    """UserError if backbone, data or words are no longer those that the run began with."""
    header = next((event for event in run.events() if event["event"] == "header"), None)
    if header is None:
        raise UserError(
            f"The run {run.path} stopped before it had recorded anything; delete the folder and start again."
        )
    dataset = experiment.dataset
    for what, before, now in (
        ("backbone", header["backbone"]["fingerprint"], experiment.clip.fingerprint),
        ("data", header["data"]["fingerprint"], dataset.source.fingerprint),
        *(
            ("words file", before, fingerprint(experiment.worded[name]))
            for name, before in header.get("words", {}).items()
        ),
    ):
        if before != now:
            raise UserError(
                f"The run {run.path} began with another {what} (fingerprint {before[:12]}, now {now[:12]}); "
                f"put the old {what} back, or start a new run."
            )
