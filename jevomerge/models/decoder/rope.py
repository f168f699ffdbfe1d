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
    rope_type: str = "default"  # default | linear | llama3 | yarn
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    truncate: bool = True  # yarn

    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """(head_dim/2,) float32 angles per position."""
        inv = 1.0 / self.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.rope_type == "linear":
            inv = inv / self.factor
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
                return head_dim * math.log(ratio) / (2 * math.log(self.theta))

            low, high = dimension(self.beta_fast), dimension(self.beta_slow)
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, head_dim - 1)
            ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
            inv = inv / self.factor * ramp + inv * (1 - ramp)
        return inv.astype(np.float32)

    def tables(self, positions: Array, head_dim: int) -> tuple[Array, Array]:
        """cos and sin of (..., 1) positions or, for each pair its own, (..., head_dim/2): (..., head_dim/2) each.

        In float32: bfloat16 angles lose positions.
        """
        inv = jnp.asarray(self.inverse_frequencies(head_dim))
        angles = positions.astype(jnp.float32) * jnp.expand_dims(inv, range(positions.ndim - 1))
        scale = 1.0
        if self.rope_type == "yarn":
            scale = self.attention_factor or (0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0)
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale
