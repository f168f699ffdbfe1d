"""Hybrids, most of whose layers are gated delta nets: Qwen3-Next, Qwen3.5 and their mixtures."""

from __future__ import annotations

from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import DecoderConfig, Delta, LayerKind
from jevomerge.models.decoder.readers.common import Family, bias_of_all, common, layers_of
from jevomerge.models.decoder.readers.mixtures import qwen_experts, qwen_sparse
from jevomerge.models.decoder.readers.rope import FULL, read_rope, rope_table
from jevomerge.models.fields import Fields

_QWEN3_NEXT = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "decoder_sparse_step": 1,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10,
    "num_experts": 512, "norm_topk_prob": True, "partial_rotary_factor": 0.25, "full_attention_interval": 4,
}  # fmt: skip
_QWEN3_5 = {
    "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "partial_rotary_factor": 0.25, "full_attention_interval": 4,
}  # fmt: skip
_QWEN3_5_MOE = {
    **_QWEN3_5, "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip
del _QWEN3_5_MOE["intermediate_size"]
LINEAR = "linear_attention"


def _hybrid(f: Fields, sparse: list[bool], packed: bool, **family: Any) -> DecoderConfig:
    """Three layers of four are delta nets, or those that `layer_types` names; `sparse`: which have a mixture."""
    layers, every = layers_of(f), f.integer("full_attention_interval")
    types = f.texts("layer_types") or [LINEAR if (i + 1) % every else FULL for i in range(layers)]
    if len(types) != layers or set(types) - {LINEAR, FULL}:
        raise InputError(f"{f.where}: layer_types must name {layers} layers, each {LINEAR} or {FULL}")
    table = rope_table(f)
    table.seen |= {"mrope_section", "mrope_interleaved"}  # of pictures; the three positions of a text are one
    rope = read_rope(f, table=table, partial="partial_rotary_factor")
    delta = Delta(
        f.integer("linear_num_key_heads"), f.integer("linear_num_value_heads"), f.integer("linear_key_head_dim"),
        f.integer("linear_value_head_dim"), f.integer("linear_conv_kernel_dim"), packed,
    )  # fmt: skip
    if delta.value_heads % delta.key_heads:
        raise f.wrong(
            "linear_num_key_heads", delta.key_heads, f"a divisor of linear_num_value_heads, {delta.value_heads}"
        )

    kinds = (
        LayerKind(None, stack="linear", mixer="delta"), LayerKind(rope, stack="full"),
        LayerKind(None, stack="linear_sparse", mixer="delta", sparse=True),
        LayerKind(rope, stack="full_sparse", sparse=True),
    )  # fmt: skip
    layer_kinds = tuple(2 * s + (t == FULL) for s, t in zip(sparse, types, strict=True))
    own: dict[str, Any] = {"norm_plus_one": True, "qk_norm": "head", "query_gate": True, "delta": delta}
    return common(f, kinds=kinds, layer_kinds=layer_kinds, **bias_of_all(f), **own, **family)


def _qwen3_next(f: Fields) -> DecoderConfig:
    mixture = qwen_experts(f, True, renormalise=f.flag("norm_topk_prob"))
    return _hybrid(f, qwen_sparse(f), True, mixture=mixture)


def _qwen3_5(f: Fields) -> DecoderConfig:
    return _hybrid(f, [False] * layers_of(f), False)


def _qwen3_5_moe(f: Fields) -> DecoderConfig:
    f.seen.add("intermediate_size")
    mixture = qwen_experts(f, True, renormalise=True)
    return _hybrid(f, [True] * layers_of(f), False, mixture=mixture, intermediate_size=mixture.shared)


FAMILIES = {
    "qwen3_next": Family(_QWEN3_NEXT, _qwen3_next),
    "qwen3_5_text": Family(_QWEN3_5, _qwen3_5),
    "qwen3_5_moe_text": Family(_QWEN3_5_MOE, _qwen3_5_moe),
}
