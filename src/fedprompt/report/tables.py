"""Tables of the report: methods, clients, groups of clients, domains and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedprompt.errors import series
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.events import IntervalEvent
from fedprompt.records.outcome import shown_name
from fedprompt.records.run_record import GAP, Run, TrialRecord, mean_of
from fedprompt.report.style import size_text

MOST_CLIENTS = 200  # rows of the table of clients
EXTREMES = 50  # of more clients, the best and as many of the worst
MOST_NAMES = 40  # classes of a client, by name
MOST_FAILURES = 100  # rows of the table of failures
MOST_RANGES = 20  # ranges of rounds in one of them
DASH = "–"  # noqa: RUF001, the typographer's dash for "no value"
MINUS = "−"  # noqa: RUF001, as wide as a plus


@dataclass(frozen=True)
class TableCell:
    """One figure in percent with its change against the reference in points; `best` marks the best method."""

    text: str = DASH
    change: str = ""
    tone: str = ""  # "up" for a better number, "down" for a worse one
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One row: a cell per figure, then texts."""

    name: str
    cells: tuple[TableCell, ...]
    texts: tuple[str, ...] = ()


def _cells(run: Run, values: Sequence[float | None], *, lower: bool = False) -> tuple[TableCell, ...]:
    """One cell per trial for one value per trial; with `lower` the lowest is best."""
    start = next((value for trial, value in zip(run.trials, values, strict=True) if trial == run.reference), None)
    known = [round(100 * value, 1) for value in values if value is not None]
    best = min(known, default=0.0) if lower else max(known, default=0.0)
    cells = []
    for trial, value in zip(run.trials, values, strict=True):
        if value is None:
            cells.append(TableCell())
            continue
        points = 0.0 if start is None else 100 * (value - start)
        known_change = start is not None and trial != run.reference
        change = f"{points:+.1f}".replace("-", MINUS) if abs(points) >= 0.05 else "±0.0"
        tone = ("up" if (points > 0) != lower else "down") if change != "±0.0" else ""
        is_best = round(100 * value, 1) == best and len(set(known)) > 1
        cells.append(TableCell(f"{100 * value:.1f}", change if known_change else "", tone, is_best))
    return tuple(cells)


def headline_rows(run: Run) -> list[TableRow]:
    """One row per method: its figure per column, then trained parameters and uploaded bytes (mean, first to last)."""
    columns = [
        _cells(run, [trial.figures.get(column) for trial in run.trials], lower=column == GAP) for column in run.columns
    ]
    return [
        TableRow(shown_name(trial), tuple(column[place] for column in columns), (_parameters(trial), *uploads(trial)))
        for place, trial in enumerate(run.trials)
    ]


def interval_rows(run: Run) -> list[TableRow]:
    """One row per method: the 95% interval of each figure in percent, and the test images behind it; maybe none."""
    rows = []
    for trial in run.trials if run.intervals else ():
        found = [run.interval(trial, column) for column in run.headlines]
        rows.append(TableRow(trial.label, (), tuple(map(_interval_text, found))))
    if rows:
        largest = [
            max((one.images for one in run.intervals if one.column == column), default=0) for column in run.headlines
        ]
        rows.append(TableRow("Test images", (), tuple(f"{count:,}" if count else DASH for count in largest)))
    return rows


def interval_note(run: Run) -> str:
    """Which columns have no interval, and why; empty if all have one."""
    known = {one.column for one in run.intervals}
    lacking = [run.title(column) for column in run.headlines if run.intervals and column not in known]
    if not lacking:
        return ""
    return (
        f"{series(lacking)} {'has' if len(lacking) == 1 else 'have'} no interval: only the figure of each client "
        "is recorded, not its prediction per image to draw from."
    )


def _interval_text(found: IntervalEvent | None) -> str:
    if found is None or found.low is None or found.high is None:
        return DASH
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _parameters(trial: TrialRecord) -> str:
    return DASH if trial.about.trainable is None else f"{trial.about.trainable:,}"


