"""What models that run together, as members of one `vmap`, share: matrices of a merge that nobody has made.

Of a merge that is linear in its sources, `x W = sum_i f_i (x W_i)`: as only the factors f differ between members, each
W_i is read once for all of them. Adapters are of low rank, W_i = W_0 + B_i A_i, and their matrices lie side by side:
`x W = f (x W_0) + (x A s) B`.

Dimensions in comments: O out, I in, S whole matrices, R all ranks together.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.devices.mesh import platform

# See `balance`; of a CPU from products of 8 and of 128 rows with matrices of a 135M model, of others a guess.
BALANCE, ELSEWHERE = {"cpu": 16.0}, 200.0


@flax.struct.dataclass
class LowRank:
    """`up @ diag(scale) @ down`."""

    down: Array  # (..., R, I)
    up: Array  # (..., O, R)
    scale: Array  # (..., R) float32: what differs between members


@flax.struct.dataclass
class Unmerged:
    """A matrix that is a sum which is not made; in a stack all leaves have the stack's axis in front."""

    whole: tuple[Array, ...]  # S times (..., O, I)
    factors: Array  # (..., S) float32: what differs between members
    low: LowRank | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., O, I)."""
        return self.whole[0].shape

    def merged(self) -> Array:
        """(O, I) float32: the sum."""
        total = _added([f * w.astype(jnp.float32) for f, w in self._terms()])
        if self.low is None:
            return total
        up, down = (x.astype(jnp.float32) for x in (self.low.up, self.low.down))
        return total + (up * self.low.scale[None]) @ down

    def product(self, x: Array) -> Array:
        """(..., I) -> (..., O), as of `merged`, in the dtype of `x`."""
        if self._merging_pays(x.size // x.shape[-1]):
            return product(x, self.merged())
        parts = [f * _float32("...i,oi->...o", x, w) for f, w in self._terms()]
        if self.low is not None:
            inside = _float32("...i,ri->...r", x, self.low.down)
            inside = inside * jnp.expand_dims(self.low.scale, range(x.ndim - 1))
            parts.append(_float32("...r,or->...o", inside.astype(x.dtype), self.low.up))
        return _added(parts).astype(x.dtype)

    def look_up(self, numbers: Array) -> Array:
        """(...) numbers -> (..., I) float32: those of `merged`."""
        total = _added([f * jnp.take(w, numbers, axis=0).astype(jnp.float32) for f, w in self._terms()])
        if self.low is None:
            return total
        up = jnp.take(self.low.up, numbers, axis=0) * jnp.expand_dims(self.low.scale, range(numbers.ndim))
        return total + up @ self.low.down.astype(jnp.float32)

    def _terms(self) -> list[tuple[Array, Array]]:
        return [(self.factors[i], w) for i, w in enumerate(self.whole)]

    def _merging_pays(self, rows: int) -> bool:
        """Whether it is cheaper to make the sum, for one product with so many rows."""
        size, rank = self.whole[0].size, 0 if self.low is None else self.low.scale.size
        parts = len(self.whole) * size + rank * sum(self.shape)
        moved = (len(self.whole) + 1) * size * self.whole[0].dtype.itemsize
        return 2 * rows * (parts - size) > moved * balance() + 2 * size * rank


def balance() -> float:
    """Arithmetic that a device does in the time of moving a byte."""
    return BALANCE.get(platform(), ELSEWHERE)


def product(x: Array, weight: Array | Unmerged) -> Array:
    """(..., I), (O, I) -> (..., O) in the dtype of `x`."""
    if isinstance(weight, Unmerged):
        return weight.product(x)
    # XLA takes a CPU's own products of bfloat16 (AMX) only where their sums are asked for in float32 (bench_engine).
    sums = jnp.float32 if platform() == "cpu" and x.dtype.itemsize < 4 else None
    return jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype), preferred_element_type=sums).astype(x.dtype)


def look_up(weight: Array | Unmerged, numbers: Array) -> Array:
    """(O, I), (...) numbers -> (..., I)."""
    return weight.look_up(numbers) if isinstance(weight, Unmerged) else jnp.take(weight, numbers, axis=0)


def _added(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0])


def _float32(equation: str, x: Array, weight: Array) -> Array:
    return jnp.einsum(equation, x, weight.astype(x.dtype), preferred_element_type=jnp.float32)


@jax.custom_batching.custom_vmap
def highest(x: Array) -> Array:
    """`x`; of members that run together the highest of all, which is one for all.

    So a loop may go on until the last of them is done, and no state is chosen member by member; whether any member does
    something is the highest of whether each does.
    """
    return x


@highest.def_vmap
def _(size: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
    del size, batched
    return highest(jnp.max(x, axis=0)), False
