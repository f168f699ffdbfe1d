"""The front of a run with several goals, as charts and as a table."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from jevomerge.reports.charts import COLOURS, DOTS, MIDDLE, ZOOM, Chart, Rows, Spec, coloured, hint, spread
from jevomerge.reports.record import Run
from jevomerge.strategies.pareto import front_of, front_points, objectives_of

PAIRS = 15  # of goals, those of six


def front_table(record: Run) -> list[dict[str, Any]]:
    """The points of the front as in result.json; of an unfinished run those of the front so far."""
    if record.result is not None:
        return record.result["front"]
    tasks = [task.name for task in record.config.tasks]
    front = front_of(record.evaluations, tasks)
    return front_points(record.evaluations, tasks, front[0], 0) if front else []


def scores_of_parents(record: Run) -> dict[str, dict[str, float]]:
    """{source or "plain average": {task: its score on the search split}}, as far as they are known."""
    heldout = record.heldout or {"sources": {}, "average": None}
    models = heldout["sources"] | ({} if heldout["average"] is None else {"plain average": heldout["average"]})
    return {name: model["tasks"]["search"] for name, model in models.items()}


def front_charts(record: Run) -> list[Chart]:
    """All candidates by every two goals, coloured by generation; the front, what was exported, parents."""
    goals = [task.name for task in record.config.tasks]
    objectives, population = objectives_of(record.evaluations, goals), record.environment["population"]
    rows: Rows = []
    for e, scores in zip(record.evaluations, objectives, strict=True):
        where = {"number": e["generation"] * population + e["member"], "g": e["generation"] + 1}
        rows.append(where | {f"t{k}": score for k, score in enumerate(scores)})
    points = front_table(record)
    front = [rows[p["evaluation"]] | {"exported": "export" in p} for p in points if p["evaluation"] < len(rows)]
    parents = [
        {"name": name, **{f"t{k}": scores.get(goal) for k, goal in enumerate(goals)}}
        for name, scores in scores_of_parents(record).items()
    ]
    datasets = {"candidates": [rows[i] for i in spread(len(rows), DOTS)], "front": front, "parents": parents}
    pairs = list(combinations(range(len(goals)), 2))[:PAIRS]
    return [_pair(goals, i, j, datasets) for i, j in pairs]


def _pair(goals: list[str], i: int, j: int, datasets: dict[str, Rows]) -> Chart:
    def goal(k: int) -> Spec:
        return {"field": f"t{k}", "type": "quantitative", "title": goals[k], "scale": {"zero": False, "padding": 12}}

    place = {"x": goal(i), "y": goal(j)}
    scores = hint(*((f"t{k}", name, ".4f") for k, name in enumerate(goals)))
    shown = [*hint(("number", "evaluation"), ("g", "generation")), *scores]
    colour = {"field": "g", "type": "quantitative", "title": "generation", "scale": MIDDLE}
    names = [row["name"] for row in datasets["parents"]]
    colours = [COLOURS[1 + k % 3] if name != "plain average" else "var(--muted)" for k, name in enumerate(names)]
    series = coloured("name", names, colours) | {"legend": {"orient": "bottom"}}
    filled: Spec = {"condition": {"test": "datum.exported", "value": "var(--red)"}, "value": "transparent"}
    dot, ring = (
        {"type": "point", "filled": True, "size": 30, "opacity": 0.75},
        {"type": "point", "size": 75, "strokeWidth": 1.6},
    )
    cross = {"type": "point", "filled": True, "shape": "cross", "size": 110}
    layer: list[Spec] = [
        {
            "data": {"name": "candidates"},
            "mark": dot,
            "params": [ZOOM],
            "encoding": place | {"color": colour, "tooltip": shown},
        },
        {
            "data": {"name": "front"},
            "mark": ring,
            "encoding": place | {"stroke": {"value": "var(--red)"}, "fill": filled, "tooltip": shown},
        },
        {
            "data": {"name": "parents"},
            "mark": cross,
            "encoding": place | {"color": series, "tooltip": [*hint(("name", "model")), *scores]},
        },
    ]
    if len(goals) == 2:  # with a third, a point may dominate what is below the stairs
        stairs = {
            "type": "line",
            "interpolate": "step-before",
            "color": "var(--red)",
            "strokeWidth": 1.2,
            "opacity": 0.7,
        }
        layer.insert(1, {"data": {"name": "front"}, "mark": stairs, "encoding": place})
    label = f"All candidates by {goals[i]} and {goals[j]}, and the front"
    spec = {"height": 340, "datasets": datasets, "resolve": {"scale": {"color": "independent"}}, "layer": layer}
    return Chart(f"front-{i}-{j}", label, spec, f"{goals[j]} against {goals[i]}")
