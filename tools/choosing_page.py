"""The page on which method and learning rate to choose: made from the tables of docs/comparison.md and the code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedprompt import methods
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.config.tuned import own_defaults, tuned_defaults
from fedprompt.experiments.plan import Trial, resolve
from fedprompt.methods.base import Method
from tools import method_pages
from tools.markdown import ROOT, bullet, wrapped

COMPARISON, PAGE = ROOT / "docs" / "comparison.md", ROOT / "docs" / "choosing.md"
TABLES = {
    "compare_single": ("One label per image", "HM", ("Local", "Base", "New", "HM", "Unseen")),
    "compare_multi": ("Several labels per image", "Natural mAP", ("Natural mAP", "Natural CF1", "Broken mAP")),
}
KINDS: Mapping[str, Literal["single", "multi"]] = {"HM": "single", "Natural mAP": "multi"}  # by headline
BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
CLOSE = 1.0  # point of the headline figure within which a method counts as good as the best
HEAD = """<!-- Made by `python -m tools.collect` from docs/comparison.md, its recipes and the methods' code. -->
# Which method, and which learning rate
"""
INTRODUCTION = (
    "What each method needs, what it costs and what it was good for in the [comparison](comparison.md), where all "
    "methods have the same clients, rounds, batches and grid of learning rates. The images there are drawings and "
    "scenes made by a program, and the backbone is the embedded CLIP. So read the tables as a first guess: which side "
    "of CLIP must change depends on how your images differ from those that it was trained on.",
    "Find out for your own images with `fedprompt tune own_folder --set data.path=IMAGES --method "
    "fedvpt,fedmaple,promptfl --minutes 30`. It tries the same rates on images held out from training, and ends "
    "with a run of the best, tested on images that it has not seen ([how](protocols.md#tuning-for-your-own-images)).",
)
READING = (
    "**Rate**: the learning rate of AdamW with the best headline figure on a seed that no table uses. **Default**: the "
    "one that `own_folder` and `own_table` take, tuned on other sets ([own images](own_images.md#learning-rates)).",
    "**Better, worse**: columns that differ from zero-shot CLIP by more than both standard deviations over seeds.",
    "**Gradients**: the towers of CLIP that they pass through in every step. Features of a tower without gradients "
    "are cached, so at ViT-B/16 a method with gradients through the image tower costs far more than one without.",
    "**Sent** is what one client uploads in all rounds; **seconds** are of training on one core with the embedded "
    "CLIP, beside another busy core.",
)
SMALL_SETS = (
    "Gain over zero-shot CLIP on test images, in points, with the learning rate that is the method's default in "
    "`own_folder` and `own_table`: mean over four small sets with one label per image (emoji, cluttered emoji, a "
    "domain tree, coloured shapes) and two with several (scenes, shapes), 10 rounds each "
    "([how](own_images.md#learning-rates)). The rates were chosen by these figures, so the gains are a little too "
    "high. All classes are trained on, so nothing is said about new ones.",
)


@dataclass(frozen=True)
class Row:
    """A method's row of a results table: (mean, standard deviation) per column, and its costs as they are printed."""

    figures: Mapping[str, tuple[float, float]]
    sent: str
    seconds: str


def results() -> list[dict[str, Row]]:
    """The results tables of docs/comparison.md, method -> row."""
    found: list[dict[str, Row]] = []
    head: list[str] = []
    for line in COMPARISON.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if "sent" in cells and "seconds" in cells:
            head = cells
            found.append({})
        elif not cells:
            head = []
        elif head and len(cells) == len(head) and cells[1].strip("-"):
            named = dict(zip(head, cells, strict=True))
            figures = {name: (float(value[1]), float(value[2])) for name in head if (value := _spread(named[name]))}
            found[-1][named["method"]] = Row(figures, named["sent"], named["seconds"])
    return found


def _spread(text: str) -> re.Match[str] | None:
    return re.fullmatch(r"([-+]?[\d.]+) ± ([\d.]+)", text)


