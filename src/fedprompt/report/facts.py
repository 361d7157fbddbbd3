"""Facts about a run for its page: title, summary, status, links, and recipe, data and versions as lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pydantic import JsonValue

from fedprompt.errors import plural
from fedprompt.records.outcome import is_untrained, missing_results
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.records.vectors import FOLDER as VECTORS
from fedprompt.report.style import size_text
from fedprompt.report.tables import privacy_text, scores_text
from fedprompt.text_files import json_text

DIGITS = 12  # of a fingerprint
MOST_LISTED = 200  # entries of a list among the facts, and unreadable images


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
