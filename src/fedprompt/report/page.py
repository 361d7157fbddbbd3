"""The HTML page of a run or of predictions: values of the templates, and writing the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import JsonValue

from fedprompt.records.events import HeaderEvent, SampleEvent, TrialEvent
from fedprompt.records.reading import NATURAL, TUNED, Run, TrialRecord, read_run
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import figures
from fedprompt.report.client_figures import MOST_CLIENTS, participation_figure, partition_figure
from fedprompt.report.cooccurrence import cooccurrence_matrices
from fedprompt.report.published import difference_tables, differences
from fedprompt.report.sample_images import attention_maps, label_explanations, sample_images
from fedprompt.report.style import VARIABLES, inline, size_text
from fedprompt.report.tables import (
    client_rows,
    domain_tables,
    failure_rows,
    headline_rows,
    privacy_text,
    selection_rows,
)

MEANING = {
    "local": "each client's test images, among that client's classes only; unweighted mean over clients",
    "base": "test images of the base classes, among all base classes",
    "new": "test images of the new classes, which nobody trained on, among all new classes",
    "hm": "harmonic mean of local, base and new",
    "unseen": "test images in domains nobody trained on, among all classes; unweighted mean over domains",
    "gap": "natural mAP minus broken mAP: how much the method relies on the usual co-occurrence of labels",
}
MEASURED = {
    "mean_average_precision": ("mAP", "mean over classes of the average precision"),
    "cf1_macro": ("CF1", "mean over classes of the F1 score; a label counts as present from {}"),
    "of1": ("OF1", "F1 score of all decisions together; a label counts as present from {}"),
}


def render(run_folder: Path) -> Path:
    """Write `report.html` beside `run.jsonl`, from that file alone, and return its path.

    The same records give the same bytes. Raises `UserError` if the folder has no readable `run.jsonl`.
    """
    path = Path(run_folder) / "report.html"
    write_atomic(path, page(read_run(run_folder)))
    return path


def measures(run: Run) -> list[tuple[str, str]]:
    """(short name, meaning) of the metrics in the table, if there is more than one."""
    shown = {key.removesuffix(TUNED) for key in (run.header.metric, *run.header.further)} if run.header.further else ()
    return [(name, meaning.format(run.threshold)) for key, (name, meaning) in MEASURED.items() if key in shown]


def predictions_page(method: str, samples: Sequence[SampleEvent]) -> str:
    """The predictions of a method for images without true labels, as HTML."""
    trial = TrialRecord(TrialEvent(trial=method), (), (), tuple(samples))
    run = Run(HeaderEvent(main=method), (trial,), None)
    return _template("predictions.html.j2").render(
        run=run,
        marks=_marks(run),
        samples=sample_images(run),
        attention=attention_maps(run),
        explanations=label_explanations(run),
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _marks(run: Run) -> dict[str, tuple[str, str]]:
    return {name: (VARIABLES[colour], marker) for name, (colour, marker) in figures.markers_of(run).items()}


def page(run: Run) -> str:
    """The report as HTML; all text of the run is escaped, and nothing refers to another file."""
    return _template("report.html.j2").render(
        run=run,
        title=title(run),
        summary=summary(run),
        status=status(run),
        metric=figures.metric_name(run),
        marks=_marks(run),
        meanings=[
            (run.title(column), run.header.splits.get(column) or MEANING.get(column, ""))
            for column in run.columns
            if ":" not in column
        ],
        measures=measures(run),
        headline=headline_rows(run),
        clients=client_rows(run),
        population=population(run),
        drawn_clients=MOST_CLIENTS,
        selections=selection_rows(run),
        domains=domain_tables(run),
        kind_of_part="data set" if any(score.part for trial in run.trials for score in trial.scores) else "domain",
        published=difference_tables(differences([run])),
        samples=sample_images(run),
        attention=attention_maps(run),
        explanations=label_explanations(run),
        cooccurrence=[
            (matrix.title, matrix.bias_position, Markup(inline(matrix.drawing, matrix.title)))
            for matrix in cooccurrence_matrices(run)
        ],
        failures=failure_rows(run),
        fingerprints=fingerprints(run),
        facts=facts(run),
        figures=drawn_figures(run),
    )


def drawn_figures(run: Run) -> dict[str, list[Markup]]:
    """The figures for which there are records, by section of the page."""
    held = run.header.partition
    sections: dict[str, dict[str, str | None]] = {
        "results": {"Headline metrics by method": figures.headline_figure(run) if run.headlines else None},
        "training": {
            "Training loss by round": figures.loss_figure(run),
            **{f"{run.title(column)} by round": figures.score_figure(run, column) for column in run.headlines},
            "Uploaded bytes by round": figures.bytes_figure(run),
        },
        "partition": {
            "Training images by client and class": partition_figure(held)
            if held and held.clients and held.classes
            else None
        },
        "participation": {
            f"Participation in {trial.label}": participation_figure(run, trial)
            for trial in run.trials
            if trial == run.main or trial not in run.constant
        },
        "classes": {
            f"Score per class, {run.title(column)}": figures.class_figure(run, column)
            for column in run.headlines
            if all(len(trial.final(column)) == 1 for trial in run.trials if column in trial.figures)
        },
    }
    return {
        section: [Markup(inline(svg, label)) for label, svg in drawn.items() if svg]
        for section, drawn in sections.items()
    }


def title(run: Run) -> str:
    """The title of the run, or one made of its main method and its data."""
    parts = (run.main.label if run.main else "", run.header.data.name)
    return run.header.title or " on ".join(part for part in parts if part) or "Federated run"


def summary(run: Run) -> str:
    """Clients, rounds, headline result, upload and privacy in one paragraph; empty before the first round."""
    main, clients = run.main, population(run)
    if main is None or not main.rounds:
        return ""
    rounds = len(main.rounds)
    who = "One client" if clients == 1 else f"{clients:,} clients" if clients else "Clients"
    text = (
        f"{who} trained {main.label}{' together' * (clients != 1)} for "
        f"{rounds} round{'s' * (rounds > 1)} without sharing an image"
    )
    # The local figure, among a client's own classes, says least about the shared model.
    column = next((column for column in ("hm", NATURAL, "test", *run.headlines) if column in main.figures), "")
    if column:
        word = "harmonic mean" if column == "hm" else f"{column} {figures.metric_name(run)}"
        text += f"; its {word} is {100 * main.figures[column]:.1f}%{_against(run, main, column)}"
    if main.bytes_up is not None:
        text += f". A client uploads {size_text(main.bytes_up)} per round on average"
    if spent := privacy_text(main):
        text += f". {spent}"
    return f"{text}."


def population(run: Run) -> int:
    """Number of clients, including those that the records do not list."""
    return max(run.header.partition.total, len(run.header.partition.clients)) if run.header.partition else 0


def _against(run: Run, main: TrialRecord, column: str) -> str:
    reference = run.reference
    if reference is None or column not in reference.figures:
        return ""
    points = 100 * (main.figures[column] - reference.figures[column])
    return f", {abs(points):.1f} points {'above' if points >= 0 else 'below'} {reference.label}"


def status(run: Run) -> str:
    """A sentence on how far an unfinished run has come; empty for a finished one."""
    if run.end and run.end.status == "done":
        return ""
    unfinished = [trial for trial in run.trials if trial.rounds and trial.about.status != "done"]
    where = ""
    if unfinished:
        trial = unfinished[-1]
        planned = f" of {trial.about.rounds}" if trial.about.rounds else ""
        where = f" after round {trial.rounds[-1].round}{planned} of {trial.label}"
    if run.end is None:
        return f"This run has not ended{where}: it is still going on, or was stopped from outside."
    return f"This run was {run.end.status or 'stopped'}{where}. {run.end.message}".strip()


def fingerprints(run: Run) -> list[tuple[str, str]]:
    """Fingerprints of backbone and data, and the seed: equal for runs with equal inputs."""
    found = {"backbone": run.header.backbone.fingerprint, "data": run.header.data.fingerprint}
    return list(_flat({**found, "seed": run.header.seed}))


def facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Recipe, data, backbone, versions and times as (section, [(key, value)]), nested tables flattened."""
    header = run.header
    times: dict[str, JsonValue] = {"started": header.time}
    times |= {trial.label: f"{trial.about.seconds:.1f} s" for trial in run.trials if trial.about.seconds is not None}
    if run.end and run.sessions:
        several = f" in {len(run.sessions)} sessions" if len(run.sessions) > 1 else ""
        times |= {"whole run": f"{sum(run.sessions):.1f} s{several}"}
    times |= {"resumed after round": ", ".join(map(str, run.resumed))} if run.resumed else {}
    sections: Mapping[str, Mapping[str, JsonValue]] = {
        "Recipe": {"seed": header.seed, **header.recipe},
        "Data": header.data.model_dump(mode="json"),
        "Backbone": header.backbone.model_dump(mode="json"),
        "Versions": header.versions,
        "Time": times,
    }
    flat = {name: list(_flat(section)) for name, section in sections.items()}
    return [(name, entries) for name, entries in flat.items() if entries]


def _flat(section: Mapping[str, JsonValue], before: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value) of all values of a nested table that are not empty."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flat({str(place): item for place, item in enumerate(value, 1)}, f"{before}{key}.")
        elif value not in (None, "", []):
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
