"""What blocks remember of the tokens before, and what else they see beside the stream.

Dimensions in comments: B batch, T new tokens, S key/value slots, R how much of a head turns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Tokens(NamedTuple):
    """Keys and values of all tokens so far, of all blocks of a stack."""

    keys: Array  # (L, B, S, K, H), with a route (P, B, S, K, H)
    values: Array  # like keys

    def of_rows(self, rows: Array, common: int) -> Tokens:
        """See `Cache.of_rows`."""

        def moved(x: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, x[:, rows, common:], common, 2) if common else x[:, rows]

        return Tokens(moved(self.keys), moved(self.values))


class States(NamedTuple):
    """What is known after the tokens so far, of all delta nets of a stack."""

    inputs: Array  # (L, B, kernel - 1, ...): the last ones of the convolution
    state: Array  # (L, B, N, K, V) float32

    def of_rows(self, rows: Array, common: int) -> States:
        """See `Cache.of_rows`; a state is of all tokens."""
        del common
        return States(self.inputs[:, rows], self.state[:, rows])


class Memory(NamedTuple):
    """What the blocks of one stack remember, and which of them is asked."""

    found: Any  # Tokens or States; None: nothing is remembered
    slot: Array  # () int32
    start: Array  # () int32: tokens so far, padding included

    def appended(self, keys: Array, values: Array) -> tuple[tuple[Array, Array], Tokens | None]:
        """New ones (B, T, K, H) behind those of the tokens before: all of them (B, S, K, H), and what is kept."""
        if self.found is None:
            return (keys, values), None
        zero = jnp.zeros_like(self.slot)
        at = (self.slot, zero, self.start, zero, zero)
        kept = Tokens(
            *(
                jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), at)
                for old, new in zip(self.found, (keys, values), strict=True)
            )
        )
        return (kept.keys[self.slot].astype(keys.dtype), kept.values[self.slot].astype(values.dtype)), kept

    def states(self) -> tuple[Array, Array] | None:
        """Inputs and state (B, ...) after the tokens so far; None: there were none."""
        return None if self.found is None else (self.found.inputs[self.slot], self.found.state[self.slot])

    def replaced(self, inputs: Array, state: Array) -> States | None:
        """What is kept if these are they now."""
        if self.found is None:
            return None
        pairs = zip(self.found, (inputs, state), strict=True)
        return States(*(old.at[self.slot].set(new.astype(old.dtype)) for old, new in pairs))


class Seen(NamedTuple):
    """What a block sees beside the stream."""

    rope: tuple[Array, Array]  # cos and sin (B, T, R/2)
    mask: Array  # (B, T, S)
    positions: Array  # (B, T) int32
    valid: Array  # (B, T) bool: False for padding
    memory: Memory
