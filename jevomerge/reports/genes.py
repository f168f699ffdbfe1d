"""The genes of a run: the best ones' values, how they changed, which matter, and candidates across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jevomerge.genome.names import GeneName
from jevomerge.reports.charts import MIDDLE, SEQUENTIAL, Chart, Rows, Spec, hint, spread
from jevomerge.reports.importance import Importance
from jevomerge.reports.record import Paths, Run, weight_space
from jevomerge.reports.words import gene_names

ROWS_WITH_NAMES = 64  # of a history; more of them are lower, and named where there is room
CELLS = 4000  # of a history, at least 12 generations and at most 60
ACROSS = 12  # genes
LINES = 300  # candidates


# --- of the best --------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One heat map: sources x layers."""

    title: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray  # NaN where there is no gene
    range: tuple[float, float]  # of the gene


def coefficient_panels(values: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[Panel]:
    """The coefficients of a genome by parameter and component; `ranges` are those of the parameters."""
    genes = {GeneName.parse(name): value for name, value in values.items()}
    panels = []
    for parameter, bounds in ranges.items():
        mine = sorted((g for g in genes if g.parameter == parameter), key=lambda g: g.order)
        split = any(g.part and not isinstance(g.place, str) for g in mine)  # components have panels of their own
        titles = dict.fromkeys(_panel_of(g) if split else "" for g in mine)
        for title in titles:
            inside = [g for g in mine if not split or _panel_of(g) == title]
            columns = list(dict.fromkeys(_column_of(g, split) for g in inside))
            rows = list(dict.fromkeys(g.source for g in inside))
            table = np.full((len(rows), len(columns)), np.nan)
            for gene in inside:
                table[rows.index(gene.source), columns.index(_column_of(gene, split))] = genes[gene]
            heading = f"{parameter}, {title}" if title else parameter
            panels.append(Panel(heading, [r or "all sources" for r in rows], columns, table, bounds))
    return panels


def _panel_of(gene: GeneName) -> str:
    return "embedding and head" if isinstance(gene.place, str) else gene.part


def _column_of(gene: GeneName, split: bool) -> str:
    return str(gene.place) if split and not isinstance(gene.place, str) else gene.group


def coefficients_of(record: Run) -> list[Panel]:
    """Those of the best candidate."""
    space = weight_space(record)
    bounds = zip(space.names, zip(space.low.tolist(), space.high.tolist(), strict=True), strict=True)
    ranges = {GeneName.parse(name).parameter: pair for name, pair in bounds}
    best = record.genomes[record.best, : record.num_weight_genes].astype(np.float32)
    return coefficient_panels(space.values(best), ranges)


def coefficient_charts(panels: Sequence[Panel]) -> list[Chart]:
    """A heat map each."""
    first = {panel.range: i for i, panel in reversed(list(enumerate(panels)))}  # where the colours are explained
    return [_coefficients(p, f"coefficients-{i}", first[p.range] == i) for i, p in enumerate(panels)]


def _coefficients(panel: Panel, name: str, legend: bool) -> Chart:
    cells = [
        {"row": panel.rows[r], "column": panel.columns[c], "value": panel.values[r, c]}
        for r, c in np.argwhere(~np.isnan(panel.values))
    ]
    low, high = panel.range
    colour: Spec = {
        "field": "value",
        "type": "quantitative",
        "title": None,
        "scale": {**SEQUENTIAL, "domain": [low, high]},
    }
    colour["legend"] = {"values": [low, high]} if legend else None
    across = {"labelAngle": 0, "labelOverlap": True}
    x = {"field": "column", "type": "ordinal", "sort": panel.columns, "title": None, "axis": across}
    y = {"field": "row", "type": "nominal", "sort": panel.rows, "title": None}
    tooltip = hint(("row", "source"), ("column", "where"), ("value", panel.title, ".4f"))
    layer: list[Spec] = [{"mark": "rect", "encoding": {"color": colour, "tooltip": tooltip}}]
    if len(panel.columns) <= 8:
        light = {
            "condition": {"test": f"datum.value > {low + 0.44 * (high - low)}", "value": "black"},
            "value": "white",
        }
        text = {"field": "value", "format": ".2f"}  # 4.4 to 1 and more
        layer.append({"mark": "text", "encoding": {"text": text, "color": light, "tooltip": tooltip}})
    spec = {"height": {"step": 24}, "datasets": {"cells": cells}, "data": {"name": "cells"}}
    label = f"Coefficients of the best candidate: {panel.title}"
    return Chart(name, label, {**spec, "encoding": {"x": x, "y": y}, "layer": layer}, panel.title)


# --- over generations ---------------------------------------------------------------------------------------


class History(NamedTuple):
    """How some numbers in [0, 1] changed: R of them over G generations."""

    title: str
    rows: list[str]
    mean: np.ndarray  # (R, G) of each generation
    best: np.ndarray | None = None  # (R, G) of the best of each generation


def gene_histories(record: Run) -> list[History]:
    """The recipe's genes by source and parameter, ordered by component and layer."""
    names = [GeneName.parse(name) for name in record.genes[: record.num_weight_genes]]
    parts = list(dict.fromkeys(g.part for g in names))
    several = len({g.parameter for g in names}) > 1
    blocks: dict[str, list[int]] = {}
    for i, gene in enumerate(names):
        title = " · ".join([gene.source or "all sources", *([gene.parameter] if several else [])])
        blocks.setdefault(title, []).append(i)
    means = np.stack([record.genomes[g].mean(0) for g in record.generations], 1)
    bests = record.genomes[record.champions()].T
    histories = []
    for title, own in blocks.items():
        order = sorted(own, key=lambda i: (parts.index(names[i].part), names[i].order))
        histories.append(History(title, [names[i].group for i in order], means[order], bests[order]))
    return histories


def slot_histories(record: Run, paths: Paths) -> list[History]:
    """The slots of paths by pass and model."""
    usage = np.stack([paths.on[g].mean(0) for g in record.generations], 1)
    places = [
        (f"{model}, pass {p + 1}", layer) for p in range(paths.space.repeats) for model, layer in paths.space.layers
    ]
    titles = dict.fromkeys(title for title, _ in places)
    own = {title: [i for i, (t, _) in enumerate(places) if t == title] for title in titles}
    return [History(t, [f"layer {places[i][1]}" for i in rows], usage[rows]) for t, rows in own.items()]


def history_charts(histories: Sequence[History], name: str, meaning: str) -> list[Chart]:
    """A heat map each, over generations; `meaning` is that of the colours."""
    return [_history(history, f"{name}-{i}", meaning, i == 0) for i, history in enumerate(histories)]


def _history(history: History, name: str, meaning: str, legend: bool) -> Chart:
    count, high = history.mean.shape
    shown = spread(high, int(np.clip(CELLS // count, 12, 60)))
    cells: Rows = []
    for r, row in enumerate(history.rows):
        for g in shown:
            best = {} if history.best is None else {"best": round(float(history.best[r, g]), 3)}
            cells.append({"row": row, "g": int(g) + 1, "mean": round(float(history.mean[r, g]), 3)} | best)
    colour: Spec = {
        "field": "mean",
        "type": "quantitative",
        "title": meaning,
        "scale": {**SEQUENTIAL, "domain": [0, 1]},
    }
    colour["legend"] = {"values": [0, 0.5, 1]} if legend else None
    tooltip = hint(("row", "where"), ("g", "generation"), ("mean", meaning, ".3f"))
    tooltip += [] if history.best is None else hint(("best", "of the best", ".3f"))
    x = {"field": "g", "type": "ordinal", "title": "generation", "axis": {"labelAngle": 0, "labelOverlap": True}}
    y = {"field": "row", "type": "nominal", "sort": history.rows, "title": None, "axis": {"labelOverlap": True}}
    encoding = {"x": x, "y": y, "color": colour, "tooltip": tooltip}
    spec = {"height": {"step": 16 if count <= ROWS_WITH_NAMES else 5}, "datasets": {"cells": cells}}
    spec |= {"data": {"name": "cells"}, "mark": "rect", "encoding": encoding}
    return Chart(name, f"{history.title}: {meaning} over generations", spec, history.title)


# --- which matter -------------------------------------------------------------------------------------------


def importance_chart(importance: Importance) -> Chart:
    """A bar for each of the most important genes."""
    rows = [row._asdict() | {"low": row.mean - row.spread, "high": row.mean + row.spread} for row in importance.rows]
    x = {"type": "quantitative", "title": "loss of R² when its values are shuffled", "axis": {"grid": False}}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    tooltip = hint(("name", "gene"), ("mean", "importance", ".4f"), ("spread", "standard deviation", ".4f"))
    layer: list[Spec] = [
        {
            "mark": {"type": "bar", "color": "var(--blue)"},
            "encoding": {"x": {"field": "mean", **x}, "tooltip": tooltip},
        },
        {
            "mark": {"type": "rule", "color": "var(--ink)"},
            "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "tooltip": tooltip},
        },
    ]
    spec = {"height": {"step": 18}, "datasets": {"genes": rows}, "data": {"name": "genes"}, "encoding": {"y": y}}
    return Chart("importance", "How much each gene matters for the fitness", {**spec, "layer": layer})


def parallel_chart(record: Run) -> Chart | None:
    """The best candidates as lines across the genes that go most with the fitness; None where there is no line."""
    known = np.flatnonzero(~np.isnan(record.fitness))
    if record.num_weight_genes < 2 or known.size < 2:
        return None
    ranked = known[np.argsort(-record.fitness[known], kind="stable")][:LINES]
    genes = strongest(record.genomes[known, : record.num_weight_genes], record.fitness[known])
    names = [gene_names(record.genes[: record.num_weight_genes])[i] for i in genes]
    fitness = record.fitness[ranked]
    population = record.environment["population"]
    lines: Rows = []
    for i in ranked:
        e = record.evaluations[i]
        own = {f"g{k}": round(float(record.genomes[i, gene]), 3) for k, gene in enumerate(genes)}
        number = {"number": e["generation"] * population + e["member"], "fitness": record.fitness[i]}
        lines.append(number | own)
    keys = [{"key": f"g{k}", "place": k, "name": name} for k, name in enumerate(names)]
    low, high = np.floor(1e4 * fitness.min()) / 1e4, fitness.max()
    step = max(round((high - low) / 100, 4), 1e-4)
    least = {"input": "range", "min": low, "max": high, "step": step, "name": "fitness at least "}
    over = {"name": "over", "select": {"type": "point", "fields": ["number"], "on": "pointerover"}}
    x = {"field": "share", "type": "quantitative", "title": "share of the range", "scale": {"domain": [0, 1]}}
    colour = {"field": "fitness", "type": "quantitative", "title": "fitness", "scale": MIDDLE}
    encoding = {
        "x": x | {"axis": {"grid": False}},
        "y": {"field": "name", "type": "ordinal", "sort": names, "title": None, "axis": {"grid": True}},
        "order": {"field": "place"},
        "detail": {"field": "number"},
        "color": colour,
        "strokeWidth": {"condition": {"param": "over", "empty": False, "value": 3}, "value": 1},
        "tooltip": (tooltip := hint(("number", "evaluation"), ("fitness", "fitness", ".4f"))),
    }
    shares = hint(*((f"g{k}", name, ".3f") for k, name in enumerate(names)))
    spec = {
        "height": {"step": 28},
        "datasets": {"lines": lines, "genes": keys},
        "data": {"name": "lines"},
        "transform": [
            {"filter": "datum.fitness >= least"},
            {"fold": [row["key"] for row in keys], "as": ["key", "share"]},
            {"lookup": "key", "from": {"data": {"name": "genes"}, "key": "key", "fields": ["name", "place"]}},
        ],
        "params": [{"name": "least", "value": low, "bind": least}, over],
        "mark": {"type": "line", "opacity": 0.55},
        "encoding": encoding,
        "usermeta": {"columns": {"lines": [*tooltip, *shares]}},
    }
    return Chart("parallel", f"The best {len(lines)} candidates across {len(genes)} genes", spec)


def strongest(genomes: np.ndarray, fitness: np.ndarray) -> list[int]:
    """At most ACROSS genes, those of which the correlation with the fitness is the largest, the largest first."""
    centred, score = genomes - genomes.mean(0), fitness - fitness.mean()
    scale = np.sqrt((centred**2).sum(0) * (score**2).sum())
    correlation = np.divide(np.abs(score @ centred), scale, out=np.zeros(len(scale)), where=scale > 0)
    return np.argsort(-correlation, kind="stable")[:ACROSS].tolist()
