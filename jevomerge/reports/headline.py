"""What came out of a run, in one line and in its big numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jevomerge.problems.problem import AVERAGE
from jevomerge.reports.heldout import right_or_wrong
from jevomerge.reports.record import Run
from jevomerge.reports.words import number


def headline(record: Run) -> dict[str, Any]:
    """The result, or the best so far, against the best source and the average, on each split."""
    references = record.references()
    sources = {name: row for name, row in references.items() if name != AVERAGE}
    best: Mapping[str, Any] | None = record.result["best"] if record.result else None
    if best is None and not np.isnan(record.fitness).all():
        best = {"search": float(record.fitness[record.best]), "heldout": None}
    if best is not None and not any(task.apart for task in record.config.tasks):
        best = {**best, "heldout": None}
    top = {
        split: max(sources, key=lambda n: np.nan_to_num(sources[n][split], nan=-np.inf)) if sources else None
        for split in ("search", "heldout")
    }
    found = {"best": best, "top": top, "sources": sources, "average": references.get(AVERAGE)}
    return found | {"sentence": None if best is None else sentence(record, found)}


def sentence(record: Run, found: Mapping[str, Any]) -> str:
    """ "77 % (99 of 128), 56 points above the best source"; held out as soon as that is known."""
    best = found["best"]
    split = "search" if best["heldout"] is None else "heldout"
    value, top = best[split], found["top"][split]
    share = all(right_or_wrong(task, _scores(record, task.name)) for task in record.config.tasks)
    said = f"{100 * value:.0f} %" if share and np.isfinite(value) else number(value)
    if share and split == "heldout" and len(record.config.tasks) == 1 and record.heldout and record.heldout["best"]:
        scores = record.heldout["best"]["scores"][record.config.tasks[0].name]
        said += f" ({sum(s == 1 for s in scores)} of {len(scores)})"
    if best.get("source") is not None:
        return f"{said}: {best['source']} itself, no candidate was better"
    gain = np.nan if top is None else value - found["sources"][top][split]
    if not np.isfinite(gain):
        return said
    if abs(gain) < (5e-4 if share else 5e-5):  # it would be written as 0
        return f"{said}, as much as the best source"
    size = points(abs(gain)) if share else number(abs(gain))
    return f"{said}, {size} {'above' if gain > 0 else 'below'} the best source"


def points(gain: float) -> str:
    """A difference of two shares, of which a point is a hundredth.

    >>> points(0.5625), points(0.0123), points(0.004)
    ('56 points', '1 point', '0.4 points')
    """
    size = f"{100 * gain:.0f}" if gain >= 0.0095 else f"{100 * gain:.1f}"
    return f"{size} point{'' if size == '1' else 's'}"


def _scores(record: Run, task: str) -> np.ndarray:
    """What a task has given the candidate that is the best."""
    return np.array(record.evaluations[record.best].get("scores", {}).get(task, []), np.float64)
