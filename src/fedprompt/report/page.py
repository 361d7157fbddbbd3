"""The HTML page of a run or of predictions: values of the templates, and writing the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import JsonValue

from fedprompt.errors import plural
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import HeaderEvent, MistakesEvent, SampleEvent, TrialEvent
from fedprompt.records.outcome import is_untrained, missing_results
from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.records.vectors import FOLDER as VECTORS
from fedprompt.report import figures
from fedprompt.report.client_figures import MOST_CLIENTS, participation_figure, partition_drawing
from fedprompt.report.cooccurrence import cooccurrence_matrices, drawn_labels
from fedprompt.report.legend import UPLOAD, legend, one_seed_note
from fedprompt.report.mistakes import mistakes_section, mistakes_sections
from fedprompt.report.published import difference_tables, differences
from fedprompt.report.sample_images import attention_maps, label_explanations, sample_images
from fedprompt.report.style import VARIABLES, Drawing, inline, size_text
from fedprompt.report.tables import (
    client_rows,
    diagnostic_rows,
    domain_tables,
    failure_rows,
    headline_rows,
    interval_note,
    interval_rows,
    privacy_text,
    scores_text,
    selected_clients,
    selection_rows,
)
from fedprompt.report.verdict import verdict
from fedprompt.text_files import json_text

DIGITS = 12  # of a fingerprint
MOST_LISTED = 200  # entries of a list among the facts, and unreadable images


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


def title(run: Run) -> str:
    """The title of the run, or one made of its main method and its data."""
    parts = (run.main.label if run.main else "", run.header.data.name)
    return run.header.title or " on ".join(part for part in parts if part) or "Federated run"


def summary(run: Run) -> str:
    """Clients, rounds, upload, privacy and what sites withhold in one paragraph.

    Empty before the first round, and if the main method is not trained.
    """
    main, clients = run.main, population(run)
    if main is None or not main.rounds or is_untrained(main):
        return ""
    rounds = len(main.rounds)
    who = "One client" if clients == 1 else f"{clients:,} clients" if clients else "Clients"
    text = (
        f"{who} trained {main.label}{' together' * (clients != 1)} for "
        f"{plural(rounds, 'round')} without sharing an image"
    )
    if main.bytes_up is not None:
        text += f". A client uploads {size_text(main.bytes_up)} per round on average"
    if spent := privacy_text(main):
        text += f". {spent}"
    if said := scores_text(run):
        text += f". {said}"
    return f"{text}."


def population(run: Run) -> int:
    """Number of clients."""
    return len(run.header.partition.clients) if run.header.partition else 0


def file_links(run: Run) -> dict[str, list[tuple[str, str]]]:
    """(text, address) of the files with the scores of all classes or clients, where the page shows a part of them."""
    links: dict[str, list[tuple[str, str]]] = {"classes": [], "clients": []}
    for trial in run.trials:
        for column in run.headlines:
            for name in run.files.get((trial.name, column), ()):
                section = "clients" if name.startswith("client_scores-") else "classes"
                link = (f"{trial.label}, {run.title(column)}", f"{VECTORS}/{name}")
                links[section].append(link)
    return links


def status(run: Run) -> str:
    """A sentence on how far an unfinished run has come, or on the results that a finished one lacks; else empty."""
    if run.end and run.end.status == "done":
        return " ".join(missing_results(run))
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
    """The first digits of the fingerprints of backbone and data, and the seed: equal for runs with equal inputs."""
    found = {"backbone": run.header.backbone.fingerprint, "data": run.header.data.fingerprint}
    shown = {what: fingerprint[:DIGITS] for what, fingerprint in found.items()}
    return list(_flat({**shown, "seed": run.header.seed}, _plain))


def used_settings(trial: TrialRecord) -> Mapping[str, JsonValue]:
    """The settings that a trial's training used, without those that have no effect."""
    settings = trial.about.settings
    unused = {"momentum"} if settings.get("optimizer") == "adamw" else set()
    unused |= {"proximal"} if not settings.get("proximal") else set()
    return {key: value for key, value in settings.items() if trial.trains and value is not None and key not in unused}


def facts(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Recipe, data, backbone, versions and times as (section, [(key, value)]), nested tables flattened."""
    header = run.header
    times: dict[str, JsonValue] = {"started": header.time}
    times |= {trial.label: f"{trial.seconds:.1f} s" for trial in run.trials if trial.seconds is not None}
    if run.end and run.sessions:
        several = f" in {len(run.sessions)} sessions" if len(run.sessions) > 1 else ""
        times |= {"whole run": f"{sum(run.sessions):.1f} s{several}"}
    times |= {"resumed after round": ", ".join(map(str, run.resumed))} if run.resumed else {}
    sections: Mapping[str, Mapping[str, JsonValue]] = {
        "Data": header.data.model_dump(mode="json", exclude={"fingerprint"}),
        "Backbone": header.backbone.model_dump(mode="json", exclude={"fingerprint"}),
        "Versions": header.versions,
        "Time": times,
    }
    flat = {"Recipe": list(_flat({"seed": header.seed, **header.recipe}, toml_text))}
    flat |= {name: list(_flat(section, _plain)) for name, section in sections.items()}
    return [(name, entries) for name, entries in flat.items() if entries]


def _flat(
    section: Mapping[str, JsonValue], spell: Callable[[JsonValue], str], before: str = ""
) -> Iterable[tuple[str, str]]:
    """(dotted key as `--set` takes it, spelled value) of all values of a nested table that are not empty."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, spell, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flat({str(place): item for place, item in enumerate(value)}, spell, f"{before}{key}.")
        elif value not in (None, "", []):
            shown, more = _cut(value)
            yield f"{before}{key}", spell(shown) + more


def _plain(value: JsonValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cut(value: JsonValue) -> tuple[JsonValue, str]:
    """The first entries of a long list, and how many more it has, in words."""
    if not isinstance(value, list) or len(value) <= MOST_LISTED:
        return value, ""
    return value[:MOST_LISTED], f" and {len(value) - MOST_LISTED:,} more"


def toml_text(value: JsonValue) -> str:
    """A value as a recipe spells it: true, "sgd", [1, 2], { name = "iid" }."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_text(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_text, value))}]"
    return json_text(value, ascii_only=False)
