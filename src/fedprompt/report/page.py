"""The HTML pages of a run, of predictions and of the web app: their templates filled in, and the file written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import HeaderEvent, MistakesEvent, SampleEvent, TrialEvent
from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.report import figures
from fedprompt.report.client_figures import MOST_CLIENTS, participation_figure, partition_drawing
from fedprompt.report.cooccurrence import cooccurrence_matrices, drawn_labels
from fedprompt.report.facts import (
    MOST_LISTED,
    facts,
    file_links,
    fingerprints,
    population,
    status,
    summary,
    title,
    toml_text,
    used_settings,
)
from fedprompt.report.legend import UPLOAD, legend, one_seed_note
from fedprompt.report.mistakes import mistakes_section, mistakes_sections
from fedprompt.report.published import difference_tables, differences
from fedprompt.report.sample_images import attention_maps, label_explanations, sample_images
from fedprompt.report.style import VARIABLES, Drawing, inline
from fedprompt.report.tables import (
    client_rows,
    diagnostic_rows,
    domain_tables,
    failure_rows,
    headline_rows,
    interval_note,
    interval_rows,
    selected_clients,
    selection_rows,
)
from fedprompt.report.verdict import verdict


def render(run_folder: Path) -> Path:
    """Write `report.html` beside `run.jsonl`, from that file alone, and return its path.

    The same records give the same bytes. Raises `UserError` if the folder has no readable `run.jsonl`.
    """
    path = Path(run_folder) / "report.html"
    write_atomic(path, page(read_run(run_folder)))
    return path


def predictions_page(
    about: TrialEvent,
    samples: Sequence[SampleEvent],
    *,
    mistakes: Sequence[MistakesEvent] = (),
    total: int,
    unreadable: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """The predictions of a method as HTML: samples of `total` images, and mistakes where true labels are known.

    `unreadable` are names of further images and why they cannot be read; `notes` are sentences at the top: which
    model predicted, its figures with given labels, when a label counts as present.
    """
    trial = TrialRecord(about, (), (), tuple(samples))
    run = Run(HeaderEvent(main=about.trial), (trial,), None)
    return _template("predictions.html.j2").render(
        run=run,
        marks=_marks(run),
        total=total,
        unreadable=unreadable[:MOST_LISTED],
        more_unreadable=max(0, len(unreadable) - MOST_LISTED),
        notes=notes,
        mistakes=[mistakes_section(event, "Images with given labels") for event in mistakes],
        samples=sample_images(run),
        attention=attention_maps(run),
        explanations=label_explanations(run),
    )


def prediction_cards(
    recognised: Sequence[tuple[TrialEvent, SampleEvent]],
    markers: Sequence[tuple[str, str]],
    *,
    classes: int,
    notes: Sequence[str] = (),
) -> str:
    """What methods, side by side, recognise in one image, as a fragment of HTML with the maps of each.

    `markers` are their colours and marks, and `classes` is the number of candidates, of which the best are shown.
    `notes` are sentences that hold for every image.
    """
    trials = tuple(TrialRecord(about, (), (), (sample,)) for about, sample in recognised)
    run = Run(HeaderEvent(main=trials[-1].name), trials, None)
    alone = [(trial.label, Run(HeaderEvent(main=trial.name), (trial,), None)) for trial in trials]
    return _template("recognised.html.j2").render(
        run=run,
        marks={one.name: (VARIABLES[colour], mark) for one, (colour, mark) in zip(trials, markers, strict=True)},
        shown=max((len(sample.top) for _, sample in recognised), default=0),
        classes=classes,
        notes=notes,
        samples=sample_images(run),
        attention=[(label, sample) for label, one in alone for sample in attention_maps(one)],
        explanations=[(label, sample) for label, one in alone for sample in label_explanations(one)],
    )


def app_page(names: Sequence[str], classes: Sequence[str], *, about: Sequence[str] = (), nonce: str) -> str:
    """The page of the web app: images are dropped, and what the server answers is shown; `nonce` allows its script.

    `about` are sentences on the adapters.
    """
    return _template("app.html.j2").render(names=names, classes=classes, about=about, nonce=nonce)


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
    """The report as HTML; all text of the run is escaped. It loads no other file, and links the long tables only."""
    failures, more_failures = failure_rows(run)
    return _template("report.html.j2").render(
        run=run,
        title=title(run),
        about=str(run.header.recipe.get("about") or ""),
        summary=summary(run),
        status=status(run),
        metric=figures.metric_name(run),
        marks=_marks(run),
        legend=legend(run),
        note=one_seed_note(run),
        upload=UPLOAD,
        headline=headline_rows(run),
        verdict=verdict(run),
        intervals=interval_rows(run),
        interval_note=interval_note(run),
        clients=client_rows(run),
        population=population(run),
        selected_clients=selected_clients(run),
        most_listed=MOST_LISTED,
        links=file_links(run),
        drawn_clients=MOST_CLIENTS,
        selections=selection_rows(run),
        domains=domain_tables(run),
        kind_of_part="data set" if any(score.part for trial in run.trials for score in trial.scores) else "domain",
        published=difference_tables(differences([run])),
        mistakes=mistakes_sections(run),
        samples=sample_images(run),
        attention=attention_maps(run),
        explanations=label_explanations(run),
        diagnostics=diagnostic_rows(run),
        cooccurrence=[
            (matrix.title, matrix.bias_position, Markup(inline(matrix.drawing, matrix.title)))
            for matrix in cooccurrence_matrices(run)
        ],
        drawn_labels=drawn_labels(run),
        failures=failures,
        more_failures=more_failures,
        fingerprints=fingerprints(run),
        used_settings=used_settings,
        toml_text=toml_text,
        facts=facts(run),
        figures=drawn_figures(run),
    )


def drawn_figures(run: Run) -> dict[str, list[Markup]]:
    """The figures for which there are records, by section of the page."""
    held = run.header.partition
    sections: dict[str, dict[str, Drawing | None]] = {
        "results": {"Headline metrics by method": figures.headline_drawing(run) if run.headlines else None},
        "training": {
            "Training loss by round": figures.loss_figure(run),
            **{f"{run.title(column)} by round": figures.score_figure(run, column) for column in run.headlines},
            "Metric of held-out images by round": figures.validation_figure(run),
            "Uploaded bytes by round": figures.bytes_figure(run),
        },
        "partition": {
            "Training images by client and class": partition_drawing(held)
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
        section: [Markup(inline(drawing.svg, label)) for label, drawing in drawn.items() if drawing]
        for section, drawn in sections.items()
    }
