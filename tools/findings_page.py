"""The page of what reproduces on the embedded images: claims of tools/findings.toml decided from docs/findings.csv."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from fedprompt.studies.published_tables import PublishedCell, table
from tools.markdown import ROOT, bullet, cell, wrapped

CLAIMS, VALUES, PAGE = (ROOT / name for name in ("tools/findings.toml", "docs/findings.csv", "docs/findings.md"))
HEAD = ("source", "seed", "method", "column", "value")
OTHERS = "*"  # instead of a method: every other one that trains, without the variants, whose names have a hyphen
TRAINED = "parameters"  # the column that says how much a method trains
UNMEASURED = "not measured yet"
UNKNOWN = "none known"
TITLE = """<!-- Made by `python -m tools.collect` from tools/findings.toml and docs/findings.csv. -->
# What reproduces on the embedded images
"""
INTRODUCTION = (
    "The papers of FedMVP and FedMPT measure on photographs with ViT-B/16. Here the same methods are trained on the "
    "[embedded images](demo.md) with the embedded CLIP of 3.4 million weights. Sizes of differences cannot agree. "
    "Their signs can: which method is better, where, and which of its parts improves it. Each claim below is such a "
    "sign.",
)
RULES = (
    "Figures are in percent, mean ± standard deviation over seeds. A seed draws the images, which all methods share, "
    "so methods are compared seed by seed. *Difference* is the mean of these differences ± their standard deviation.",
    "The claim that one method is better *holds* if it is better on every seed, and if the mean difference is larger "
    "than the standard deviation of the differences. Where a claim names points, the mean difference must be at least "
    "that large. *The opposite holds* if the other method is better by the same rule.",
    "The claim that a method is not worse holds unless the opposite holds.",
    "Against *every other trained method*, the rule must hold for each of them, and one that is better suffices for "
    "the opposite. The one with the highest mean is shown. Variants of a method are left out.",
    "All values, by seed, are in [findings.csv](findings.csv).",
)
COLUMNS = ("claim", "published", "measured", "difference", "verdict", "why, where it does not hold")
Seeds = Mapping[int, float]
Values = Mapping[tuple[str, str, str], Seeds]  # (file, method, column) -> seed -> value, as in the file


class Table(BaseModel):
    """A table of tools/findings.toml; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cells(Table):
    """The published figures of a claim: two rows of a table, in some of its columns."""

    table: str
    more: str
    less: str
    columns: tuple[str, ...]
    measure: str = ""


class Claim(Table):
    """`more` has a higher figure than `less`, by at least `by` points."""

    says: str
    more: str
    less: str
    column: str
    by: float = 0.0
    allow_equal: bool = False
    published: Cells | None = None
    why: str = ""


class Part(Table):
    """The claims that one table of `fedprompt compare` decides."""

    title: str
    source: str
    about: str
    claim: tuple[Claim, ...]


def parts() -> list[Part]:
    """The claims, as they are written."""
    return [Part.model_validate(one) for one in tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["part"]]


def read_csv(path: Path, source: str) -> list[dict[str, str]]:
    """The lines of a table by `fedprompt compare`, with the file's name."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{"source": source} | line for line in csv.DictReader(file)]


def values(lines: Sequence[Mapping[str, str]]) -> Values:
    """The values of lines with the columns of `HEAD`."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for line in lines:
        found.setdefault((line["source"], line["method"], line["column"]), {})[int(line["seed"])] = float(line["value"])
    return found


def collected(kept: str, runs: Path) -> tuple[str, list[str]]:
    """The text of docs/findings.csv after the tables in `runs`, and the tables that are not there.

    `kept` is the text that it has; what it has of a missing table stays.
    """
    before = list(csv.DictReader(io.StringIO(kept)))
    columns: dict[str, set[str]] = {}
    for part in parts():
        columns.setdefault(part.source, {TRAINED}).update(claim.column for claim in part.claim)
    missing = [source for source in columns if not (runs / source).is_file()]
    file = io.StringIO()
    write = csv.DictWriter(file, HEAD, lineterminator="\n")
    write.writeheader()
    for source, used in columns.items():
        old = [line for line in before if line["source"] == source]
        lines = old if source in missing else read_csv(runs / source, source)
        write.writerows({key: line[key] for key in HEAD} for line in lines if line["column"] in used)
    return file.getvalue(), missing


