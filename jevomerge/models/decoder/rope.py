"""Rotary position embeddings (Su et al., 2021) and the rescalings that checkpoints ask for."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding: `theta`, and the scaling named by `rope_type` as Hugging Face spells it."""

    theta: float = 10000.0
    rope_type: str = "default"  # default | linear | llama3 | yarn | longrope | dynamic | proportional
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    partial: float = 1.0  # how much of a head turns; with `proportional` all of it, but the rest by no angle
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn, longrope; None: yarn's 0.1 ln(factor) + 1
    truncate: bool = True  # yarn
    short_factor: tuple[float, ...] = ()  # longrope: of each angle, in texts of the original length
    long_factor: tuple[float, ...] = ()  # longrope: of each angle, in longer texts

    def fits(self, head_dim: int) -> bool:
        """Whether pairs of heads of this size turn so."""
        turning = int(head_dim * self.partial)
        pairs = {len(self.short_factor), len(self.long_factor)} if self.rope_type == "longrope" else {turning // 2}
        return turning >= 2 and turning % 2 == 0 and pairs == {turning // 2}

    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """(R/2,) float32 angles per position, R of `head_dim` turning; of texts of the original length."""
        turning = head_dim if self.rope_type == "proportional" else int(head_dim * self.partial)
        inv = 1.0 / self.theta ** (np.arange(0, turning, 2, dtype=np.float64) / turning)
        if self.rope_type == "linear":
            inv = inv / self.factor
        elif self.rope_type == "proportional":
            inv = np.where(np.arange(len(inv)) < int(self.partial * head_dim // 2), inv / self.factor, 0.0)
        elif self.rope_type == "longrope":
            inv = inv / np.asarray(self.short_factor)
        elif self.rope_type == "llama3":
            # Wavelengths the model was trained on stay; those longer than its context are stretched.
            wavelengths = 2 * np.pi / inv
            low, high = self.low_freq_factor, self.high_freq_factor
            smooth = (self.original_max_position_embeddings / wavelengths - low) / (high - low)
            smooth = np.clip(smooth, 0.0, 1.0)
            inv = (1 - smooth) * inv / self.factor + smooth * inv
        elif self.rope_type == "yarn":
            # Peng et al., 2023, section 3.2: interpolate only the dimensions that turn slowly.
            def dimension(turns: float) -> float:
                ratio = self.original_max_position_embeddings / (turns * 2 * math.pi)
                return turning * math.log(ratio) / (2 * math.log(self.theta))

            low, high = dimension(self.beta_fast), dimension(self.beta_slow)
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, turning - 1)
            ramp = np.clip((np.arange(turning // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
            inv = inv / self.factor * ramp + inv * (1 - ramp)
        return inv.astype(np.float32)

    def tables(self, positions: Array, head_dim: int) -> tuple[Array, Array]:
        """cos and sin of (..., T, 1) positions or, for each pair its own, (..., T, R/2): (..., T, R/2) each.

        In float32: bfloat16 angles lose positions.
        """
        inv = jnp.asarray(self.inverse_frequencies(head_dim))
        angles = positions.astype(jnp.float32) * self._lengthened(inv, positions)
        scale = 1.0
        if self.rope_type == "yarn":
            scale = self.attention_factor or (0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0)
        elif self.rope_type == "longrope":
            scale = self.attention_factor or 1.0
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale

    def _lengthened(self, inv: Array, positions: Array) -> Array:
        """Angles per position, with which positions (..., T, 1) are multiplied: those of texts as long as each row's.

        As in transformers it is the text so far that counts: what was turned by other angles before is left so.
        """
        behind = range(positions.ndim - 1)
        inv = jnp.expand_dims(inv, behind)
        if self.rope_type not in ("longrope", "dynamic"):
            return inv
        length = (jnp.max(positions, axis=(-2, -1), keepdims=True) + 1).astype(jnp.float32)
        first = self.original_max_position_embeddings
        if self.rope_type == "longrope":
            factors = (jnp.asarray(f, jnp.float32) for f in (self.short_factor, self.long_factor))
            short, long = (jnp.expand_dims(f, behind) for f in factors)
            return jnp.where(length > first, inv * short / long, inv)
        turning = 2 * inv.shape[-1]
        stretch = self.factor * jnp.maximum(length, first) / first - (self.factor - 1)
        # theta' = theta stretch^(R / (R - 2)), so that only the slowest angle is interpolated by `stretch` (NTK).
        powers = jnp.arange(0, turning, 2, dtype=jnp.float32) / (turning - 2)
        return inv * stretch ** -jnp.expand_dims(powers, behind)
