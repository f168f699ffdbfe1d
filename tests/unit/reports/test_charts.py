"""What the charts and the picture of a report show."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from jevomerge.genome.route import Hop, PathSpace, encode, hops_of
from jevomerge.reports.charts import Chart, band, columns, spread, visible
from jevomerge.reports.genes import History, coefficient_charts, coefficient_panels, history_charts, strongest
from jevomerge.reports.importance import importance
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


# --- charts -------------------------------------------------------------------------------------------------


def test_json_of_any_text_stands_in_a_page():
    spec = {"title": "</script><!-- $x$ 日本語", "x": [np.float32(0.1), np.nan, np.inf, np.int64(3), (True, None)]}
    text = Chart("c", "<b>", spec).json
    assert "<" not in text
    assert json.loads(text) == {
        "description": "<b>", "width": "container", "title": spec["title"], "x": [0.1, None, None, 3, [True, None]],
        "usermeta": {"columns": {}},
    }  # fmt: skip


def test_a_table_has_of_each_dataset_what_its_first_marks_say():
    one, other = [{"field": "a", "title": "A"}], [{"field": "b", "title": "B"}]
    layers = [
        {"data": {"name": "dots"}, "encoding": {"tooltip": one}}, {"data": {"name": "lines"}, "encoding": {"x": {}}},
        {"encoding": {"tooltip": other}}, {"data": {"name": "dots"}, "encoding": {"tooltip": other}},
    ]  # fmt: skip
    assert columns({"data": {"name": "cells"}, "layer": layers}) == {"dots": one, "cells": other}
    assert columns({"data": {"name": "cells"}, "encoding": {"tooltip": one}}) == {"cells": one}


def test_the_visible_range_is_that_of_what_matters():
    low, high = visible([1.0, 3.0, np.nan])
    assert low < 1 < 3 < high < 4
    assert visible([2.0]) == [1.5, 2.5]


def test_only_so_many_are_drawn_and_the_ends_are_among_them():
    np.testing.assert_array_equal(spread(5, 9), range(5))
    some = spread(12800, 2000)
    assert (len(some), some[0], some[-1]) == (2000, 0, 12799)


def test_the_mean_of_runs_is_theirs_at_every_place():
    """Best so far as steps, as far as all runs go; NumPy's mean, lowest and highest."""
    first = [{"s": s, "best": b} for s, b in ((1, 0.0), (3, 0.5), (9, 1.0))]
    second = [{"s": s, "best": b} for s, b in ((2, 0.25), (4, 0.75))]
    assert band([first, second], "s") == [
        {"x": x, "mean": np.mean(pair), "low": min(pair), "high": max(pair)}
        for x, pair in ((2, (0, 0.25)), (3, (0.5, 0.25)), (4, (0.5, 0.75)))
    ]


# --- genes --------------------------------------------------------------------------------------------------


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
    charts = [chart.spec for chart in coefficient_charts(panels)]
    cells = [{"row": r, "column": c} for r in "ab" for c in ("layers 2-3", "layers 10-11")]
    assert charts[1]["datasets"]["cells"] == [
        c | {"value": v} for c, v in zip(cells, (0.6, 0.4, 0.7, 0.5), strict=True)
    ]
    colours = [chart["layer"][0]["encoding"]["color"] for chart in charts]
    assert [list(c["scale"]["domain"]) for c in colours] == [[0, 1]] * 3 + [[0, 2]]
    assert [c["legend"] is not None for c in colours] == [True, False, False, True]  # once for each range


@pytest.mark.parametrize("count", [6, 900])
def test_histories_of_few_and_many_genes(count):
    values = np.random.default_rng(0).random((2, count, 1000))
    history = History("a", [f"gene {i}" for i in range(count)], *values)
    chart = history_charts([history], "genes", "share")[0].spec
    cells = chart["datasets"]["cells"]
    generations = sorted({cell["g"] for cell in cells})
    assert len(cells) == count * len(generations)
    assert len(generations) == (60 if count == 6 else 12)  # a picture cannot show more
    assert (generations[0], generations[-1]) == (1, 1000)
    last = [cell for cell in cells if cell["g"] == 1000]
    np.testing.assert_allclose([[c["mean"] for c in last], [c["best"] for c in last]], values[:, :, -1], atol=6e-4)


def test_the_strongest_genes_are_those_that_correlate_most():
    rng = np.random.default_rng(0)
    genomes = rng.random((200, 20))
    genomes[:, 5] = 0.5  # a gene that never changes
    fitness = 3 * genomes[:, 7] - 2 * genomes[:, 11] + 0.1 * rng.normal(size=200)
    found = strongest(genomes, fitness)
    assert found[:2] == [7, 11]
    correlations = [abs(np.corrcoef(genomes[:, i], fitness)[0, 1]) for i in range(20) if i != 5]
    assert len(found) == 12
    np.testing.assert_allclose(
        [abs(np.corrcoef(genomes[:, i], fitness)[0, 1]) for i in found], sorted(correlations, reverse=True)[:12]
    )


# --- importance ---------------------------------------------------------------------------------------------


def fake(genomes, fitness):
    """What `importance` reads of a record."""
    names = [f"layer {i}/a/weight" for i in range(genomes.shape[1])]
    return SimpleNamespace(
        genes=names, genomes=genomes, fitness=fitness, num_weight_genes=len(names), folder=Path("runs/x")
    )


def test_the_genes_that_matter_are_those_that_the_fitness_is_made_of():
    rng = np.random.default_rng(0)
    genomes = rng.random((120, 6))
    fitness = 2 * genomes[:, 4] + genomes[:, 1] ** 2
    fitness[3] = np.nan
    found = importance(fake(genomes, fitness), None)
    assert [row.name for row in found.rows[:2]] == ["a · layer 4", "a · layer 1"]
    assert found.rows[0].mean > 3 * found.rows[1].mean > 9 * found.rows[2].mean
    assert 0.5 < found.explained < 1
    assert importance(fake(genomes, fitness), None) == found  # seeded


def test_no_importance_is_explained(monkeypatch):
    rng = np.random.default_rng(0)
    genomes, fitness = rng.random((60, 3)), rng.random(60)
    noise = importance(fake(genomes, fitness), None)
    assert not noise.rows
    assert "explains too little of the fitness" in noise.reason
    assert "It takes 40 candidates" in importance(fake(genomes[:39], fitness[:39]), None).reason
    assert "It takes 40 candidates" in importance(fake(genomes, np.full(60, 0.5)), None).reason
    assert "more than 256 genes" in importance(fake(rng.random((60, 257)), fitness), None).reason
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)  # as if it were not installed
    assert "pip install 'jevomerge[report]'" in importance(fake(genomes, fitness), None).reason
