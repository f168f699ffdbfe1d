"""Whether a search has gained anything: in plain sentences for the terminal and the page, and for the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jevomerge.checkpoint.scoring import THIS, Judge, Score, Scoring
from jevomerge.fitness.tasks import AnyTask
from jevomerge.problems.problem import AVERAGE
from jevomerge.reports.heldout import Estimate, best_name, best_parent, gain_over, points_of, standings
from jevomerge.reports.words import number


def verdict(heldout: Mapping[str, Any], tasks: Sequence[AnyTask], candidate: float) -> list[str]:
    """Whether the best source was beaten, and whether the interval says so; nothing where no source was scored.

    Args:
        heldout: what heldout.json holds.
        tasks: of the run.
        candidate: the best candidate's fitness on the search split.
    """
    best, source = heldout["best"], heldout["best"].get("source")
    parent = best_parent(heldout)
    if parent is None:
        return []
    sentences = []
    if source is not None:
        sentences.append(
            f"Nothing was gained: on the search split the best candidate scores {number(candidate)} and {_the(source)} "
            f"{number(best['search'])}, so this is {_the(source)} itself."
        )
    if not any(task.apart for task in tasks):
        if source is None:
            top = max(heldout["sources"].items(), key=lambda row: np.nan_to_num(row[1]["search"], nan=-np.inf))
            gain = number(best["search"] - top[1]["search"], sign=True)
            sentences.append(f"On the search split this scores {gain} against the best source, {top[0]}.")
        return [*sentences, "Nothing is held out: on other examples it may be otherwise."]
    average = heldout["average"]
    rivals = {parent: f"the best source, {parent}"}
    if average is not None and average["heldout"] > heldout["sources"][parent]["heldout"]:
        rivals[AVERAGE] = f"the {AVERAGE}"
    return sentences + [_compared(gain_over(heldout, tasks, r), t) for r, t in rivals.items() if r != source]


def scoring_of(
    heldout: Mapping[str, Any], tasks: Sequence[AnyTask], examples: Mapping[str, int], notes: Sequence[str]
) -> Scoring:
    """What the card of the result says.

    Args:
        heldout: what heldout.json holds.
        tasks: of the run.
        examples: {task: how many the search split has}.
        notes: sentences.
    """
    apart, scores = any(task.apart for task in tasks), {}
    for standing in standings(heldout, tasks):
        if standing.name not in points_of(heldout):
            name = THIS if standing.name == best_name(heldout) else standing.name
            held = {"heldout": Score(*standing.heldout)} if apart else {}
            scores[name] = {"search": Score(standing.search), **held}
    judges = [
        Judge(t.name, examples[t.name], len(heldout["examples"][t.name]) if t.apart else 0, t.private) for t in tasks
    ]
    return Scoring(scores, notes, judges)


def _the(source: str) -> str:
    return f"the {source}" if source == AVERAGE else source


def _compared(gain: Estimate, other: str) -> str:
    """A sentence about a paired difference."""
    size, low, high = number(abs(gain.value)), number(gain.low, 3, True), number(gain.high, 3, True)
    interval = f"95 % interval {low} to {high}"
    if gain.low > 0:
        return f"Held out, this beats {other}, by {size} ({interval})."
    if gain.high < 0:
        return f"Held out, this is worse than {other}, by {size} ({interval})."
    seen = "as much as" if gain.value == 0 else f"{size} {'more' if gain.value > 0 else 'less'} than"
    return f"Held out, this scores {seen} {other}, but that may be chance ({interval})."