def uploads(trial: TrialRecord) -> tuple[str, str]:
    """The mean upload of a client per round and, where they differ, that of the first and of the last round."""
    sent = [mean for event in trial.rounds if (mean := mean_of(event.bytes_up.values())) is not None]
    if trial.bytes_up is None:
        return DASH if trial.trains else size_text(0), ""
    ends = size_text(sent[0]), size_text(sent[-1])
    return size_text(trial.bytes_up), f"first round {ends[0]}, last {ends[1]}" if ends[0] != ends[1] else ""


def client_rows(run: Run) -> list[TableRow]:
    """One row per client: its local score per method, then images, classes (number, names), domain and test images.

    Of more than 200 clients, the 50 with the best and the 50 with the worst local score of the main method, best first;
    without local scores the first 200.
    """
    partition = run.header.partition
    if partition is None:
        return []
    local = [{score.client: score.value for score in trial.final("local")} for trial in run.trials]
    tested = {score.client: score.num_examples for score in run.main.final("local")} if run.main else {}
    rows = []
    for client in shown_clients(run):
        size, held, names = _held(partition, client)
        domain = partition.domains[client] if client < len(partition.domains) else ""
        cells = _cells(run, [found.get(client) for found in local])
        tests = f"{tested[client]:,}" if client in tested else ""
        rows.append(TableRow(partition.clients[client], cells, (f"{size:,}", held, names, domain, tests)))
    return rows


def shown_clients(run: Run) -> list[int]:
    """The clients of the table, in its order."""
    count = len(run.header.partition.clients) if run.header.partition else 0
    if count <= MOST_CLIENTS:
        return list(range(count))
    final = run.main.final("local") if run.main else ()
    scored = {
        score.client: score.value
        for score in final
        if score.client is not None and score.client < count and score.value is not None
    }
    ranked = sorted(scored, key=lambda client: (-scored[client], client))
    if len(ranked) <= 2 * EXTREMES:
        return ranked or list(range(MOST_CLIENTS))
    return [*ranked[:EXTREMES], *ranked[-EXTREMES:]]


def selected_clients(run: Run) -> str:
    """Which clients the table shows, in a sentence; empty if all."""
    shown, count = shown_clients(run), len(run.header.partition.clients) if run.header.partition else 0
    if len(shown) == count:
        return ""
    if shown == list(range(MOST_CLIENTS)) or run.main is None:
        return f"The first {len(shown)} clients."
    which = f"The {EXTREMES} best and the {EXTREMES} worst" if len(shown) == 2 * EXTREMES else "Those scored"
    return f"{which} by the local figure of {run.main.label}, best first; classes are recorded of the first clients."


def _held(partition: PartitionCounts, client: int) -> tuple[int, str, str]:
    """A client's training images, and the number and names of its classes where they are recorded."""
    if client >= len(partition.counts):
        return partition.images(client), "", ""
    counts = partition.counts[client]
    held = [label for label, count in zip(partition.classes, counts, strict=True) if count]
    more = f" and {len(held) - MOST_NAMES:,} more" if len(held) > MOST_NAMES else ""
    return partition.images(client), f"{len(held):,}", ", ".join(held[:MOST_NAMES]) + more


def selection_rows(run: Run) -> list[TableRow]:
    """The local figure over all clients, over those selected in the last round and over those never selected.

    Empty if every round of every method selected every scored client: there is only one figure then.
    """
    local = [trial.final("local") for trial in run.trials]
    everyone = {score.client for found in local for score in found}
    rounds = [set(event.clients) for trial in run.trials for event in trial.rounds]
    if not everyone or all(everyone <= clients for clients in rounds):
        return []
    last = set(run.main.rounds[-1].clients) if run.main and run.main.rounds else set()
    groups = {
        "all clients": everyone,
        "clients selected in the last round": everyone & last,
        "clients never selected": everyone.difference(*rounds),
    }
    return [
        TableRow(
            name,
            _cells(run, [mean_of(s.value for s in found if s.client in group) for found in local]),
            (f"{len(group):,}",),
        )
        for name, group in groups.items()
        if group
    ]


