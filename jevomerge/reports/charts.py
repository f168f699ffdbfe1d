"""Numbers of a run -> charts that one can hover, zoom and filter, as Vega-Lite specifications that page.js draws.

Names of models and tasks stand in a chart's data and titles only: fields have names of ours, and no expression is made
of a text. Colours are the page's CSS variables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from jevomerge.reports.record import Run

DOTS = 2000  # candidates that a chart draws; of more, so many spread evenly
COLOURS = ("var(--blue)", "var(--orange)", "var(--green)", "var(--purple)", "var(--red)", "var(--ink)")
# Dragging moves, Ctrl or Cmd and the wheel (or two fingers on a trackpad) zooms, two clicks go back.
ZOOM = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.ctrlKey || event.metaKey]"},
    "bind": "scales",
}
SEQUENTIAL = {"scheme": "viridis"}
MIDDLE = {"scheme": {"name": "viridis", "extent": [0.25, 0.85]}}  # of lines and dots, seen on light and on dark
AXES = {"evaluations": "n", "seconds of search": "s", "tokens": "t"}  # what fitness may be drawn against: its field

Spec = dict[str, Any]
Rows = list[dict[str, Any]]


class Chart(NamedTuple):
    """What page.js draws."""

    name: str  # of its element
    label: str  # what is to be seen, for those who cannot see it
    spec: Spec
    title: str = ""  # above it

    @property
    def json(self) -> Markup:
        """The specification for inside a <script>, whatever texts are in it."""
        told = {"description": self.label, "usermeta": {"columns": columns(self.spec)}}
        spec = {**told, "width": "container", **self.spec}
        text = json.dumps(plain(spec), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Markup(text.replace("<", "\\u003c"))


def columns(spec: Spec) -> dict[str, list[dict[str, str]]]:
    """Of each dataset what a table of it shows, for those who do not hover: what its first marks say of themselves."""
    found: dict[str, list[dict[str, str]]] = {}
    for part in (spec, *spec.get("layer", ())):
        tooltip = part.get("encoding", {}).get("tooltip")
        if tooltip is not None:
            found.setdefault(part.get("data", spec.get("data"))["name"], tooltip)
    return found


def plain(value: Any) -> Any:
    """As JSON has it: NumPy's numbers as Python's, six digits of them, null for what is no finite number."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def spread(count: int, most: int) -> np.ndarray:
    """Indices of at most so many of `count`, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def hint(*fields: tuple[str, str] | tuple[str, str, str]) -> list[dict[str, str]]:
    """What is shown of a mark when one hovers over it: (field, title), or with it a format of numbers."""
    return [{"field": f[0], "title": f[1], **({"format": f[2]} if len(f) > 2 else {})} for f in fields]


# --- fitness ------------------------------------------------------------------------------------------------


def against(axes: Sequence[str]) -> tuple[Spec, Spec, Spec]:
    """The choice of what fitness is drawn against: parameter, transform and channel x."""
    bind = {"input": "radio", "options": list(axes), "name": "against "}
    chosen = {"calculate": " : ".join(f"axis == '{a}' ? datum.{AXES[a]}" for a in axes) + " : null", "as": "x"}
    scale, ticks = {"zero": False, "nice": False}, {"grid": False, "format": "~s", "tickMinStep": 1}
    x = {"field": "x", "type": "quantitative", "title": None, "scale": scale, "axis": ticks}
    return {"name": "axis", "value": axes[0], "bind": bind}, chosen, x


def steps(record: Run) -> Rows:
    """Of every evaluation its number, the seconds and tokens spent by then, and the best fitness so far."""
    best = np.fmax.accumulate(record.fitness) if record.evaluations else np.zeros(0)
    rows = {"n": np.arange(1, len(best) + 1), "s": record.seconds.cumsum(), "best": best}
    if record.tokens is not None:
        rows["t"] = record.tokens.sum(axis=1).cumsum()
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def known_axes(rows: Rows) -> list[str]:
    """What there is of AXES."""
    return [axis for axis, field in AXES.items() if all(field in row for row in rows)]


def coloured(field: str, domain: Sequence[str], colours: Sequence[str]) -> Spec:
    """The channel color, by names."""
    return {"field": field, "type": "nominal", "title": None, "scale": {"domain": list(domain), "range": list(colours)}}


def shown(field: str) -> Spec:
    """The parameter that a click on the legend sets; two clicks show everything again."""
    return {"name": "shown", "select": {"type": "point", "fields": [field]}, "bind": "legend"}


def seen(opacity: float) -> Spec:
    """The channel opacity of what is `shown`; the rest is as good as away."""
    return {"condition": {"param": "shown", "value": opacity}, "value": 0.05}


def fitness_chart(record: Run) -> Chart:
    """Every candidate, the mean of each generation, the best so far, and a line for each source and their average."""
    course, population = steps(record), record.environment["population"]
    for row, e, fitness in zip(course, record.evaluations, record.fitness, strict=True):
        row |= {"number": e["generation"] * population + e["member"], "g": e["generation"] + 1, "fitness": fitness}
    finite = [record.fitness[g][~np.isnan(record.fitness[g])] for g in record.generations]
    pairs = zip(record.generations, finite, strict=True)
    means = [course[g[-1]] | {"fitness": f.mean(), "count": len(g)} for g, f in pairs if f.size]
    known = {name: row["search"] for name, row in record.references().items() if np.isfinite(row["search"])}
    names = ["candidate", "generation's mean", "best so far", *known]
    colours = {"candidate": "var(--blue)", "generation's mean": "var(--blue)", "best so far": "var(--red)"}
    colours |= {name: COLOURS[1 + i % 3] for i, name in enumerate(known)} | {"plain average": "var(--muted)"}
    parameter, chosen, x = against(known_axes(course))
    colour = coloured("series", names, [colours[name] for name in names])

    def layer(data: str, series: str, mark: Spec, field: str, tooltip: Rows, opacity: float = 1.0, **more: Any) -> Spec:
        y = {"field": field, "type": "quantitative", "title": "fitness on the search split", "scale": window}
        named = [] if series == "" else [{"calculate": json.dumps(series), "as": "series"}]
        encoding = {"y": y, "color": colour, "opacity": seen(opacity), "tooltip": tooltip}
        if data != "references":
            encoding["x"] = x
        return {"data": {"name": data}, "transform": [chosen, *named], "mark": mark, "encoding": encoding, **more}

    window = {"domain": visible([*(r["best"] for r in course), *(r["fitness"] for r in means), *known.values()])}
    evaluation = hint(("number", "evaluation"), ("g", "generation"), ("fitness", "fitness", ".4f"))
    spent = hint(("best", "best so far", ".4f"), ("s", "seconds", ".0f"))
    average = hint(("g", "generation"), ("fitness", "its mean", ".4f"), ("count", "candidates"))
    rule = hint(("series", "model"), ("search", "fitness", ".4f"))
    dot = {"type": "point", "filled": True, "size": 26, "clip": True}
    mean = {"type": "line", "point": {"size": 22}, "clip": True, "strokeWidth": 1.3}
    best = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.2, "clip": True}
    line = {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.4, "clip": True}
    layers = [
        layer("candidates", "candidate", dot, "fitness", [*evaluation, *spent], 0.4, params=[ZOOM, shown("series")]),
        layer("means", "generation's mean", mean, "fitness", average),
        layer("candidates", "best so far", best, "best", [{"field": "best", "title": "best so far", "format": ".4f"}]),
        layer("references", "", line, "search", rule),
    ]
    drawn = [course[i] for i in spread(len(course), DOTS)]
    references = [{"series": name, "search": value} for name, value in known.items()]
    datasets = {"candidates": drawn, "means": means, "references": references}
    label = "Fitness of every candidate, and the best so far, against that of the sources"
    return Chart("fitness", label, {"height": 320, "datasets": datasets, "params": [parameter], "layer": layers})


def visible(values: Sequence[float]) -> list[float]:
    """The range to show: the worst candidates may be worse by far, they are not what the picture is about."""
    finite = [v for v in values if np.isfinite(v)] or [0.0, 1.0]
    margin = 0.06 * (max(finite) - min(finite)) or 0.5
    return [min(finite) - margin, max(finite) + margin]


def runs_chart(
    runs: Mapping[str, Run], alike: Sequence[tuple[str, list[str]]], references: Mapping[str, float], name: str
) -> Chart:
    """The best so far of several runs; of groups of them that are `alike`, (title, names), mean and range too."""
    courses = {run: steps(record) for run, record in runs.items()}
    axes = known_axes([row for course in courses.values() for row in course])
    rows = [row | {"run": run} for run, course in courses.items() for row in turns(course)]
    bands = []
    for title, names in alike:
        for axis in axes:
            bands += [row | {"axis": axis, "run": title} for row in band([courses[n] for n in names], AXES[axis])]
    parameter, chosen, x = against(axes)
    series = [*courses, *(title for title, _ in alike)]
    colour = coloured("run", series, [COLOURS[i % len(COLOURS)] for i in range(len(series))])
    y = {"type": "quantitative", "title": "best fitness so far", "scale": {"zero": False}}
    end = hint(("run", "run"), ("n", "evaluations"), ("s", "seconds", ".0f"), ("best", "best so far", ".4f"))
    where = hint(("axis", "against"), ("x", "at"))
    middle = where + hint(("run", "of"), ("mean", "mean", ".4f"), ("low", "lowest", ".4f"), ("high", "highest", ".4f"))
    rule = hint(("name", "model"), ("search", "fitness", ".4f"))
    stairs = {"interpolate": "step-after"}
    on_axis: Spec = {"data": {"name": "bands"}, "transform": [{"filter": "datum.axis == axis"}]}
    layers: list[Spec] = [
        on_axis
        | {
            "mark": {"type": "area", **stairs},
            "encoding": {
                "x": x,
                "y": {"field": "low", **y},
                "y2": {"field": "high"},
                "color": colour,
                "opacity": seen(0.15),
            },
        },
        on_axis
        | {
            "mark": {"type": "line", "strokeWidth": 3, **stairs},
            "encoding": {"x": x, "y": {"field": "mean", **y}, "color": colour, "opacity": seen(1), "tooltip": middle},
        },
        {
            "data": {"name": "runs"},
            "transform": [chosen],
            "params": [ZOOM, shown("run")],
            "mark": {"type": "line", "strokeWidth": 1.6, "point": {"size": 26}, **stairs},
            "encoding": {"x": x, "y": {"field": "best", **y}, "color": colour, "opacity": seen(0.9), "tooltip": end},
        },
        {
            "data": {"name": "references"},
            "mark": {"type": "rule", "strokeDash": [5, 4], "color": "var(--muted)"},
            "encoding": {"y": {"field": "search", **y}, "tooltip": rule},
        },
    ]
    known = [{"name": n, "search": value} for n, value in references.items() if np.isfinite(value)]
    datasets = {"runs": rows, "bands": bands, "references": known}
    label = f"Best fitness so far of {', '.join(runs)}"
    return Chart(name, label, {"height": 340, "datasets": datasets, "params": [parameter], "layer": layers})


def turns(course: Rows) -> Rows:
    """Where the best so far changes, and the end."""
    before = [None, *(row["best"] for row in course)]
    last = len(course) - 1
    return [row for i, row in enumerate(course) if i == last or row["best"] != before[i]]


def band(courses: Sequence[Rows], field: str) -> Rows:
    """Mean, lowest and highest of the best so far over x, as far as all courses go."""
    known = [c for c in courses if c]
    places = [np.array([row[field] for row in c], float) for c in known]
    bests = [np.array([row["best"] for row in c], float) for c in known]
    begin, end = max(p[0] for p in places), min(p[-1] for p in places)
    grid = np.unique(np.concatenate(places))
    grid = grid[(grid >= begin) & (grid <= end)]
    grid = grid[spread(len(grid), 200)] if grid.size else grid
    at = np.array([b[np.searchsorted(p, grid, side="right") - 1] for p, b in zip(places, bests, strict=True)])
    columns = zip(grid, at.mean(0), at.min(0), at.max(0), strict=True)
    return [dict(zip(("x", "mean", "low", "high"), values, strict=True)) for values in columns]
