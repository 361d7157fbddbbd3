"""Runs of one recipe under several seeds, side by side: means and spreads, paired differences, and what each cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fedprompt.errors import UserError
from fedprompt.records.reading import GAP, NATURAL, Run, Trial
from fedprompt.report.published import HEAD, as_markdown, differences, printed_tables
from fedprompt.report.style import size_text

HEADLINES = ("hm", "base", NATURAL)  # the figure that one number stands for, the first that a run has


@dataclass(frozen=True)
class Cell:
    """One entry of the table; `best` is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """The same trials under different seeds; `runs` are in the order of their seeds."""

    runs: tuple[Run, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials, as the first run has them."""
        return self.runs[0].trials

    @property
    def headline(self) -> str:
        """The column that stands for all."""
        return headline(self.runs[0])

    def values(self, name: str, column: str) -> list[float]:
        """A trial's figure in percent, one a seed; empty if some run lacks it."""
        found = [self.trial(run, name).figures.get(column) for run in self.runs]
        return [] if None in found else [100 * value for value in found if value is not None]

    def differences(self, name: str) -> list[float]:
        """Points by which a trial is ahead of the main one in the headline, seed by seed."""
        main = self.runs[0].main
        mine, theirs = self.values(name, self.headline), self.values(main.name, self.headline) if main else []
        return [ours - other for ours, other in zip(mine, theirs, strict=False)]

    @staticmethod
    def trial(run: Run, name: str) -> Trial:
        """The trial of that name."""
        return next(trial for trial in run.trials if trial.name == name)


def headline(run: Run) -> str:
    """The column of a run that stands for all."""
    return next((column for column in HEADLINES if column in run.columns), run.columns[0])


def by_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """A run a seed with the trials of all its runs, as if they had been one; the first has the main trial.

    Raises UserError for runs of one seed on other data, or with two trials of one name that ended unlike.
    """
    groups: dict[int | None, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.header.seed, []).append(run)
    return tuple(_joined(seed, own) for seed, own in groups.items())


def _joined(seed: int | None, runs: Sequence[Run]) -> Run:
    trials: dict[str, Trial] = {}
    if len({str(run.header.data.get("fingerprint")) for run in runs}) > 1:
        raise UserError(f"The runs with seed {seed} are on different data; what they say cannot stand in one table.")
    for trial in (trial for run in runs for trial in run.trials):
        if trials.setdefault(trial.name, trial).figures != trial.figures:
            raise UserError(
                f"Two runs with seed {seed} have a trial called {trial.name!r} and figures of their own; give one of "
                "them a label."
            )
    expected = tuple(dict.fromkeys(one for run in runs for one in run.header.expected))
    header = runs[0].header.model_copy(update={"expected": expected})
    return replace(runs[0], header=header, trials=tuple(trials.values()))


def comparison(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side; UserError unless they have the same trials and seeds of their own."""
    names = {tuple(trial.name for trial in run.trials) for run in runs}
    seeds = {run.header.seed for run in runs}
    if len(names) != 1 or len(seeds) != len(runs):
        raise UserError(
            "Runs that are compared must have the same trials and different seeds; give runs of one recipe."
        )
    return Comparison(tuple(sorted(runs, key=lambda run: run.header.seed or 0)))


def uploaded(trial: Trial) -> float | None:
    """Bytes that a client has sent when training ends, mean over those that sent; None if none was to."""
    clients = {client for line in trial.rounds for client in line.bytes_up}
    return sum(sum(line.bytes_up.values()) for line in trial.rounds) / len(clients) if clients else None


def seconds(trial: Trial) -> float | None:
    """Seconds of all rounds together; None for a trial that does not train."""
    known = [line.seconds for line in trial.rounds if line.seconds is not None]
    return sum(known) if known else None


def table(compared: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows: every figure as mean ± standard deviation over seeds, the paired difference, and the cost."""
    first = compared.runs[0]
    main = first.main
    columns = [*first.columns]
    best = {column: _best(compared, column) for column in columns}
    head = ["method", *map(first.title, columns)]
    head += [f"{first.title(compared.headline)} against {main.label if main else ''}", "parameters", "sent", "seconds"]
    rows = []
    for trial in compared.trials:
        found = {column: compared.values(trial.name, column) for column in columns}
        cells = [Cell(_spread(found[column]), bool(found[column]) and trial.name in best[column]) for column in columns]
        ahead = Cell("" if trial == main else _spread(compared.differences(trial.name), sign="+"))
        rows.append([Cell(trial.label), *cells, ahead, *map(Cell, _costs(compared, trial))])
    return head, rows


def _best(compared: Comparison, column: str) -> set[str]:
    """The trials whose mean, rounded as the table shows it, is the largest, or of the gap the smallest."""
    found = {trial.name: compared.values(trial.name, column) for trial in compared.trials}
    means = {name: round(fmean(values), 1) for name, values in found.items() if values}
    best = (min if column == GAP else max)(means.values(), default=0.0)
    return {name for name, mean in means.items() if mean == best}


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return ""
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _costs(compared: Comparison, trial: Trial) -> tuple[str, str, str]:
    trained = "" if trial.about.trainable is None else f"{trial.about.trainable:,}"
    sent, took = over_seeds(compared, trial, uploaded), over_seeds(compared, trial, seconds)
    return trained, "" if sent is None else size_text(sent), "" if took is None else f"{took:.0f}"


def over_seeds(compared: Comparison, trial: Trial, read: Callable[[Trial], float | None]) -> float | None:
    """The mean over seeds of what is read off a trial, as far as it is known."""
    found = [read(compared.trial(run, trial.name)) for run in compared.runs]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def markdown(compared: Comparison) -> str:
    """The table for a README, and under it ours beside each published table that the runs expect."""
    head, rows = table(compared)
    found = as_markdown(head, [[f"**{c.text}**" if c.best else c.text for c in row] for row in rows])
    for title, lines in published(compared):
        found += f"\n{title}. In percent; the difference is ours minus published.\n\n{as_markdown(HEAD, lines)}"
    return found


def published(compared: Comparison) -> list[tuple[str, list[Sequence[str]]]]:
    """Each published table's name with its source, and its rows."""
    return printed_tables(differences(compared.runs))


def latex(compared: Comparison) -> str:
    """The table for a paper (package booktabs), and under it one for each published table that the runs expect."""
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
    """Every number behind the table, a line each: seed, method, column, value."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n")
    write.writerow(["seed", "method", "column", "value"])
    for run in compared.runs:
        for trial in run.trials:
            costs = {"sent_bytes": uploaded(trial), "seconds": seconds(trial), "parameters": trial.about.trainable}
            known = {**trial.figures, **{name: value for name, value in costs.items() if value is not None}}
            write.writerows([run.header.seed, trial.name, column, value] for column, value in known.items())
    return file.getvalue()