def domain_tables(run: Run) -> list[tuple[str, list[TableRow]]]:
    """For every column that is a mean over domains or data sets, its title and one row for each."""
    tables = []
    for column in run.columns:
        finals = [[] if column == "local" else trial.final(column) for trial in run.trials]
        names = dict.fromkeys(score.name for scores in finals for score in scores)
        # Methods with personal tensors have a score for each client.
        parts = [
            {name: mean_of(score.value for score in scores if score.name == name) for name in names}
            for scores in finals
        ]
        if len(names) > 1:
            rows = [TableRow(name, _cells(run, [found.get(name) for found in parts])) for name in names]
            tables.append((run.title(column), rows))
    return tables


def failure_rows(run: Run) -> tuple[list[tuple[str, str, str, str]], int]:
    """Rows (method, rounds, client, last reason), and the number of further ones.

    One row per client and kind of failure, and per kind of skipped round: all or, of more than 100, those with the most
    rounds.
    """
    names = run.header.partition.clients if run.header.partition else ()
    found: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for trial in run.trials:
        for event in trial.rounds:
            for client, reason in event.failed.items():
                who = names[client] if client < len(names) else f"client {client}"
                found.setdefault((trial.label, who, reason.partition(":")[0]), []).append((event.round, reason))
            if event.skipped:
                found.setdefault((trial.label, "everyone", event.skipped), []).append((event.round, event.skipped))
    shown = sorted(found, key=lambda key: -len(found[key]))[:MOST_FAILURES] if len(found) > MOST_FAILURES else [*found]
    rows = [(key[0], _ranges([number for number, _ in found[key]]), key[1], found[key][-1][1]) for key in shown]
    return rows, len(found) - len(rows)


def _ranges(numbers: Sequence[int]) -> str:
    """Ranges of round numbers: "1 to 3, 7 (4 rounds)"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:MOST_RANGES])
    said += ", ..." * (len(runs) > MOST_RANGES)
    return said if len(numbers) == 1 else f"{said} ({len(numbers)} rounds)"


def diagnostic_rows(run: Run) -> tuple[list[TrialRecord], list[TableRow], list[tuple[str, str]]]:
    """The trials with diagnostics, a row per figure with a text per trial, and (figure, how to read it).

    Of figures that are read alike, the first stands for all.
    """
    trials = [trial for trial in run.trials if trial.diagnostics is not None]
    figures = [trial.diagnostics.diagnostics if trial.diagnostics is not None else () for trial in trials]
    meanings = {one.name: one.meaning for own in figures for one in own}
    values = [{one.name: one.value for one in own} for own in figures]
    rows = [TableRow(name, (), tuple(_decimals(own.get(name)) for own in values)) for name in meanings]
    named: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        named.setdefault(meaning, []).append(name)
    legend = [(f"{names[0]}{', ...' * (len(names) > 1)}", meaning) for meaning, names in named.items()]
    return trials, rows, legend


def _decimals(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def privacy_text(trial: TrialRecord) -> str:
    """The privacy guarantee of a trial after its last round; empty without differential privacy."""
    last = trial.rounds[-1] if trial.rounds else None
    if last is None or last.epsilon is None:
        return ""
    whom = {"client": "client", "sample": "training image"}.get(last.protects, last.protects)
    return f"Differential privacy per {whom}: epsilon {last.epsilon:.2f} at delta {last.delta:g}"


def scores_text(run: Run) -> str:
    """Which sites withhold or round the scores of their images; empty in a simulation, and where all are exact."""
    said = []
    for kind, how in (("withheld", "do not leave"), ("rounded", "are rounded")):
        if names := sorted(name for name, scores in run.scores_of_sites.items() if scores == kind):
            what = "scores and losses" if kind == "withheld" else "scores"
            said.append(f"by the policy of {', '.join(names)}, {what} of the images there {how}")
    return "; ".join(said)[:1].upper() + "; ".join(said)[1:]
