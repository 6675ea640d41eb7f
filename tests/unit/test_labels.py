"""Labels beside points: inside their axes, apart from each other, and one for points at one place."""

from itertools import combinations

import pytest

from tuneleak.report import labels, style


@pytest.fixture
def drawn():
    with style.figure(3, 2) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        yield figure, axes


def boxes(axes):
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


def test_labels_stay_inside_their_axes(drawn):
    figure, axes = drawn
    corners = [(0, 0, "lower left"), (1, 0, "lower right"), (0, 1, "upper left"), (1, 1, "upper right"), (1, 0.5, "right")]
    labels.label(figure, {axes: corners})
    frame = axes.get_window_extent()
    assert len(boxes(axes)) == 5
    for name, box in boxes(axes).items():
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, name


def test_labels_of_near_points_do_not_cover_each_other(drawn):
    figure, axes = drawn
    labels.label(figure, {axes: [(0.5, 0.5, "first of them"), (0.54, 0.5, "second of them"), (0.52, 0.53, "third of them")]})
    assert len(axes.texts) == 3 and not any(a.overlaps(b) for a, b in combinations(boxes(axes).values(), 2))


def test_points_at_one_place_share_a_label(drawn):
    figure, axes = drawn
    labels.label(figure, {axes: [(0.5, 0.5, "none"), (0.2, 0.5, "cutout"), (0.5, 0.5, "gauge")]})
    assert {text.get_text() for text in axes.texts} == {"none, gauge", "cutout"}


def test_labels_do_not_move_what_is_drawn(drawn):
    figure, axes = drawn
    figure.draw_without_rendering()
    before = axes.get_position().bounds
    labels.label(figure, {axes: [(1, 1, "a long label in the corner")]})
    figure.draw_without_rendering()
    assert axes.get_position().bounds == pytest.approx(before, abs=1e-9)
