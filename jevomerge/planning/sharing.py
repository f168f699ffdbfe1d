"""Whether candidates are merged, or share what they read: counted, not tried.

A candidate that is merged reads all sources once, is written, and then read in every step for rows of its own.
Candidates that share read all sources in every step once for the whole group, and multiply by each of them. Arithmetic
counts as the bytes that a device moves in the time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jevomerge.models.members import balance
from jevomerge.planning.chips import Chip
from jevomerge.planning.programs import count_batches
from jevomerge.problems.problem import Shared
from jevomerge.search.setup import Setup

MOST = 16  # candidates in a group: more hardly lessen what is read for each


class Costs(NamedTuple):
    """What a candidate takes either way, in bytes moved."""

    members: int  # that would be run together
    merged: float
    together: float
    flops: float  # of arithmetic that count as one byte


def settled_sharing(setup: Setup, chip: Chip | None = None) -> Setup:
    """The setup as its candidates are best run, on a `chip` or on this machine."""
    costs, share = costs_of(setup, chip), setup.config.search.share
    if isinstance(costs, str) or not share or (share == "auto" and (rounds(setup) or costs.together >= costs.merged)):
        return setup
    return dataclasses.replace(setup, together=True, judge=setup.judge.on(setup.mesh, costs.members))


def rounds(setup: Setup) -> bool:
    """Whether merged candidates are rounded to half precision, which those that share are not."""
    return (setup.problem.exported()[1], setup.judge.dtype) != ("float32", "float32")


def costs_of(setup: Setup, chip: Chip | None = None) -> Costs | str:
    """Of the matrices alone, on the whole search split; or why they cannot share."""
    shared, judge = setup.problem.shared, setup.judge
    if isinstance(shared, str):
        return shared
    if other := next((task.name for task in judge.tasks if not task.rollout.unmerged), None):
        return f"{other} is given all parameters"
    flops = balance() if chip is None else chip.flops / chip.bandwidth
    count = math.ceil(setup.strategy.population_size / judge.mesh.shape["pop"])
    members = setup.config.members_per_device or math.ceil(count / math.ceil(count / MOST))
    merging = (shared.read + shared.size) * shared.itemsize
    merged, together = float(merging if any(task.rollout.many_passes for task in judge.tasks) else 0), 0.0
    for task in judge.tasks:
        batches = count_batches(task.rollout, judge.chosen(task, "search"), judge.layouts[task.name])
        for layout, often in batches.items():
            tokens = layout.rows * layout.length + layout.shared
            steps = math.prod(task.rollout.loops(layout).values()) if task.rollout.many_passes else 0.0
            first = 0 if task.rollout.many_passes else merging
            merged += often * (
                first + _products(shared.size, shared, 1 + steps, tokens + steps * layout.running, flops)
            )
            prompts = _products(shared.size, shared, 0, tokens, flops) + merging
            prompts = min(prompts, _products(shared.read, shared, 0, tokens, flops))
            written = _products(shared.read, shared, (1 + steps) / members, steps * layout.running, flops)
            together += often * (prompts + written)
    return Costs(members, merged, together, flops)


def _products(size: float, shared: Shared, reads: float, rows: float, flops: float) -> float:
    """Matrices of so many numbers, read so often and multiplied by so many rows in all."""
    return size * (shared.itemsize * reads + 2 * rows / flops)


def line(setup: Setup, chip: Chip | None = None) -> str:
    """For people: how candidates are run, and why."""
    costs, share = costs_of(setup, chip), setup.config.search.share
    if isinstance(costs, str):
        return f"each candidate is merged: {costs}"
    ratio = f"{costs.together / costs.merged:.2g} times what merging each takes"
    if setup.together:
        return f"candidates share what they read, {costs.members} at a time, not merged: {ratio}"
    why = "search.share is false" if not share else "rounded to half precision" if rounds(setup) else "cheaper"
    return f"each candidate is merged ({why}); sharing what {costs.members} read would take {ratio}"
