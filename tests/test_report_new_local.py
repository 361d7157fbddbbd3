"""The figure of new classes against local accuracy, drawn from made-up results."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from fedprompt.report.new_local import Dot, new_local_drawing

CLIP = Dot("Zero-shot CLIP", (88.0, 88.4, 88.2), (62.0, 62.3, 61.7), trains=False, reference=True)
METHODS = [
    Dot(f"method-{place}", (88.5 + place / 4, 88.9 + place / 4), (61.0 + place / 3, 61.4 + place / 3))
    for place in range(9)
]
FAR = Dot("far", (76.0, 76.2), (29.0, 29.4))


def drawn(*dots: Dot) -> Axes:
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.add_subplot()
    new_local_drawing({"": dots}).paint(axes)
    figure.draw_without_rendering()
    return axes


def test_every_method_has_a_dot_at_its_means_with_bars_and_a_label() -> None:
    axes = drawn(CLIP, *METHODS)
    for dot, bars in zip((CLIP, *METHODS), axes.containers, strict=True):
        (line, _, (across, along)) = bars.lines  # type: ignore[attr-defined]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx(dot.means)
        ends = across.get_segments()[0][:, 0], along.get_segments()[0][:, 1]
        assert [(end[1] - end[0]) / 2 for end in ends] == pytest.approx(dot.spreads)
    assert {dot.label for dot in (CLIP, *METHODS)} <= {text.get_text() for text in axes.texts}


def test_labels_and_notes_do_not_overlap() -> None:
    axes = drawn(CLIP, *METHODS, FAR)
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) > 1 + len(METHODS)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_lines_through_the_reference_divide_the_figure_and_their_sides_are_named() -> None:
    axes = drawn(CLIP, *METHODS)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed[:1]] + [line.get_ydata()[0] for line in dashed[1:]] == pytest.approx(
        CLIP.means
    )
    said = {text.get_text() for text in axes.texts}
    assert {"better on both", "better on local, worse on new classes"} <= said
    assert not {text.get_text() for text in drawn(*METHODS).texts} & {"better on both"}


def test_an_outlier_is_an_arrow_at_the_edge_with_its_figures_and_presses_nothing_together() -> None:
    without, axes = drawn(CLIP, *METHODS), drawn(CLIP, *METHODS, FAR)
    assert axes.get_xlim() == without.get_xlim() and axes.get_ylim() == without.get_ylim()
    assert "far (76, 29)" in {text.get_text() for text in axes.texts}
    few = drawn(CLIP, METHODS[0], FAR)
    assert few.get_ylim()[0] < FAR.means[1], "of a few methods, all are drawn where they are"


def test_equal_accuracies_are_drawn() -> None:
    low, high = drawn(replace(CLIP, local=(50.0,), new=(50.0,))).get_xlim()
    assert low < 50 < high


def test_panels_stand_beside_each_other_under_their_titles() -> None:
    drawing = new_local_drawing({"measured": [CLIP, *METHODS], "published": [CLIP, METHODS[0]]})
    assert ">measured<" in drawing.svg and ">published<" in drawing.svg and drawing.svg.count(">method-0<") == 2
    figure = Figure(figsize=(14, 7), layout="constrained")
    drawing.paint(figure.add_subplot())
    figure.draw_without_rendering()
    left, right = figure.axes
    assert left.get_window_extent().x1 < right.get_window_extent().x0
