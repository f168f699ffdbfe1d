"""Flax forward passes."""

from jevomerge.models.decoder import AttentionKind, Cache, DecoderConfig, apply, init, unembed
from jevomerge.models.rope import Rope

__all__ = ["AttentionKind", "Cache", "DecoderConfig", "Rope", "apply", "init", "unembed"]
