"""What the figures of a report show."""

import itertools

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from jevomerge.genome.route import Hop, PathSpace, encode, hops_of
from jevomerge.reports.figures import (
    coefficient_panels,
    coefficients_figure,
    fitness_figure,
    history_figure,
    label_heights,
    progress,
)
from jevomerge.reports.path_history import changes, shorten
from jevomerge.reports.path_picture import floors, path_figure
from jevomerge.reports.record import Paths, read_paths

# --- paths --------------------------------------------------------------------------------------------------


def random_path(depths, count, seed=0):
    """Hops through models a, b, ... and the pass of each."""
    rng = np.random.default_rng(seed)
    layers = [(m, i) for m, depth in zip("abc", depths, strict=False) for i in range(depth)]
    slots = np.sort(rng.choice(3 * len(layers), count, replace=False))
    return [Hop(*layers[s % len(layers)], rng.uniform(0.6, 1.2)) for s in slots], slots // len(layers)


@pytest.mark.parametrize(("depths", "count"), [((4, 5), 12), ((40, 40), 160), ((32, 32, 24), 100)])
def test_every_hop_is_in_the_lane_of_its_model(depths, count):
    hops, passes = random_path(depths, count)
    axes = path_figure("abc"[: len(depths)], depths, hops, passes).axes[0]
    lanes = {p.get_gid().removeprefix("lane "): p.get_bbox() for p in axes.patches if p.get_gid()}
    assert list(lanes) == list("abc"[: len(depths)])
    assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(lanes.values()))
    points = [c for c in axes.collections if isinstance(c, PathCollection)]
    drawn = {}
    for group in points:
        for (x, y), scale in zip(group.get_offsets(), group.get_array(), strict=True):
            drawn[round(x)] = y, scale, group.get_label()
        np.testing.assert_allclose(group.norm(1.0), 0.5)  # the middle of the colours
    assert sorted(drawn) == list(range(1, count + 1))
    floor = dict(zip("abc", floors(depths), strict=False))
    seen = set()
    for number, hop in enumerate(hops, 1):
        y, scale, label = drawn[number]
        assert lanes[hop.model].y0 < y < lanes[hop.model].y1
        assert y - floor[hop.model] == hop.layer
        assert scale == hop.scale
        assert label == ("visited before" if hop[:2] in seen else "first visit")
        seen.add(hop[:2])
    (walk,) = (line for line in axes.lines if line.get_gid() == "walk")
    np.testing.assert_array_equal(walk.get_ydata(), [drawn[i][0] for i in range(1, count + 1)])
    borders = [line.get_xdata()[0] for line in axes.lines if line.get_gid() != "walk"]
    np.testing.assert_array_equal(borders, np.flatnonzero(np.diff(passes)) + 1.5)


def test_a_path_without_scales_has_no_scale_of_colours():
    figure = path_figure(["a"], [4], hops_of([("a", 0, 4)]))
    assert len(figure.axes) == 1
    (points,) = figure.axes[0].collections
    figure.canvas.draw()
    assert {tuple(c) for c in points.get_facecolors()} == {to_rgba("#0072b2")}


def test_changes_of_a_path():
    before = hops_of([("a", 0, 6)])
    assert changes(before, before) == []
    assert changes(before, hops_of([("a", 0, 3), ("b", 3, 4), ("a", 3, 6)])) == ["+ b:3 after a:2"]
    assert changes(before, hops_of([("a", 0, 4), ("a", 5, 6)])) == ["- a:4"]
    assert changes(before, hops_of([("b", 0, 1), ("a", 0, 2), ("b", 2, 5), ("a", 5, 6)])) == [
        "+ b:0 first", "+ b:2-4 after a:1", "- a:2-4",
    ]  # fmt: skip
    assert changes(before, [h._replace(scale=0.5) for h in before]) == []
    assert changes(hops_of([("a", 0, 2)]), hops_of([("a", 0, 1), ("b", 1, 3), ("b", 5, 6), ("a", 0, 2)])) == [
        "+ a:0 b:1-2,5 first"
    ]
    assert changes(before[:4] + before[5:], before) == ["+ a:4 after 3"]
    assert changes(before, before[:1]) == ["- a:1-5"]
    many = [h for h in hops_of([("a", 0, 20)]) if h.layer % 2 == 0]
    assert changes(many, many[:1]) == ["- a:2,4,6,8,10 and 4 more"]
    assert shorten([str(i) for i in range(9)]) == ["0", "1", "2", "3", "4 more", "8"]
    assert shorten(["0", "1"]) == ["0", "1"]


