"""Claims of the papers, decided from values by seed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tools import measured
from tools.findings_page import OTHERS, UNMEASURED, VALUES, Claim, Part, Values, collected, made, parts, values, verdict
from tools.measured import NEW_LOCAL, panels

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.experiments.plan import resolve
from fedprompt.studies.published_tables import table

SOURCE = "compare/compare_single.csv"
BETTER = Claim(says="A is better.", more="a", less="b", column="new")


def known(column: str = "new", **figures: tuple[float, ...]) -> Values:
    """Values by seed 1, 2, ... of trained methods, in percent."""
    found = {
        (SOURCE, name.replace("_", "-"), column): {seed: value / 100 for seed, value in enumerate(own, start=1)}
        for name, own in figures.items()
    }
    return found | {(SOURCE, method, "parameters"): {1: 4.0} for _, method, _ in found}


def row(claim: Claim, found: Values) -> list[str]:
    text = made([Part(title="T", source=SOURCE, about="About.", claim=(claim,))], found)
    return [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((1.0, 1.2, 0.8), "holds"),
        ((1.0, 1.2, -0.1), "does not hold"),  # not on every seed
        ((0.1, 0.1, 5.0), "does not hold"),  # the mean is below the standard deviation
        ((-1.0, -1.2, -0.8), "the opposite holds"),
    ],
)
def test_a_method_is_better_on_every_seed_and_beyond_the_spread(differences: tuple[float, ...], said: str) -> None:
    assert verdict(BETTER, [differences]) == said
    assert verdict(BETTER, [(5.0, 5.1, 4.9), differences]) == said, "each rival must be beaten"


def test_a_number_of_points_is_part_of_a_claim() -> None:
    assert verdict(BETTER.model_copy(update={"by": 2.0}), [(1.9, 2.2, 2.0)]) == "holds"
    assert verdict(BETTER.model_copy(update={"by": 2.1}), [(1.9, 2.2, 2.0)]) == "does not hold"


def test_a_method_is_not_worse_unless_the_opposite_is_clear() -> None:
    claim = BETTER.model_copy(update={"allow_equal": True})
    assert verdict(claim, [(-0.1, 0.1, -0.1)]) == "holds"
    assert verdict(claim, [(-1.0, -1.1, -1.2)]) == "does not hold"


def test_methods_are_compared_seed_by_seed() -> None:
    """Figures that vary much between seeds, by the same amount for both."""
    cells = row(BETTER, known(a=(60.5, 70.6, 50.4), b=(60.0, 70.0, 50.0)))
    assert cells[2:5] == ["60.5 ± 10.1 against 60.0 ± 10.0", "+0.5 ± 0.1", "holds"]


def test_against_all_others_variants_and_untrained_methods_do_not_count() -> None:
    claim = BETTER.model_copy(update={"less": OTHERS})
    found = known(a=(70.0, 70.2), b=(60.0, 60.2), c=(65.0, 65.2), a_foreign=(80.0, 80.1), zeroshot=(90.0, 90.1))
    found = {**found, (SOURCE, "zeroshot", "parameters"): {1: 0.0}}
    assert row(claim, found)[2:5] == ["70.1 ± 0.1 next `c` 65.1 ± 0.1", "+5.0 ± 0.0", "holds"]


def test_what_is_not_measured_says_so_and_published_figures_stand_beside_it() -> None:
    claim = parts()[0].claim[0]
    cells = row(claim, {})
    assert cells[0] == claim.says and cells[2] == cells[4] == UNMEASURED
    printed = {(cell.row, cell.column): cell.value for cell in table("base-to-new")}
    ours, other = printed["PromptFL", "local"], printed["zero-shot CLIP", "local"]
    assert cells[1] == f"{ours:.2f} against {other:.2f} ({ours - other:+.2f})"
    assert row(BETTER, known(a=(60.0,), b=(59.0,)))[4] == UNMEASURED, "one seed decides nothing"


def test_reasons_written_by_hand_are_in_the_last_column() -> None:
    assert row(BETTER.model_copy(update={"why": "Contexts are short."}), {})[-1] == "Contexts are short."


def test_values_are_taken_from_tables_and_those_of_missing_tables_stay(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "compare_single.csv").write_text(
        "seed,method,column,value\n1,fedmvp,new,0.66\n1,fedmvp,parameters,440960\n1,fedmvp,seconds,4.2\n"
    )
    kept = (
        "source,seed,method,column,value\nstudy/study.csv,1,zeroshot,hm,0.7\ncompare/compare_single.csv,1,old,new,0.1\n"
    )
    text, missing = collected(kept, tmp_path)
    assert text.splitlines() == [
        "source,seed,method,column,value",
        "compare/compare_single.csv,1,fedmvp,new,0.66",
        "compare/compare_single.csv,1,fedmvp,parameters,440960",
        "study/study.csv,1,zeroshot,hm,0.7",
    ]
    assert "study/study.csv" in missing and SOURCE not in missing
    assert collected(text, tmp_path) == (text, missing)


def test_every_claim_is_about_methods_and_figures_that_are_measured_and_published() -> None:
    for part in parts():
        trials = {trial.name for trial in resolve(load_recipe(find_recipe(Path(part.source).stem))).trials}
        for claim in part.claim:
            assert {claim.more, claim.less} - {OTHERS} <= trials, claim.says
            if (said := claim.published) is not None:
                cells = {(one.row, one.column, one.measure) for one in table(said.table)}
                rows = {said.more, said.less} - {OTHERS}
                assert {(name, column, said.measure) for name in rows for column in said.columns} <= cells, claim.says


def test_the_kept_values_are_of_the_claims() -> None:
    with VALUES.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["source"] for line in lines} <= {part.source for part in parts()}
    assert all(
        0 <= value <= 1 for (*_, column), own in values(lines).items() if column == "new" for value in own.values()
    )


def test_the_figure_of_the_readme_has_methods_without_variants_and_their_published_figures() -> None:
    figures = {
        (NEW_LOCAL, method, column): {1: 0.5, 2: 0.6}
        for method in ("zeroshot", "promptfl", "fedkgcoop", "fedmvp", "fedmvp-foreign")
        for column in ("local", "new")
    } | {(NEW_LOCAL, "fedmvp", "parameters"): {1: 4.0}}
    ours, published = panels(figures).values()
    assert [dot.label for dot in ours] == ["zero-shot CLIP", "promptfl", "fedkgcoop", "fedmvp"]
    assert [(dot.label, dot.local) for dot in ours if dot.main] == [("fedmvp", (50.0, 60.0))]
    assert [dot.reference for dot in ours] == [True, False, False, False]
    printed = {(cell.row, cell.column): cell.value for cell in table("base-to-new")}
    shown = {dot.label: dot.means for dot in published}
    assert shown["fedmvp"] == (printed["FedMVP", "local"], printed["FedMVP", "new"])
    assert set(shown) == {"zero-shot CLIP", "promptfl", "fedmvp"}, "FedKgCoOp's row is only recalled"


def test_the_page_and_the_figure_are_written_from_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "compare").mkdir()
    lines = [
        f"{seed},{method},{column},{value + seed / 100}"
        for seed in (1, 2)
        for method, value in (("zeroshot", 0.5), ("promptfl", 0.6), ("fedmvp", 0.7))
        for column in ("local", "new")
    ]
    (tmp_path / NEW_LOCAL).write_text("\n".join(["seed,method,column,value", *lines]) + "\n", encoding="utf-8")
    for name, path in (("VALUES", "findings.csv"), ("PAGE", "findings.md")):
        monkeypatch.setattr(f"tools.findings_page.{name}", tmp_path / "docs" / path)
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    (tmp_path / "docs" / "findings.csv").write_text("source,seed,method,column,value\n", encoding="utf-8")
    assert "docs/findings.md: study/study.csv" in [*measured.findings(tmp_path)]
    page = (tmp_path / "docs" / "findings.md").read_text(encoding="utf-8")
    assert "| PromptFL loses on new classes. |" in page and "the opposite holds" in page
    assert "docs/demo.svg: demo" in [*measured.figures(tmp_path)]
    assert "promptfl" in (tmp_path / "docs" / "new_local.svg").read_text(encoding="utf-8")
