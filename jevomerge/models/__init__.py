"""Flax forward passes."""

from jevomerge.models.decoder import AttentionKind, Cache, DecoderConfig, Params, Path, Scaling, apply, init, unembed
from jevomerge.models.rope import Rope

__all__ = [
    "AttentionKind", "Cache", "DecoderConfig", "Params", "Path", "Rope", "Scaling", "apply", "init", "unembed",
]  # fmt: skip
