"""Checks before a run starts or resumes: warnings about images, and that backbone, data and texts are unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from fedprompt.data.problems import find_problems
from fedprompt.errors import UserError, plural
from fedprompt.experiments.class_descriptions import text_fingerprint
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.test_sets import TestSet
from fedprompt.records.events import HeaderEvent
from fedprompt.records.run_folder import RunFolder


def warn_of_problems(experiment: Experiment, callbacks: RunCallbacks) -> None:
    """Warn of what the reader of the data set found, of images that are left out, and of other problems of images."""
    for warning in experiment.dataset.report.all_warnings():
        callbacks.on_warning(warning)
    if lost := experiment.left_out:
        some = f"Left out because they cannot be read: {plural(len(lost), 'image')}, listed in run.jsonl."
        callbacks.on_warning(f"{some} {lost[0].reason}")
    found: dict[str, list[str]] = {}
    for problem in find_problems(experiment.dataset, experiment.looked) if experiment.looked.digests else ():
        found.setdefault(problem.kind, []).append(problem.message)
    for messages in (own for kind, own in found.items() if kind != "unreadable"):
        more = (
            f" {len(messages) - 1} more like this are listed by: fedprompt check RECIPE." if len(messages) > 1 else ""
        )
        callbacks.on_warning(messages[0] + more)


def warn_of_missing_tests(experiment: Experiment, test_sets: Sequence[TestSet], callbacks: RunCallbacks) -> None:
    """Warn before training if there is no image to test with; sites may have test images of their own."""
    if test_sets or (experiment.plan.data_at_sites and experiment.recipe.evaluate.local):
        return
    callbacks.on_warning(
        f"The data set {experiment.dataset.name!r} has no test images, so this run will train and test nothing. If "
        "that is not meant, stop it and give the data set a test part, or a share of its images to test with."
    )


def header_of(run: RunFolder) -> HeaderEvent:
    """The header of a run's record; UserError if the run stopped before it was written."""
    header = next((event for event in run.events() if isinstance(event, HeaderEvent)), None)
    if header is None:
        raise UserError(
            f"The run {run.path} stopped before it had recorded anything; delete the folder and start again."
        )
    return header


def check_unchanged(run: RunFolder, header: HeaderEvent, experiment: Experiment) -> None:
    """UserError if backbone, data or descriptions are no longer those of the header."""
    dataset = experiment.dataset
    for what, before, now in (
        ("backbone", header.backbone.fingerprint, experiment.clip.fingerprint),
        ("data", header.data.fingerprint, dataset.source.fingerprint),
        *(
            ("descriptions file", before, text_fingerprint(experiment.described[name]))
            for name, before in header.descriptions.items()
        ),
    ):
        if before != now:
            raise UserError(
                f"The run {run.path} began with another {what} (fingerprint {before[:12]}, now {now[:12]}); "
                f"put the old {what} back, or start a new run."
            )
