"""Whether candidates are merged, or share what they read: counted, not tried.

A candidate that is merged reads all sources once, is written, and then read in every step for rows of its own.
Candidates that share read all sources in every step once for the whole group, and multiply by each of them. Arithmetic
counts as the bytes that a device moves in the time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jevomerge.errors import InputError
from jevomerge.models.layers import REACH
from jevomerge.models.members import balance
from jevomerge.planning.chips import Chip
from jevomerge.planning.programs import count_batches
from jevomerge.search.setup import Setup

MOST = 16  # candidates in a group: more hardly lessen what is read for each
WORTH = 0.8  # of what merging takes: what is not counted, such as attention, is the same either way


class Costs(NamedTuple):
    """What a candidate takes either way, in bytes moved."""

    members: int  # that would be run together
    merged: float
    together: float


def settled_sharing(setup: Setup, chip: Chip | None = None) -> Setup:
    """The setup as its candidates are best run, on a `chip` or on this machine.

    Raises:
        InputError: if adapters were to be extracted, which are made to be shared, and cannot be.
    """
    costs, share, extract = costs_of(setup, chip), setup.config.search.share, setup.config.extract
    if extract is not None and isinstance(costs, str):
        raise InputError(f"extract: candidates cannot share what they read: {costs}; leave it out")
    if isinstance(costs, str) or not share:
        return setup
    dear = setup.judge.racing or rounds(setup) or costs.together > WORTH * costs.merged
    if share == "auto" and extract is None and dear:
        return setup
    return dataclasses.replace(setup, together=True, judge=setup.judge.on(setup.mesh, costs.members))


def rounds(setup: Setup) -> bool:
    """Whether merged candidates are rounded to half precision, which those that share are not."""
    return (setup.problem.exported()[1], setup.judge.dtype) != ("float32", "float32")


def costs_of(setup: Setup, chip: Chip | None = None) -> Costs | str:
    """Of the matrices alone, on the whole search split; or why they cannot share.

    Candidates that run together take no more tokens at a time than a batch of one may.
    """
    shared, judge = setup.problem.shared, setup.judge
    if isinstance(shared, str):
        return shared
    if setup.memory != "device":
        return "the models are not all on a device"
    if other := next((task.name for task in judge.tasks if not task.rollout.unmerged), None):
        return f"{other} is given all parameters"
    flops = balance() if chip is None else chip.flops / chip.bandwidth
    count = math.ceil(setup.strategy.population_size / judge.mesh.shape["pop"])
    most = max(n.running * (n.length + n.answer_slots) for task in judge.tasks for n in judge.layouts[task.name])
    room = max(1, min(MOST, setup.config.tokens_per_batch // most))
    members = setup.config.members_per_device or math.ceil(count / math.ceil(count / room))
    read, made = shared.read * shared.stored, shared.size * shared.made
    merged, together = float(read + made if any(task.rollout.many_passes for task in judge.tasks) else 0), 0.0
    one, all_ = 2 * shared.size / flops, 2 * shared.read / flops  # the arithmetic for a token
    for task in judge.tasks:
        batches = count_batches(task.rollout, judge.chosen(task, "search"), judge.layouts[task.name])
        for layout, often in batches.items():
            tokens = layout.rows * layout.length + layout.shared
            turns = [n for name, n in task.rollout.loops(layout).items() if name != REACH]
            steps = math.prod(turns) if task.rollout.many_passes else 0.0
            written = steps * layout.running
            first = made if task.rollout.many_passes else read + made
            merged += often * (first + steps * made + (tokens + written) * one)
            prompts = min(read / members + tokens * all_, read + made + tokens * one)  # see `Unmerged.product`
            together += often * (prompts + steps * read / members + written * all_)
    return Costs(members, merged, together)


def line(setup: Setup, chip: Chip | None = None) -> str:
    """For people: how candidates are run, and why."""
    costs, share = costs_of(setup, chip), setup.config.search.share
    if isinstance(costs, str):
        return f"each candidate is merged: {costs}"
    ratio = f"{costs.together / costs.merged:.2g} times what merging each takes"
    if setup.together:
        return f"candidates share what they read, {costs.members} at a time, not merged: {ratio}"
    reasons = {
        "search.share is false": not share,
        "and raced": setup.judge.racing is not None,
        "and rounded to half precision": rounds(setup),
    }
    why = next((why for why, so in reasons.items() if so), "as that is cheaper")
    return f"each candidate is merged, {why}; sharing what {costs.members} read would take {ratio}"
