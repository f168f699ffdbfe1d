"""Blocks of several kinds in their order: a scan over what repeats, or one written out after another.

Blocks whose tensors have the same names and shapes lie in one stack, {stack: blocks along the first axis}.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def through(
    run: Any, order: Sequence[str], rows: Sequence[int], kinds: Sequence[int], blocks: Mapping[str, Any], x: Array,
    memory: Any,
) -> tuple[Array, Any]:  # fmt: skip
    """All blocks in order, by a scan over what repeats; what comes before and after it is written out.

    Args:
        run: (stack, x, memory, row, stored, kind) -> the block's two summands and the memory.
        order: the stack of each block.
        rows: where in its stack each one is.
        kinds: of each one, among those of its stack.
        blocks: {stack: blocks along the first axis}.
        x: (B, T, D).
        memory: of all stacks, or None.
    """

    def one(x: Array, memory: Any, i: int) -> tuple[Array, Any]:
        stored = jax.tree.map(lambda p: p[rows[i]], blocks[order[i]])
        x, y, memory = run(order[i], x, memory, jnp.int32(rows[i]), stored, jnp.int32(kinds[i]))
        return x + y, memory

    first, period, times = repetition(order)
    for i in range(first):
        x, memory = one(x, memory, i)
    unit = order[first : first + period]
    stop = first + period * times
    counts = {stack: unit.count(stack) for stack in dict.fromkeys(unit)}

    def repeated(stack: str) -> Any:
        """The blocks of a stack that are scanned over: one at a time, or as many as it has in a period."""
        count, begin = counts[stack], order[:first].count(stack)

        def cut(p: Array) -> Array:
            p = p if p.shape[0] == count * times else p[begin : begin + count * times]
            return p if count == 1 else p.reshape(times, count, *p.shape[1:])

        return jax.tree.map(cut, blocks[stack])

    def body(carry: tuple[Array, Any], xs: Any) -> tuple[tuple[Array, Any], None]:
        (x, memory), (stacked, slots, which) = carry, xs
        for j, stack in enumerate(unit):
            stored = stacked[stack]
            if counts[stack] > 1:
                stored = jax.tree.map(operator.itemgetter(unit[:j].count(stack)), stored)
            x, y, memory = run(stack, x, memory, slots[j], stored, which[j])
            x = x + y
        return (x, memory), None

    tables = (jnp.asarray(numbers[first:stop], jnp.int32).reshape(times, period) for numbers in (rows, kinds))
    (x, memory), _ = jax.lax.scan(body, (x, memory), ({stack: repeated(stack) for stack in counts}, *tables))
    for i in range(stop, len(order)):
        x, memory = one(x, memory, i)
    return x, memory


def one_by_one(
    run: Any, order: Sequence[str], rows: Sequence[int], kinds: Sequence[int],
    blocks: Mapping[str, Sequence[Any]], x: Array, memory: Any,
) -> tuple[Array, Any]:  # fmt: skip
    """As `through`, of blocks that lie one by one: none is cut out of a stack, and all are written out."""
    for stack, row, kind in zip(order, rows, kinds, strict=True):
        x, y, memory = run(stack, x, memory, row, blocks[stack][row], kind)
        x = x + y
    return x, memory


def repetition(order: Sequence[Hashable]) -> tuple[int, int, int]:
    """What repeats in a sequence, as (first, period, times): that which leaves the fewest to be written out.

    >>> repetition("dmmmm"), repetition("lllflllf"), repetition("ccfccfcf")
    ((1, 1, 4), (0, 4, 2), (0, 3, 2))
    """
    best = (len(order), 0, 1, 1)
    for period in range(1, len(order) // 2 + 1):
        first = 0
        while first + period <= len(order):
            stop = first + period
            while stop < len(order) and order[stop] == order[stop - period]:
                stop += 1
            times = (stop - first) // period
            best = min(best, (len(order) - period * (times - 1), first, period, times))
            first = max(first + 1, stop - period)
    return best[1:]
