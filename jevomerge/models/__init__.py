"""Flax forward passes."""

from jevomerge.models.decoder import AttentionKind, Cache, DecoderConfig, Params, apply, init, unembed
from jevomerge.models.rope import Rope

__all__ = ["AttentionKind", "Cache", "DecoderConfig", "Params", "Rope", "apply", "init", "unembed"]
