"""Everything that decides the function a decoder computes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jevomerge.models.decoder.rope import Rope


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer: how far back a token sees, how positions turn, and which tensors it has."""

    rope: Rope | None  # None: positions do not turn (NoPE)
    window: int | None = None
    stack: str = ""  # layers of one stack have tensors of the same names and shapes; "" where all have
    mixer: Literal["attention", "delta"] = "attention"
    sparse: bool = False  # a mixture of experts in the place of the MLP
    head_dim: int | None = None  # None: the config's, as
    kv_heads: int | None = None
    keys_are_values: bool = False  # before norm and rotation; there is no v_proj (Gemma 4)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of experts."""

    experts: int
    active: int
    size: int  # inside of an expert
    # Shares: softmax over all, of which the best are taken; over the best; or sigmoids, with a bias for the choice.
    router: Literal["softmax", "chosen", "sigmoid"] = "softmax"
    router_bias: bool = False
    renormalise: bool = False  # shares add up to 1
    groups: int = 1  # of experts, of which `active_groups` are looked at (sigmoid)
    active_groups: int = 1
    scaling: float = 1.0
    shared: int = 0  # inside of the expert of all tokens; 0: there is none
    shared_gate: bool = False
    # Three matrices of each expert; gate and up in one, of all experts; these transposed, with biases (gpt-oss).
    stored: Literal["each", "fused", "transposed"] = "each"
    beside: bool = False  # an MLP, with norms of its own, and routed by the stream (Gemma 4); else in its place
    limit: float = 0.0  # of what goes into the activation, and
    alpha: float = 1.0  # its slope (gpt-oss)


@dataclasses.dataclass(frozen=True)
class Delta:
    """A gated delta net."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    packed: bool = False  # two matrices, by key heads, instead of four (Qwen3-Next)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the function a checkpoint computes; hashable, a static jit argument."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    kinds: tuple[LayerKind, ...]
    layer_kinds: tuple[int, ...]  # one index into `kinds` per layer
    tie_word_embeddings: bool = False
    # Norms
    rms_norm_eps: float = 1e-6  # of layer norms too
    norm: Literal["rms", "layer"] = "rms"
    norm_weight: bool = True
    norm_bias: bool = False
    norm_plus_one: bool = False  # norms multiply by (1 + weight) (Gemma)
    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    # What they are called that stand before and after attention, before and after the MLP; "": there is none.
    parallel: bool = False  # the MLP reads what attention reads; of two norms of one name there is one
    # Attention
    qkv_bias: bool = False
    o_bias: bool = False
    fused_qkv: Literal["", "parts", "heads"] = ""  # one matrix, whose rows are q, k, v, or those of each head in turn
    qk_norm: Literal["", "head", "whole"] = (
        ""  # a norm over each head of q and k (Qwen3, Gemma 3), or over all (OLMo 2)
    )
    qk_norm_last: bool = False  # behind the rotation (Hunyuan)
    rope_interleaved: bool = False  # pairs are neighbours, not halves
    query_scale: float | None = None  # None: head_dim ** -0.5
    query_gate: bool = False  # q_proj has gates of what attention gives, head by head (Qwen3.5)
    query_growth: tuple[float, float] | None = None  # (b, p): times 1 + b ln(1 + floor(position / p)) (Ministral 3)
    value_norm: bool = False  # an RMS norm without a weight over each head of v (Gemma 4)
    sinks: bool = False  # a learned score per head, which takes a share of the attention and gives nothing (gpt-oss)
    attention_softcap: float | None = None  # c: scores s become c tanh(s / c)
    # MLP
    hidden_act: str = "silu"
    gated: bool = True
    fused_gate_up: bool = False  # one matrix, whose rows are those of the gate, then those of the other
    mlp_bias: bool = False
    # Other parts
    mixture: Mixture | None = None
    delta: Delta | None = None
    # Scales of the stream
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # of what a block adds
    layer_scalar: bool = False  # a learned factor of the stream behind each block (Gemma 4)
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    # What a checkpoint calls the parts of a name, where it is not as in Llama's: (ours, theirs)
    names: tuple[tuple[str, str], ...] = ()

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        return len(self.layer_kinds)

    def heads(self, kind: LayerKind) -> tuple[int, int, int]:
        """N query heads, K key/value heads and H, the size of one, in layers of a kind."""
        return (
            self.num_attention_heads, kind.kv_heads or self.num_key_value_heads, kind.head_dim or self.head_dim,
        )  # fmt: skip

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """{stack: its layers}."""
        found: dict[str, list[int]] = {}
        for i, kind in enumerate(self.layer_kinds):
            found.setdefault(self.kinds[kind].stack, []).append(i)
        return {stack: tuple(layers) for stack, layers in found.items()}

    def name(self, ours: str) -> str:
        """What a checkpoint calls a tensor.

        >>> neox = dataclasses.replace(DecoderConfig(1, 1, 1, 1, 1, 1, (), ()), names=(("model", "gpt_neox"),))
        >>> neox.name("model.norm.weight")
        'gpt_neox.norm.weight'
        """
        name = f".{ours}."
        for old, new in self.names:
            name = name.replace(f".{old}.", f".{new}.")
        return name[1:-1]
