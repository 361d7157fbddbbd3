"""Comparison of methods over seeds: means and standard deviations, paired differences, and costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedprompt.errors import UserError
from fedprompt.records.run_record import GAP, NATURAL, Run, TrialRecord
from fedprompt.report.published import HEAD, as_markdown, difference_tables, differences
from fedprompt.report.style import size_text

HEADLINES = ("hm", "base", NATURAL)  # columns that summarise a run, in order of preference


@dataclass(frozen=True)
class ComparisonCell:
    """One entry of the table; `best` marks the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """The same trials under different seeds, in the order of the seeds."""

    runs: tuple[Run, ...]

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The trials of the first run."""
        return self.runs[0].trials

    @property
    def headline(self) -> str:
        """The column that summarises a run."""
        return headline(self.runs[0])

    def values(self, name: str, column: str) -> list[float]:
        """A trial's figure in percent, one per seed; empty if a run does not have it."""
        found = [self.trial(run, name).figures.get(column) for run in self.runs]
        return [] if None in found else [100 * value for value in found if value is not None]

    def differences(self, name: str) -> list[float]:
        """Headline of a trial minus that of the main trial in points, one per seed."""
        main = self.runs[0].main
        mine, theirs = self.values(name, self.headline), self.values(main.name, self.headline) if main else []
        return [ours - other for ours, other in zip(mine, theirs, strict=False)]

    @staticmethod
    def trial(run: Run, name: str) -> TrialRecord:
        """The trial of that name."""
        return next(trial for trial in run.trials if trial.name == name)


def headline(run: Run) -> str:
    """The column that summarises a run."""
    return next((column for column in HEADLINES if column in run.columns), run.columns[0])


def by_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Join the runs of each seed into one run with all their trials; the main trial is that of the first run.

    Raises UserError if runs of one seed have different data, or trials of the same name with different figures.
    """
    groups: dict[int | None, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.header.seed, []).append(run)
    return tuple(_joined(seed, own) for seed, own in groups.items())


def _joined(seed: int | None, runs: Sequence[Run]) -> Run:
    trials: dict[str, TrialRecord] = {}
    if len({run.header.data.fingerprint for run in runs}) > 1:
        raise UserError(f"The runs with seed {seed} have different data; they cannot be compared in one table.")
    for trial in (trial for run in runs for trial in run.trials):
        if trials.setdefault(trial.name, trial).figures != trial.figures:
            raise UserError(
                f"Two runs with seed {seed} have a trial called {trial.name!r} with different figures; give one of "
                "them a label."
            )
    expected = tuple(dict.fromkeys(one for run in runs for one in run.header.expected))
    header = runs[0].header.model_copy(update={"expected": expected})
    return replace(runs[0], header=header, trials=tuple(trials.values()))


def comparison(runs: Sequence[Run]) -> Comparison:
    """Compare runs; UserError unless they have the same trials and different seeds."""
    names = {tuple(trial.name for trial in run.trials) for run in runs}
    seeds = {run.header.seed for run in runs}
    if len(names) != 1 or len(seeds) != len(runs):
        raise UserError("Compared runs must have the same trials and different seeds; give runs of one recipe.")
    return Comparison(tuple(sorted(runs, key=lambda run: run.header.seed or 0)))


def uploaded(trial: TrialRecord) -> float | None:
    """Bytes that a client uploads in all rounds, mean over clients; None if nothing was uploaded."""
    clients = {client for event in trial.rounds for client in event.bytes_up}
    return sum(sum(event.bytes_up.values()) for event in trial.rounds) / len(clients) if clients else None


def seconds(trial: TrialRecord) -> float | None:
    """Duration of all rounds in seconds; None for a trial that does not train."""
    return sum(trial.round_seconds) if trial.round_seconds else None


def table(compared: Comparison) -> tuple[list[str], list[list[ComparisonCell]]]:
    """Head and rows: figures as mean ± standard deviation over seeds, the paired difference, and costs."""
    first = compared.runs[0]
    main = first.main
    columns = [*first.columns]
    found = {column: figure_cells(compared, column) for column in columns}
    head = ["method", *map(first.title, columns)]
    head += [f"{first.title(compared.headline)} against {main.label if main else ''}", "parameters", "sent", "seconds"]
    rows = []
    for place, trial in enumerate(compared.trials):
        cells = [found[column][place] for column in columns]
        ahead = ComparisonCell("" if trial == main else _mean_and_deviation(compared.differences(trial.name), sign="+"))
        rows.append([ComparisonCell(trial.label), *cells, ahead, *map(ComparisonCell, _costs(compared, trial))])
    return head, rows


def figure_cells(compared: Comparison, column: str) -> list[ComparisonCell]:
    """One cell per trial: its figure as mean ± standard deviation over seeds."""
    values = {trial.name: compared.values(trial.name, column) for trial in compared.trials}
    best = _best(compared, column)
    return [ComparisonCell(_mean_and_deviation(own), bool(own) and name in best) for name, own in values.items()]


def _best(compared: Comparison, column: str) -> set[str]:
    """The trials with the best mean, as rounded in the table: the largest, of the gap the smallest."""
    found = {trial.name: compared.values(trial.name, column) for trial in compared.trials}
    means = {name: round(fmean(values), 1) for name, values in found.items() if values}
    best = (min if column == GAP else max)(means.values(), default=0.0)
    return {name for name, mean in means.items() if mean == best}


def _mean_and_deviation(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return ""
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def diagnostics(compared: Comparison) -> list[tuple[list[str], list[list[str]]]]:
    """Tables of diagnostics, mean ± standard deviation over seeds: head and rows, one table per set of figures."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for trial in compared.trials:
        events = [compared.trial(run, trial.name).diagnostics for run in compared.runs]
        found = [{one.name: one.value for one in event.diagnostics} if event else {} for event in events]
        for names in [tuple(found[0])] if found[0] else []:
            cells = [_decimals([own.get(name) for own in found]) for name in names]
            tables.setdefault(names, []).append([trial.label, *cells])
    return [(["method", *names], rows) for names, rows in tables.items()]