def page() -> str:
    """The text of docs/choosing.md; as it is where the package of a method is not installed."""
    if set(methods.names()) - set(methods.installed()):
        return PAGE.read_text(encoding="utf-8")
    parts = [HEAD, *(f"\n{wrapped(paragraph)}\n" for paragraph in INTRODUCTION), "\n", *map(bullet, READING)]
    parts += ["\n## Small sets of one's own\n", *(f"\n{wrapped(text)}\n" for text in SMALL_SETS), "\n", *_small_sets()]
    measured = results()
    for name, (title, headline, columns) in TABLES.items():
        table = next((one for one in measured if any(headline in row.figures for row in one.values())), None)
        if table is None:
            parts.append(f"\n## {title}\n\n*To be measured on these images.*\n")
            continue
        trials = {trial.label: trial for trial in resolve(load_recipe(find_recipe(name))).trials}
        rows = {label: row for label, row in table.items() if label in trials}
        ranked = sorted(rows, key=lambda label: -rows[label].figures[headline][0])
        parts += [f"\n## {title}\n\n", *map(bullet, _advice(rows, headline)), "\n"]
        parts += _table([(trials[label], rows[label]) for label in ranked], _zero_shot(rows), headline, columns)
    return "".join(parts)


def _small_sets() -> Iterator[str]:
    """The table of gains and default rates on small sets, the largest gain with one label first."""
    single, multi = (tuned_defaults()[own_defaults(kind)[0]] for kind in ("single", "multi"))
    head = ("method", "one label: gain", "rate", "several labels: gain", "rate", "needs")
    yield f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|\n"
    for name in sorted(single, key=lambda name: -single[name]["gain"]):
        cells = (f"{one[name]['gain']:+.1f} | {one[name]['train']['lr']:g}" for one in (single, multi))
        yield f"| [{name}](methods/{name}.md) | {' | '.join(cells)} | {needs(methods.load(name))} |\n"


def _advice(rows: Mapping[str, Row], headline: str) -> list[str]:
    """The best method, the cheapest that comes close to it, and what is better than zero-shot without much cost."""
    zero = _zero_shot(rows)
    best = max(rows, key=lambda label: rows[label].figures[headline][0])
    top = rows[best].figures[headline][0]
    said = [f"Highest {headline}: {best} ({top:.1f}; zero-shot CLIP {zero.figures[headline][0]:.1f})."]
    near = [label for label in rows if top - rows[label].figures[headline][0] <= CLOSE and rows[label].sent]
    if len(near) > 1:
        least = min(near, key=lambda label: _bytes(rows[label].sent))
        said.append(f"Within a point of it: {', '.join(near)}. Fewest bytes of these: {least}, {rows[least].sent}.")
    ahead = [label for label in rows if rows[label].sent and headline in _changed(rows[label], zero, [headline])[0]]
    quick = min(ahead, key=lambda label: float(rows[label].seconds))
    said.append(f"Better than zero-shot CLIP in the fewest seconds: {quick}, {rows[quick].seconds} s.")
    return said


def _bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * BYTES[unit]


def _table(rows: Sequence[tuple[Trial, Row]], zero: Row, headline: str, columns: Sequence[str]) -> list[str]:
    defaults = tuned_defaults()[own_defaults(KINDS[headline])[0]]
    head = ("method", "rate", "default", headline, "better in", "worse in", "gradients", "needs", "sent", "seconds")
    lines = [f"| {' | '.join(head)} |\n", "| --- " * len(head) + "|\n"]
    for trial, row in rows:
        better, worse = _changed(row, zero, columns)
        step = method_pages.observe(trial.method)
        towers = [tower for tower, passed in {"image": step.image, "text": step.text}.items() if passed]
        cells = (
            f"[{trial.label}](methods/{trial.method}.md)",
            f"{trial.settings.lr:g}" if row.seconds else "",
            f"{defaults.get(trial.method, {}).get('train', {}).get('lr', '')}",
            f"{row.figures[headline][0]:.1f}",
            ", ".join(better),
            ", ".join(worse),
            " and ".join(towers) or "none",
            needs(methods.load(trial.method), trial.sharing),
            row.sent,
            row.seconds,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return lines


def _zero_shot(rows: Mapping[str, Row]) -> Row:
    return next(row for row in rows.values() if not row.sent and not row.seconds)


def _changed(row: Row, zero: Row, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns in which a method is better and worse than zero-shot, beyond both standard deviations."""
    better: list[str] = []
    worse: list[str] = []
    for column in columns:
        (mean, spread), (start, other) = row.figures[column], zero.figures[column]
        if abs(mean - start) > spread + other:
            (better if mean > start else worse).append(column)
    return better, worse


def needs(method: type[Method], sharing: str = "federated") -> str:
    """What a method needs besides images and class names."""
    said = {
        "no federation": sharing == "pooled",
        "no server": sharing == "local",
        **{what: what in method.reads for what in ("attributes", "conditions")},
        "tensors that stay at clients": sharing == "federated" and bool(method.personal),
        **{f"the package {package}": True for package in method.needs},
    }
    return ", ".join(what for what, holds in said.items() if holds)