def test_paths_have_the_passes_of_their_slots():
    space = PathSpace(("a", "b"), (3, 2), repeats=2)
    hops = hops_of([("a", 0, 3), ("b", 1, 2), ("a", 1, 2), ("b", 0, 1), ("a", 2, 3)])  # the last one is appended
    genomes = np.stack([encode(space, hops, off=0.1), encode(space, hops_of([("a", 0, 3)]), off=0.1)])
    paths = read_paths_of(space, genomes)
    assert [h[:2] for h in paths.hops(0)] == [h[:2] for h in hops]
    assert paths.passes(0).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert paths.passes(1).tolist() == [0, 0, 0]


def read_paths_of(space, genomes) -> Paths:
    class Fake:
        """What `read_paths` reads of a record."""

        num_weight_genes = 0

        class config:
            path = space

    Fake.genes, Fake.genomes = list(space.names), genomes
    return read_paths(Fake)


# --- figures ------------------------------------------------------------------------------------------------


def test_the_course_of_the_fitness():
    generations = [np.array([1.0, 2, 3]), np.array([np.nan, 2.5]), np.array([np.nan]), np.array([4.0, 0, 1, 5])]
    course = progress(generations)
    np.testing.assert_array_equal(course.best, [3, 3, 3, 5])
    np.testing.assert_array_equal(course.mean, [2, 2.5, np.nan, 2.5])
    np.testing.assert_allclose(course.low[0], 1.2)
    axes = fitness_figure(course, {"a": 0.5, "b": np.nan, "plain average": 1.5}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["best so far"].get_ydata(), course.best)
    np.testing.assert_array_equal(lines["mean of a generation"].get_ydata(), course.mean)
    assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {0.5, 1.5}
    assert [t.get_text() for t in axes.texts] == ["a", "plain average"]


def test_labels_do_not_overlap():
    values = {"a": 0.0, "b": 0.01, "c": 0.02, "d": 1.0}
    places = label_heights(values, 0.1)
    heights = [places[name] for name in "abcd"]
    assert min(np.diff(heights)) >= 0.1 - 1e-9
    np.testing.assert_allclose([places["b"], places["d"]], [0.01, 1.0])
    assert label_heights({}, 0.1) == {}


def test_coefficients_are_where_their_names_say():
    names = [f"{g}/{s}/weight" for g in ("head", "embedding", "layers 10-11 mlp", "layers 2-3 mlp") for s in "ab"]
    names += ["layers 2-3 norms/a/weight", "model/lambda"]
    values = {name: i / 10 for i, name in enumerate(names)}
    panels = coefficient_panels(values, {"weight": (0, 1), "lambda": (0, 2)})
    assert [p.title for p in panels] == [
        "weight, embedding and head", "weight, mlp", "weight, norms", "lambda",
    ]  # fmt: skip
    ends, mlp, norms, scale = panels
    assert (ends.columns, mlp.columns, norms.columns, scale.columns) == (
        ["embedding", "head"], ["layers 2-3", "layers 10-11"], ["layers 2-3"], ["model"],
    )  # fmt: skip
    np.testing.assert_array_equal(mlp.values, [[0.6, 0.4], [0.7, 0.5]])
    np.testing.assert_array_equal(ends.values, [[0.2, 0.0], [0.3, 0.1]])
    assert scale.rows == ["all sources"]
    figure = coefficients_figure(panels)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), mlp.values)
    assert [t.get_text() for t in figure.axes[1].texts] == ["0.60", "0.40", "0.70", "0.50"]
    assert [a.images[0].get_clim() for a in figure.axes[:4]] == [(0, 1)] * 3 + [(0, 2)]


@pytest.mark.parametrize("count", [6, 900])
def test_histories_of_few_and_many_genes(count):
    rows = [(f"block {i // (count // 3)}", f"gene {i}") for i in range(count)]
    values = np.random.default_rng(0).random((count, 1000))
    axes = history_figure({"mean": values}, rows, "share").axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (count, 240)  # a picture cannot show more
    np.testing.assert_array_equal(shown[:, [0, -1]], values[:, [0, -1]])
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ([f"gene {i}" for i in range(6)] if count == 6 else [f"block {i}" for i in range(3)])
