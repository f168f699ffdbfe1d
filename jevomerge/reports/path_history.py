"""How paths change over generations, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from jevomerge.genome.route import Hop, slices_of
from jevomerge.reports.record import Paths, Run

ROWS = 13
CHANGES = 5  # so many are written, then how many more


class Row(NamedTuple):
    """The best candidate of a generation."""

    generation: int  # from 1
    fitness: float  # NaN if nobody has one
    hops: int
    share: dict[str, float]  # of the hops, by model
    changes: list[str]  # against the row before
    scaling: float  # mean |scale - 1|
    population: float  # mean number of hops in the generation


def path_history(record: Run, paths: Paths) -> list[Row]:
    """A row per generation; of many, some spread evenly and the last."""
    champions = record.champions()
    count = len(champions)
    rows: list[Row] = []
    before: list[Hop] | None = None
    for generation in np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(int)):
        best = champions[generation]
        hops = paths.hops(best)
        share = {m: sum(h.model == m for h in hops) / len(hops) for m in paths.space.models}
        rows.append(
            Row(
                generation=int(generation) + 1,
                fitness=float(record.fitness[best]),
                hops=len(hops),
                share=share,
                changes=[] if before is None else shorten(changes(before, hops)),
                scaling=float(np.mean([abs(h.scale - 1) for h in hops])),
                population=float(np.mean(paths.length[record.generations[generation]])),
            )
        )
        before = hops
    return rows


def changes(before: Sequence[Hop], after: Sequence[Hop]) -> list[str]:
    """Which hops come and go from one path to another, whatever their scales: "+ b:3 after a:2", "- a:4,6-7"."""
    old, new = ([(h.model, h.layer) for h in hops] for hops in (before, after))
    come, gone = [], []
    for _, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if old[i:j] != new[k:m]:
            gone += old[i:j]
            if k < m:
                model, layer = new[k - 1]
                known = model == new[k][0]  # which model is meant
                place = "first" if k == 0 else f"after {layer}" if known else f"after {model}:{layer}"
                come.append(f"+ {write_hops(new[k:m])} {place}")
    return [*come, *([f"- {write_hops(gone)}"] if gone else [])]


def write_hops(hops: Sequence[tuple[str, int]]) -> str:
    """Hops in a few letters, those of one model together and many cut: "a:4", "b:3-5,7 a:0"."""
    slices = slices_of([Hop(model, layer) for model, layer in hops])
    text = ""
    for i, (model, first, stop) in enumerate(slices[:CHANGES]):
        text += "," if i and slices[i - 1][0] == model else f" {model}:"
        text += f"{first}-{stop - 1}" if stop - first > 1 else f"{first}"
    more = sum(stop - first for _, first, stop in slices[CHANGES:])
    return text.strip() + (f" and {more} more" if more else "")


def shorten(found: Sequence[str]) -> list[str]:
    """The first of many changes and the last, which is what has gone, and how many more there are."""
    more = len(found) - CHANGES
    return [*found[: CHANGES - 1], f"{more} more", found[-1]] if more > 0 else list(found)
