"""The command `predict`: images classified with a trained adapter, in files of three forms and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import TrustCode
from fedprompt.errors import UserError, plural, series
from fedprompt.text_files import json_text

if TYPE_CHECKING:
    from fedprompt.experiments.predictions import Prediction, Predictions
    from fedprompt.records.adapter import Adapter
    from fedprompt.records.events import MistakesEvent

SHOWN_UNREADABLE = 20
SHOWN_CONFUSIONS = 5
OUTPUT = Path("-")
ON_OUTPUT = ("csv", "jsonl")  # the forms that a terminal or a pipe can take


def predict(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_OR_RUN", help="Folder of an adapter or of a run.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help=(
                "Image files, folders of them, patterns ('*.jpg'), or tables with a column `image`. "
                "Results name images as you type them; below a folder that you give with its absolute path, from that "
                "folder's name on."
            ),
        ),
    ],
    classes: Annotated[
        str | None, typer.Option(help="Candidate classes, separated by commas (default: the adapter's).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A table of `image` and `label`: compare the predictions with these labels.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write all probabilities to this CSV file, or to the output ('-').")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write all probabilities to this Parquet file.")] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Write all probabilities to this file, or to the output ('-'), as JSON Lines.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page: images, decided labels, and where the method looked.")
    ] = None,
    trial: Annotated[str | None, typer.Option(help="A trial of the run (default: the main method).")] = None,
    backbone: Annotated[str | None, typer.Option(help="The backbone, if it is not where the adapter says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_code: TrustCode = None,
) -> None:
    """Classify images with a trained adapter, among its classes or any others.

    With --csv, --parquet or --jsonl the predictions are in the file and are not printed. An image that cannot be read
    has a row with its error and no prediction. The exit code is 1 if some cannot be read, or have a label in --labels
    that is none of the classes.
    """
    outputs = {"csv": csv, "parquet": parquet, "jsonl": jsonl}
    files = {form: path.expanduser() for form, path in outputs.items() if path is not None}
    _check_outputs(files, page, as_json=as_json)
    _check_inputs(adapter, images, labels)
    from fedprompt.api.progress import counting, plain_console
    from fedprompt.experiments.adapters import gives_others, open_adapter
    from fedprompt.experiments.predict import Request, predict_files
    from fedprompt.experiments.prediction_notes import introduction

    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    request = Request(images, classes=names, labels=labels, page=page, backbone=backbone)
    opened = open_adapter(adapter, trial=trial, trusted=trust_code or ())
    for sentence in introduction(opened, others=gives_others(opened, names)):
        typer.echo(sentence, err=True)
    with counting(plain_console(stderr=True), "Classifying images", after=2.0) as on_step:
        found = predict_files(opened, request, on_step=on_step)
    if found.threshold_sentence:
        typer.echo(found.threshold_sentence, err=True)
    _write(found, files)
    if as_json:
        typer.echo(json_text(list(_objects(found)), indent=2, ascii_only=False))
    elif not files:
        typer.echo("".join(f"{_line(one)}\n" for one in found.images), nl=False)
    data = as_json or OUTPUT in files.values()  # then the output holds nothing else
    _print_evaluation(found, err=data)
    for sentence in _doubts(opened, found):
        typer.echo(sentence, err=True)
    for sentence in _written(found, files, page):
        typer.echo(sentence, err=data)
    _print_left_out(found)
    if found.unreadable or found.foreign:
        raise typer.Exit(1)


def _check_outputs(files: dict[str, Path], page: Path | None, *, as_json: bool) -> None:
    """Refuse files that cannot be written, and two forms on the output, before anything is opened."""
    from fedprompt.records.output_folder import require_output_file

    on_output = [f"--{form} -" for form, path in files.items() if path == OUTPUT and form in ON_OUTPUT]
    on_output += ["--json"] if as_json else []
    if len(on_output) > 1:
        raise UserError(f"{series(on_output)} write to the same output; give all but one the path of a file.")
    options = {f"--{form}": path for form, path in files.items() if f"--{form} -" not in on_output}
    options |= {"--page": page} if page else {}
    for option, path in options.items():
        require_output_file(path, option)


def _check_inputs(adapter: Path, images: list[str], labels: Path | None) -> None:
    """Refuse what is not there before torch is imported, which takes seconds."""
    from fedprompt.data.intake.given_images import require_one
    from fedprompt.file_system import require_file, require_folder

    require_folder(adapter, "give the folder of a run or of an adapter")
    require_one(images)
    if labels is not None:
        require_file(labels.expanduser(), "give the path of a table")


def _write(found: Predictions, files: dict[str, Path]) -> None:
    from fedprompt.experiments.predictions import WRITERS
    from fedprompt.records.atomic_files import write_atomic

    for form, path in files.items():
        content = WRITERS[form](found)
        if path == OUTPUT:
            typer.echo(content, nl=False)
        else:
            write_atomic(path, content)


def _written(found: Predictions, files: dict[str, Path], page: Path | None) -> Iterator[str]:
    from fedprompt.experiments.predict import PAGE_IMAGES
    from fedprompt.experiments.predictions import is_formula

    total, failed = len(found.images), len(found.unreadable)
    if "csv" in files and any(is_formula(name) for name in _texts(found)):
        yield "In the CSV file an apostrophe stands before texts that begin with =, +, - or @: they are no formulas."
    for path in (path for path in files.values() if path != OUTPUT):
        yield f"Written: {path} ({plural(total, 'image')}{f' and {failed:,} with an error' if failed else ''})"
    if page is not None:
        shown = f"the first {PAGE_IMAGES} of {total:,} images" if total > PAGE_IMAGES else plural(total, "image")
        yield f"Written: {page} ({shown})"


def _texts(found: Predictions) -> Iterator[str]:
    """Names and labels in the cells of a file."""
    for one in found.images:
        yield from (*one.decided, one.picture)
    yield from (one.name for one in found.unreadable)


def _doubts(adapter: Adapter, found: Predictions) -> Iterator[str]:
    """Why predictions or figures may be worth less than they seem."""
    from fedprompt.experiments.adapters import label_of
    from fedprompt.experiments.prediction_notes import trained_on_sentence
    from fedprompt.report.collapse import alike, collapse

    if found.evaluation is not None and (said := collapse(found.evaluation.mistakes)):
        yield f"{label_of(adapter)} {said}"
    elif found.evaluation is None and (said := alike([one.decided for one in found.images])):
        yield said
    if said := trained_on_sentence(found):
        yield said
    yield from found.warnings


def _objects(found: Predictions) -> Iterator[dict[str, object]]:
    """What --json prints of each image; of one that cannot be read, the error."""
    for one in found.images:
        own = {"image" if key == "picture" else key: value for key, value in vars(one).items()}  # as in the files
        own["threshold"] = found.threshold
        yield {"method": found.method, **{key: value for key, value in own.items() if value is not None}}
    for failed in found.unreadable:
        yield {"method": found.method, "image": failed.name, "error": failed.error}


def _line(found: Prediction) -> str:
    present = "" if found.present is None else f" -> {', '.join(found.present) or 'none'}"
    top = ", ".join(f"{name} {100 * probability:.1f}%" for name, probability in found.top)
    return f"{found.picture}: {top}{present}"


def _print_evaluation(found: Predictions, *, err: bool) -> None:
    """Print the decisions, the figures, and what to know about the given labels; nothing without labels."""
    from fedprompt.experiments.prediction_notes import figure_sentences, label_notes

    if found.evaluation is not None:
        _print_decisions(found.evaluation.mistakes, err=err)
    for sentence in figure_sentences(found):
        typer.echo(sentence, err=err)
    for sentence in label_notes(found):
        typer.echo(sentence, err=True)


def _print_decisions(mistakes: MistakesEvent, *, err: bool) -> None:
    """Print a table of the classes, and what was confused most often."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table

    rows = [
        (
            one.name,
            f"{one.images:,}",
            _percent(one.right, one.images),
            f"{one.predicted:,}",
            _percent(one.right, one.predicted),
        )
        for one in mistakes.classes
        if one.images or one.predicted
    ]
    head = ("class", "images", "found (recall)", "predicted", "right (precision)")
    plain_console(stderr=err).print(rows_table(head, rows))
    for true, predicted, count in mistakes.confused[:SHOWN_CONFUSIONS]:
        typer.echo(f"{plural(count, 'image')} of {true} predicted as {predicted}.", err=err)
    if (more := mistakes.confusions - SHOWN_CONFUSIONS) > 0:
        typer.echo(f"And {plural(more, 'more pair')} of classes confused.", err=err)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _print_left_out(found: Predictions) -> None:
    if found.left_out:
        typer.echo(f"Left out: {', '.join(f'{count:,} {why}' for why, count in found.left_out.items())}.", err=True)
    if not found.unreadable:
        return
    total = len(found.images) + len(found.unreadable)
    typer.echo(f"{len(found.unreadable):,} of {total:,} cannot be read:", err=True)
    typer.echo("\n".join(f"  {one.reason}" for one in found.unreadable[:SHOWN_UNREADABLE]), err=True)
    if (more := len(found.unreadable) - SHOWN_UNREADABLE) > 0:
        typer.echo(f"  and {more:,} more", err=True)
