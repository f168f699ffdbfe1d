"""What blocks remember of the tokens before, and what else they see beside the stream.

Dimensions in comments: B batch, T new tokens, S key/value slots, K key/value heads, H head size, R how much of a head
turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import REACH, reaches_of


class Tokens(NamedTuple):
    """Keys and values of all tokens so far: of all blocks of a stack (L, ...), with a route of its hops (P, ...), or
    of one block alone.
    """

    keys: Array  # (..., B, K, S, H): as a matrix product reads them
    values: Array  # like keys

    def of_rows(self, rows: Array, common: int) -> Tokens:
        """See `Cache.of_rows`."""

        def moved(x: Array) -> Array:
            taken = x[..., rows, :, common:, :]
            return jax.lax.dynamic_update_slice_in_dim(x, taken, common, -2) if common else taken

        return Tokens(moved(self.keys), moved(self.values))

    def joined(self, new: Tokens, rows: Array, back: Array, end: Array) -> Tokens:
        """See `Cache.joined`."""
        return Tokens(*(joined(x, y, rows, back, end) for x, y in zip(self, new, strict=True)))


class States(NamedTuple):
    """What is known after the tokens so far, of delta nets as of blocks in `Tokens`."""

    inputs: Array  # (..., B, kernel - 1, ...): the last ones of the convolution
    state: Array  # (..., B, N, K, V) float32

    def of_rows(self, rows: Array, common: int) -> States:
        """See `Cache.of_rows`; a state is of all tokens."""
        del common
        return States(self.inputs[..., rows, :, :], self.state[..., rows, :, :, :])

    def joined(self, new: States, rows: Array, back: Array, end: Array) -> States:
        """See `Cache.joined`."""
        del back, end
        inputs = self.inputs.at[..., rows, :, :].set(new.inputs, mode="drop")
        return States(inputs, self.state.at[..., rows, :, :, :].set(new.state, mode="drop"))


def joined(old: Array, new: Array, rows: Array, back: Array, end: Array) -> Array:
    """(..., B, K, S, H) whose slots move `back`, and in (R,) `rows` (..., R, K, T, H) instead, up to slot `end`.

    Of a stack one block after another, in place: all at once would take as much memory again.
    """
    if old.ndim > 4:

        def block(i: Array, stack: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stack, joined(stack[i], new[i], rows, back, end), i, 0)

        return jax.lax.fori_loop(0, old.shape[0], block, old)
    length, slots = new.shape[-2], old.shape[-2]
    moved = jnp.take(old, (jnp.arange(slots, dtype=jnp.int32) + back) % slots, axis=-2, mode="clip")
    last = jax.lax.dynamic_slice_in_dim(moved, end - length, length, -2).at[..., rows, :, :, :].set(new, mode="drop")
    return jax.lax.dynamic_update_slice_in_dim(moved, last, end - length, -2)


class Memory(NamedTuple):
    """What the blocks of one stack remember, and which of them is asked."""

    found: Any  # Tokens or States; None: nothing is remembered
    slot: Array | None  # () int32; None: there is one block alone
    start: Array  # () int32: tokens so far, padding included
    before: Tokens | None = None  # (1, K, P, H): of this block, what all rows follow; see `Decoder.hidden`

    def attended(
        self, see: Callable[[Array, Array, Array], Array], keys: Array, values: Array, mask: Array
    ) -> tuple[Array, Tokens | None]:
        """What is seen of tokens before and new ones, whose keys and values are (B, T, K, H), and what is kept of them.

        Args:
            see: of keys and values (B, S, K, H) and a mask (B, T, P + S); it is given fewer slots while few are filled.
            keys: new ones.
            values: new ones.
            mask: (B, T, P + S) of all.
        """
        if self.found is None:
            return see(keys, values, mask), None
        zero, slots = jnp.zeros_like(self.start), self.found.keys.shape[-2]

        def put(old: Array, new: Array) -> Array:
            new = jnp.swapaxes(new, 1, 2).astype(old.dtype)
            if self.slot is None:
                return jax.lax.dynamic_update_slice(old, new, (zero, zero, self.start, zero))
            return jax.lax.dynamic_update_slice(old, new[None], (self.slot, zero, zero, self.start, zero))

        kept = Tokens(put(self.found.keys, keys), put(self.found.values, values))

        def first(count: int, kept: Tokens) -> Array:
            """What is seen of so many slots."""
            k, v = (jnp.swapaxes(self._mine(x, count), 1, 2).astype(keys.dtype) for x in kept)
            return see(k, v, mask[..., : mask.shape[-1] - slots + count])

        reaches = reaches_of(slots)
        filled = self.start + keys.shape[1]
        with jax.named_scope(REACH):
            which = jnp.sum(filled > jnp.asarray(reaches[:-1], filled.dtype))
            return jax.lax.switch(which, [functools.partial(first, n) for n in reaches], kept), kept

    def states(self) -> tuple[Array, Array] | None:
        """Inputs and state (B, ...) after the tokens so far; None: there were none."""
        return None if self.found is None else (self._mine(self.found.inputs), self._mine(self.found.state))

    def replaced(self, inputs: Array, state: Array) -> States | None:
        """What is kept if these are they now."""
        if self.found is None:
            return None
        pairs = zip(self.found, (inputs, state), strict=True)
        if self.slot is None:
            return States(*(new.astype(old.dtype) for old, new in pairs))
        return States(*(old.at[self.slot].set(new.astype(old.dtype)) for old, new in pairs))

    def _mine(self, x: Array, slots: int | None = None) -> Array:
        """Of the block that is asked; of keys or values the first `slots`."""
        if slots is None:
            return x if self.slot is None else x[self.slot]
        if self.slot is None:
            return x[..., :slots, :]
        return jax.lax.dynamic_slice(x, (self.slot, 0, 0, 0, 0), (1, *x.shape[1:-2], slots, x.shape[-1]))[0]


class Seen(NamedTuple):
    """What a block sees beside the stream."""

    rope: tuple[Array, Array]  # cos and sin (B, T, R/2)
    mask: Array  # (B, T, S)
    positions: Array  # (B, T) int32
    valid: Array  # (B, T) bool: False for padding
    memory: Memory
