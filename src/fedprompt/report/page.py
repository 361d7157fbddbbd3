"""From a run's records to one HTML file: what the template is given, and the file written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from fedprompt.report import figures
from fedprompt.report.ink import VARIABLES, inline, size_text
from fedprompt.report.pictures import looks, pictures
from fedprompt.report.reading import Run, Trial, mean_of, read_run

MOST_CLIENTS = 200  # rows of the table of clients
DASH = "–"
MEANING = {
    "local": "each client's test pictures with only its own classes to choose from, mean over all clients",
    "base": "test pictures of all classes seen in training, all of them to choose from",
    "new": "test pictures of classes no client has seen, all of them to choose from",
    "hm": "harmonic mean of local, base and new",
    "unseen": "test pictures from domains no client has seen, mean over the domains",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table with its change against the reference; `best` is the best of its group."""

    text: str = DASH
    change: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One named row of a table."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    kind: str = ""  # "main", "reference" or ""


@dataclass(frozen=True)
class Figure:
    """One drawn figure, ready for the page."""

    svg: Markup
    caption: str = ""


def render(run_folder: Path) -> Path:
    """Write `report.html` beside `run.jsonl` from that file alone and return its path; the same records give the same bytes."""
    run = read_run(run_folder)
    path = Path(run_folder) / "report.html"
    temporary = path.with_suffix(".html.part")
    temporary.write_text(page(run), encoding="utf-8")
    temporary.replace(path)
    return path


def page(run: Run) -> str:
    """The whole report as HTML. Every text of the run is escaped by the template, and nothing in it refers outside."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=size_text, share=_percent)
    return environment.get_template("template.html.j2").render(
        run=run,
        title=title(run),
        summary=summary(run),
        status=status(run),
        colours=css_colours(run),
        headline=[_headline_row(run, trial) for trial in run.trials],
        meanings=[(run.title(column), run.header.splits.get(column) or MEANING.get(column, "")) for column in run.columns],
        clients=client_rows(run),
        selections=selection_rows(run),
        domains=domain_tables(run),
        pictures=pictures(run),
        looks=looks(run),
        facts=facts(run),
        **_figures(run),
    )


def _figures(run: Run) -> dict[str, list[Figure]]:
    """Every figure the records allow, under its section's name."""
    partition = run.header.partition
    held = [figures.partition_figure(partition.counts, partition.clients, partition.classes)] if partition and partition.clients else []
    curves = {"Training loss by round": figures.loss_figure(run)}
    curves |= {f"{run.title(column)} by round": figures.score_figure(run, column) for column in run.columns if column != "hm"}
    curves |= {"Bytes sent up by round": figures.bytes_figure(run)}
    classes = {f"Score of every class: {run.title(column)}": figures.class_figure(run, column) for column in ("base", "new", "unseen")}
    taking = {f"Participation: {trial.label}": figures.participation_figure(run, trial) for trial in run.trials}
    headline = {"Headline figures as dots": figures.headline_figure(run)} if run.columns else {}
    held_by = {f"Training pictures by client and class, {len(partition.clients)} clients" if partition else "": svg for svg in held}
    sections: dict[str, Mapping[str, str | None]] = {
        "headline_figures": headline, "curves": curves, "class_figures": classes, "participation": taking, "held": held_by,
    }  # fmt: skip
    return {name: [Figure(Markup(inline(svg, label)), label) for label, svg in drawn.items() if svg] for name, drawn in sections.items()}


def title(run: Run) -> str:
    """The run's own title, or one made of its main method and data."""
    data = str(run.header.data.get("name") or "")
    made = " on ".join(part for part in (run.main.label if run.main else "", data) if part)
    return run.header.title or made or "Federated run"


def summary(run: Run) -> str:
    """One sentence: who trained what, how it ended, what was sent."""
    main, partition = run.main, run.header.partition
    if main is None:
        return ""
    clients = (partition.total or len(partition.clients)) if partition else 0
    who = f"{clients:,} clients" if clients else "Clients"
    said = f"{who} trained {main.label} together for {len(main.rounds)} round{'s' * (len(main.rounds) != 1)} without sharing a picture"
    column = next((column for column in ("hm", *run.columns) if column in main.figures), "")
    if column:
        word = "a harmonic mean" if column == "hm" else f"a {run.title(column).lower()} {figures.metric_name(run)}"
        said += f"; it reaches {word} of {_percent(main.figures[column])}{_against(run, main, column)}"
    if main.bytes_up is not None:
        said += f". A client sends {size_text(main.bytes_up)} a round"
    return said + "."


def _against(run: Run, main: Trial, column: str) -> str:
    reference = run.reference
    if reference is None or column not in reference.figures:
        return ""
    points = 100 * (main.figures[column] - reference.figures[column])
    return f", {abs(points):.1f} points {'above' if points >= 0 else 'below'} {reference.label}"


