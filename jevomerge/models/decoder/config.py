"""Everything that decides the function a decoder computes."""

from __future__ import annotations

import dataclasses

from jevomerge.models.decoder.rope import Rope


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """What may differ from layer to layer: how far back a token sees, and how positions turn."""

    rope: Rope
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the function a checkpoint computes; hashable, a static jit argument."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    kinds: tuple[AttentionKind, ...]
    layer_kinds: tuple[int, ...]  # one index into `kinds` per layer
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # an RMS norm over each head of q and k (Qwen3, Gemma 3)
    query_scale: float | None = None  # None: head_dim ** -0.5
    norm_plus_one: bool = False  # norms multiply by (1 + weight) (Gemma)
    sandwich_norms: bool = False  # a norm before and after both halves of a block (Gemma 3)
    embed_scale: float = 1.0

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        return len(self.layer_kinds)