def page() -> str:
    """The text of docs/findings.md."""
    return made(parts(), values(list(csv.DictReader(VALUES.read_text(encoding="utf-8").splitlines()))))


def made(found: Sequence[Part], known: Values) -> str:
    """The page of claims and values."""
    text = [TITLE, *(f"\n{wrapped(paragraph)}\n" for paragraph in INTRODUCTION), "\n", *map(bullet, RULES)]
    for part in found:
        rows = [_row(part.source, claim, known) for claim in part.claim]
        text += [f"\n## {part.title}\n\n{wrapped(f'{part.about} {_summary([row[4] for row in rows])}')}\n\n"]
        text += [f"| {' | '.join(map(cell, row))} |\n" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    return "".join(text)


def _summary(verdicts: Sequence[str]) -> str:
    measured = [verdict for verdict in verdicts if verdict != UNMEASURED]
    return f"Of {len(verdicts)} claims, {len(measured)} are measured and {measured.count('holds')} hold."


def _row(source: str, claim: Claim, known: Values) -> tuple[str, ...]:
    """The cells of a claim, in the order of `COLUMNS`."""
    more = known.get((source, claim.more, claim.column), {})
    rivals = {name: known.get((source, name, claim.column), {}) for name in _rivals(source, claim, known)}
    pairs = {name: _differences(more, less) for name, less in rivals.items()}
    if not pairs or any(len(own) < 2 for own in pairs.values()):
        return (claim.says, _published(claim.published), UNMEASURED, "", UNMEASURED, claim.why)
    shown = max(rivals, key=lambda name: fmean(rivals[name].values()))
    next_to = f"next `{shown}`" if claim.less == OTHERS else "against"
    return (
        claim.says,
        _published(claim.published),
        f"{_spread([*more.values()])} {next_to} {_spread([*rivals[shown].values()])}",
        _spread(pairs[shown], sign="+", scale=1),
        verdict(claim, list(pairs.values())),
        claim.why,
    )


def _rivals(source: str, claim: Claim, known: Values) -> Iterator[str]:
    """The methods that a claim compares with."""
    if claim.less != OTHERS:
        yield claim.less
        return
    for file, method, column in known:
        trained = any(known.get((file, method, TRAINED), {}).values())
        if (file, column) == (source, claim.column) and trained and "-" not in method and method != claim.more:
            yield method


def _differences(more: Seeds, less: Seeds) -> list[float]:
    """Differences in points on the seeds of both."""
    return [100 * (more[seed] - less[seed]) for seed in more if seed in less]


def verdict(claim: Claim, differences: Sequence[Sequence[float]]) -> str:
    """What the differences to each rival, seed by seed in points, say about a claim."""
    opposite = any(_clear([-one for one in own]) for own in differences)
    if claim.allow_equal:
        return "does not hold" if opposite else "holds"
    if all(_clear(own) and fmean(own) >= claim.by for own in differences):
        return "holds"
    return "the opposite holds" if opposite else "does not hold"


def _clear(differences: Sequence[float]) -> bool:
    """Whether all differences are positive, and their mean is larger than their standard deviation."""
    return min(differences) > 0 and fmean(differences) > stdev(differences)


def _spread(found: Sequence[float], *, sign: str = "", scale: float = 100) -> str:
    return f"{scale * fmean(found):{sign}.1f} ± {scale * stdev(found):.1f}"


def _published(cells: Cells | None) -> str:
    """The published figures and their difference, column by column."""
    if cells is None:
        return UNKNOWN
    said = []
    for column in cells.columns:
        own = {one.row: one for one in table(cells.table) if (one.column, one.measure) == (column, cells.measure)}
        more, less = own[cells.more], _published_rival(own, cells)
        next_to = f"next {less.row}" if cells.less == OTHERS else "against"
        name = f"{column} " if len(cells.columns) > 1 else ""
        said.append(f"{name}{more.value:.2f} {next_to} {less.value:.2f} ({more.value - less.value:+.2f})")
    return "; ".join(said)


def _published_rival(own: Mapping[str, PublishedCell], cells: Cells) -> PublishedCell:
    if cells.less != OTHERS:
        return own[cells.less]
    others = (one for row, one in own.items() if row != cells.more and not row.startswith("zero-shot"))
    return max(others, key=lambda one: one.value)
