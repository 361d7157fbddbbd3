"""From a run's records to one HTML file: what the template is given, and the file written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import JsonValue

from fedprompt.records.events import Header, SampleLine, TrialLine
from fedprompt.records.reading import NATURAL, TUNED, Run, Trial, read_run
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import figures
from fedprompt.report.client_figures import MOST_CLIENTS, participation_figure, partition_figure
from fedprompt.report.cooccurrence import cooccurrence_matrices
from fedprompt.report.published import differences, printed_tables
from fedprompt.report.sample_images import attention_maps, label_reasons, sample_pictures
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
    "local": "each client's test pictures with only its own classes to choose from; mean over all clients",
    "base": "test pictures of the classes seen in training, all of them to choose from",
    "new": "test pictures of classes no client has seen, all of them to choose from",
    "hm": "harmonic mean of local, base and new",
    "unseen": "test pictures of domains no client has seen; mean over the domains",
    "gap": "natural mAP less broken mAP: what was learned of the company that labels keep instead of the labels",
}
MEASURED = {
    "mean_average_precision": ("mAP", "mean over classes of the average precision of the ranked pictures"),
    "cf1_macro": ("CF1", "mean F1 of the classes, a label being there from {} on"),
    "of1": ("OF1", "F1 of all decisions together, a label being there from {} on"),
}


def render(run_folder: Path) -> Path:
    """Write `report.html` beside `run.jsonl`, from that file alone, and return its path.

    The same records give the same bytes. Raises `UserError` if the folder has no readable `run.jsonl`.
    """
    path = Path(run_folder) / "report.html"
    write_atomic(path, page(read_run(run_folder)))
    return path


def measures(run: Run) -> list[tuple[str, str]]:
    """The short names of the figures in the table with what they mean, where there is more than one kind."""
    shown = {key.removesuffix(TUNED) for key in (run.header.metric, *run.header.further)} if run.header.further else ()
    return [(name, meaning.format(run.threshold)) for key, (name, meaning) in MEASURED.items() if key in shown]


def predictions_page(method: str, lines: Sequence[Mapping[str, JsonValue]]) -> str:
    """Pictures of one's own (sample lines without a truth) with what a method sees in them, as HTML."""
    samples = [SampleLine.model_validate({"trial": method, "sample": str(n), **line}) for n, line in enumerate(lines)]
    trial = Trial(TrialLine(trial=method), (), (), tuple(samples))
    run = Run(Header(main=method), (trial,), None)
    return _template("predictions.html.j2").render(
        run=run,
        marks=_marks(run),
        pictures=sample_pictures(run),
        maps=attention_maps(run),
        reasons=label_reasons(run),
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
    return {name: (VARIABLES[colour], marker) for name, (colour, marker) in figures.looks_of(run).items()}


def page(run: Run) -> str:
    """The whole report as HTML; every text of the run is escaped, and nothing in it refers outside."""
    return _template("template.html.j2").render(
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
        printed=printed_tables(differences([run])),
        pictures=sample_pictures(run),
        maps=attention_maps(run),
        reasons=label_reasons(run),
        companies=[
            (matrix.title, matrix.pull, Markup(inline(matrix.drawing, matrix.title)))
            for matrix in cooccurrence_matrices(run)
        ],
        failures=failure_rows(run),
        fingerprints=fingerprints(run),
        facts=facts(run),
        figures=drawn_figures(run),
    )


def drawn_figures(run: Run) -> dict[str, list[Markup]]:
    """Every figure the records allow, by section of the page."""
    held = run.header.partition
    sections: dict[str, dict[str, str | None]] = {
        "results": {"Headline figures as dots": figures.headline_figure(run) if run.headlines else None},
        "training": {
            "Training loss by round": figures.loss_figure(run),
            **{f"{run.title(column)} by round": figures.score_figure(run, column) for column in run.headlines},
            "Bytes sent up by round": figures.bytes_figure(run),
        },
        "partition": {
            "Training pictures by client and class": partition_figure(held.counts, held.clients, held.classes)
            if held and held.clients and held.classes
            else None
        },
        "participation": {
            f"Participation in {trial.label}": participation_figure(run, trial)
            for trial in run.trials
            if trial == run.main or trial not in run.constant
        },
        "classes": {
            f"Score of every class, {run.title(column)}": figures.class_figure(run, column)
            for column in run.headlines
            if all(len(trial.final(column)) == 1 for trial in run.trials if column in trial.figures)
        },
    }
    return {
        section: [Markup(inline(svg, label)) for label, svg in drawn.items() if svg]
        for section, drawn in sections.items()
    }


def title(run: Run) -> str:
    """The run's own title, or one made of its main method and its data."""
    parts = (run.main.label if run.main else "", str(run.header.data.get("name") or ""))
    return run.header.title or " on ".join(part for part in parts if part) or "Federated run"


def summary(run: Run) -> str:
    """Who trained what, how well it ended and what was sent; empty before anything was trained."""
    main, clients = run.main, population(run)
    if main is None or not main.rounds:
        return ""
    rounds = len(main.rounds)
    who = "One client" if clients == 1 else f"{clients:,} clients" if clients else "Clients"
    said = (
        f"{who} trained {main.label}{' together' * (clients != 1)} for "
        f"{rounds} round{'s' * (rounds > 1)} without sharing a picture"
    )
    # A client's own pictures, among its own classes, say least of what all learned together.
    column = next((column for column in ("hm", NATURAL, "test", *run.headlines) if column in main.figures), "")
    if column:
        word = "harmonic mean" if column == "hm" else f"{column} {figures.metric_name(run)}"
        said += f"; its {word} is {100 * main.figures[column]:.1f}%{_against(run, main, column)}"
    if main.bytes_up is not None:
        said += f". A client sends {size_text(main.bytes_up)} a round on average"
    if spent := privacy_text(main):
        said += f". {spent}"
    return f"{said}."


def population(run: Run) -> int:
    """How many clients there are, those included that the records do not list."""
    return max(run.header.partition.total, len(run.header.partition.clients)) if run.header.partition else 0


def _against(run: Run, main: Trial, column: str) -> str:
    reference = run.reference
    if reference is None or column not in reference.figures:
        return ""
    points = 100 * (main.figures[column] - reference.figures[column])
    return f", {abs(points):.1f} points {'above' if points >= 0 else 'below'} {reference.label}"


def status(run: Run) -> str:
    """Empty for a finished run, else a sentence on where it stands."""
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
    """What tells whether two runs had the same backbone, data and draws."""
    found = {"backbone": run.header.backbone.get("fingerprint"), "data": run.header.data.get("fingerprint")}
    return list(_flat({**found, "seed": run.header.seed}))


def facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Recipe, data, backbone, versions and times as (section, [(key, value)]), nested tables flattened."""
    header = run.header
    times: dict[str, JsonValue] = {"started": header.time}
    times |= {trial.label: f"{trial.about.seconds:.1f} s" for trial in run.trials if trial.about.seconds is not None}
    times |= {"whole run": f"{run.end.seconds:.1f} s"} if run.end and run.end.seconds is not None else {}
    times |= {"resumed after round": ", ".join(map(str, run.resumed))} if run.resumed else {}
    sections: Mapping[str, Mapping[str, JsonValue]] = {
        "Recipe": {"seed": header.seed, **header.recipe},
        "Data": header.data,
        "Backbone": header.backbone,
        "Versions": header.versions,
        "Time": times,
    }
    flat = {name: list(_flat(section)) for name, section in sections.items()}
    return [(name, entries) for name, entries in flat.items() if entries]


def _flat(section: Mapping[str, JsonValue], before: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value) of everything in a nested table that has a value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flat({str(place): item for place, item in enumerate(value, 1)}, f"{before}{key}.")
        elif value not in (None, "", []):
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