def _decimals(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def _costs(compared: Comparison, trial: TrialRecord) -> tuple[str, str, str]:
    trained = "" if trial.about.trainable is None else f"{trial.about.trainable:,}"
    sent, took = over_seeds(compared, trial, uploaded), over_seeds(compared, trial, seconds)
    return trained, "" if sent is None else size_text(sent), "" if took is None else f"{took:.0f}"


def over_seeds(compared: Comparison, trial: TrialRecord, read: Callable[[TrialRecord], float | None]) -> float | None:
    """The mean over seeds of a value of a trial, where it is known."""
    found = [read(compared.trial(run, trial.name)) for run in compared.runs]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def markdown(compared: Comparison) -> str:
    """The table in Markdown, then the diagnostics, and one comparison per published table that the runs expect."""
    head, rows = table(compared)
    found = as_markdown(head, [[f"**{c.text}**" if c.best else c.text for c in row] for row in rows])
    for names, measured in diagnostics(compared):
        found += f"\n{as_markdown(names, measured)}"
    for title, lines in published(compared):
        found += f"\n{title}. In percent; the difference is ours minus published.\n\n{as_markdown(HEAD, lines)}"
    return found


def published(compared: Comparison) -> list[tuple[str, list[Sequence[str]]]]:
    """(name and source, rows) per published table."""
    return difference_tables(differences(compared.runs))


def latex(compared: Comparison) -> str:
    """The table in LaTeX (package booktabs), followed by one comparison per published table that the runs expect."""
    head, rows = table(compared)
    found = _tabular(head, [[rf"\textbf{{{_tex(c.text)}}}" if c.best else _tex(c.text) for c in row] for row in rows])
    for title, lines in published(compared):
        found += f"\n% {title}\n{_tabular(HEAD, [[*map(_tex, line)] for line in lines])}"
    return found


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(" & ".join(line) + " \\\\\n" for line in rows)
    top = f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n" + " & ".join(map(_tex, head))
    return f"{top} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def _tex(text: str) -> str:
    for mark in "\\&%$#_{}":
        text = text.replace(mark, rf"\{mark}" if mark != "\\" else "/")
    return text.replace("±", r"$\pm$").replace("\N{NO-BREAK SPACE}", "~")


def as_csv(compared: Comparison) -> str:
    """All values behind the table as CSV: seed, method, column, value."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n")
    write.writerow(["seed", "method", "column", "value"])
    for run in compared.runs:
        for trial in run.trials:
            costs = {"sent_bytes": uploaded(trial), "seconds": seconds(trial), "parameters": trial.about.trainable}
            known = {**trial.figures, **{name: value for name, value in costs.items() if value is not None}}
            said = trial.diagnostics.diagnostics if trial.diagnostics else ()
            known |= {one.name: one.value for one in said if one.value is not None}
            write.writerows([run.header.seed, trial.name, column, value] for column, value in known.items())
    return file.getvalue()