def status(run: Run) -> str:
    """Empty for a finished run, else one sentence on where it stands."""
    if run.end and run.end.status == "done":
        return ""
    begun = next((trial for trial in reversed(run.trials) if trial.about.status != "done" and trial.rounds), None)
    where = ""
    if begun:
        planned = f" of {begun.about.rounds}" if begun.about.rounds else ""
        where = f" after round {begun.rounds[-1].round}{planned} of {begun.label}"
    ended = f"The run was {run.end.status}{where}." if run.end else f"The run has no end in its records{where}: it is still going on, or was stopped from outside."
    return " ".join(part for part in (ended, run.end.message if run.end else "") if part)


def css_colours(run: Run) -> dict[str, str]:
    """Trial name -> the style sheet's variable of its colour in the figures."""
    names = {colour: f"var(--{word})" for colour, word in VARIABLES.items()}
    return {trial: names[colour] for trial, colour in figures.colours(run).items()}


def _headline_row(run: Run, trial: Trial) -> Row:
    cells = tuple(_cell(run, trial, [t.figures.get(column) for t in run.trials]) for column in run.columns)
    sent = size_text(trial.bytes_up) if trial.bytes_up is not None else DASH
    trainable = DASH if trial.about.trainable is None else f"{trial.about.trainable:,}"
    return Row(trial.label, cells, (trainable, sent if trial.trains else "0 B"), _kind(run, trial))


def _kind(run: Run, trial: Trial) -> str:
    return "main" if trial == run.main else "reference" if trial == run.reference else ""


def _cell(run: Run, trial: Trial, values: Sequence[float | None]) -> Cell:
    """The cell of one trial among `values`, one per trial in order."""
    place, reference = run.trials.index(trial), run.reference
    value = values[place]
    if value is None:
        return Cell()
    start = values[run.trials.index(reference)] if reference else None
    change = "" if start is None or trial == reference else f"{100 * (value - start):+.1f}".replace("-", "−")
    known = [f"{100 * other:.1f}" for other in values if other is not None]
    text = f"{100 * value:.1f}"
    return Cell(text, change, len(known) > 1 and text == max(known, key=float))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _by_trial(run: Run, name: str, values: Sequence[float | None], *notes: str) -> Row:
    return Row(name, tuple(_cell(run, trial, values) for trial in run.trials), notes)


def client_rows(run: Run) -> list[Row]:
    """Name, pictures, classes and local score of every method, for each client."""
    partition = run.header.partition
    local = [{score.client: score.value for score in trial.final("local")} for trial in run.trials]
    if partition is None:
        return []
    rows = []
    for client, (name, counts) in list(enumerate(zip(partition.clients, partition.counts, strict=True)))[:MOST_CLIENTS]:
        held = [label for label, count in zip(partition.classes, counts, strict=True) if count]
        domain = partition.domains[client] if client < len(partition.domains) else ""
        rows.append(_by_trial(run, name, [found.get(client) for found in local], f"{sum(counts):,}", str(len(held)), ", ".join(held), domain))
    return rows


def selection_rows(run: Run) -> list[Row]:
    """The local figure over all clients, and over those that did and did not take part: each named, so none is mistaken."""
    trained = [trial for trial in run.trials if trial.rounds]
    if not trained:
        return []
    local = [trial.final("local") for trial in run.trials]
    everyone = {score.client for found in local for score in found if score.client is not None}
    main = run.main if run.main in trained else trained[-1]
    ever = {client for line in main.rounds for client in line.clients} & everyone if main else set()
    last = set(main.rounds[-1].clients) & everyone if main else set()
    groups = {"all clients": everyone, "clients selected in the last round": last, "clients never selected": everyone - ever}
    return [
        _by_trial(run, f"Mean over {name}", [mean_of(s.value for s in found if s.client in group) for found in local], f"{len(group):,}")
        for name, group in groups.items()
        if group
    ]


def domain_tables(run: Run) -> list[tuple[str, list[Row]]]:
    """For every column that is a mean over domains, a table of the domains."""
    tables = []
    for column in run.columns:
        finals = [{s.name: s.value for s in trial.final(column) if s.client is None} for trial in run.trials if column != "hm"]
        names = dict.fromkeys(name for found in finals for name in found)
        if len(names) > 1:
            tables.append((run.title(column), [_by_trial(run, name, [found.get(name) for found in finals]) for name in names]))
    return tables


def facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Configuration, data, backbone and versions as (section, [(key, value)]), nested tables flattened."""
    header = run.header
    times = {trial.label: f"{trial.about.seconds:.1f} s" for trial in run.trials if trial.about.seconds is not None}
    spent: dict[str, JsonValue] = {"started": header.time, **times}
    if run.end and run.end.seconds is not None:
        spent["whole run"] = f"{run.end.seconds:.1f} s"
    if run.resumed:
        spent["resumed after round"] = ", ".join(map(str, run.resumed))
    sections: Mapping[str, Mapping[str, JsonValue]] = {
        "Recipe": {"seed": header.seed, **header.recipe},
        "Data": header.data,
        "Backbone": header.backbone,
        "Versions": header.versions,
        "Time": spent,
    }
    return [(name, found) for name, section in sections.items() if (found := list(_flat(section)))]


def _flat(section: Mapping[str, JsonValue], before: str = "") -> Iterable[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flat({str(place): item for place, item in enumerate(value, 1)}, f"{before}{key}.")
        elif value is not None and value != "":
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


