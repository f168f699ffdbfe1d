"""How long generated texts are taken to be: as asked, as a task says, as the sources of a run wrote, or at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jevomerge.fitness.batches import Layout
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.search.records import read_heldout
from jevomerge.search.setup import Setup


class Expected(NamedTuple):
    """New tokens of the texts of a task."""

    mean: float  # of which there are where rows are filled again,
    longest: float  # and for which all wait where they are not
    told: str  # by whom


def expected_lengths(setup: Setup, asked: int | None, folder: Path) -> dict[str, Expected]:
    """{task: what its texts are taken to have}, of tasks that ask for texts; `folder`: of a run of that name."""
    recorded = (read_heldout(folder) or {}).get("new_tokens", {})
    found = {}
    for given, task in zip(setup.config.tasks, setup.judge.tasks, strict=True):
        limit = getattr(task.rollout, "max_new_tokens", None)
        if limit is None or not task.rollout.writes:
            continue
        own, seen = getattr(given, "expected_new_tokens", None), recorded.get(task.name)
        if asked is not None:
            expected = Expected(asked, asked, "as asked for")
        elif own is not None:
            expected = Expected(own, own, "its `expected_new_tokens`")
        elif seen is not None:
            expected = Expected(seen["mean"], seen["longest"], f"as the sources wrote in {folder}")
        else:
            expected = Expected(limit, limit, "its `max_new_tokens`, for nobody said less")
        found[task.name] = expected._replace(mean=min(expected.mean, limit), longest=min(expected.longest, limit))
    return found


def loops_of(rollout: Rollout, layout: Layout, expected: Expected | None) -> Mapping[str, float]:
    """`Rollout.loops` for texts that are so long; None: as long as may be."""
    if expected is None:
        return rollout.loops(layout)
    length = expected.mean if layout.running < layout.rows else expected.longest
    changed: Rollout = dataclasses.replace(rollout, max_new_tokens=length)  # type: ignore[type-var]
    return changed.loops(layout)
