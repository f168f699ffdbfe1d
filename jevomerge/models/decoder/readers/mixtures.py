"""Mixtures of experts: Mixtral, Qwen's, OLMoE, Granite's, GLM-4.5."""

from __future__ import annotations

from typing import Any

from jevomerge.models.decoder.config import DecoderConfig, LayerKind, Mixture
from jevomerge.models.decoder.readers.common import (
    Family,
    activation,
    alike,
    bias_of_all,
    common,
    layers_of,
    types_of,
    window_of,
)
from jevomerge.models.decoder.readers.llama import multipliers
from jevomerge.models.decoder.readers.rope import FULL, SLIDING, read_rope, rope_table
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields

_MIXTRAL = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "eos_token_id": 2, "num_experts_per_tok": 2, "num_local_experts": 8, "rope_theta": 1e6,
}  # fmt: skip
_QWEN2_MOE = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
    "num_experts": 60, "qkv_bias": True,
}  # fmt: skip
_QWEN3_MOE = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
    "num_experts_per_tok": 8, "num_experts": 128,
}  # fmt: skip
_OLMOE = {
    "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 16, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "eos_token_id": 50279, "num_experts_per_tok": 8, "num_experts": 64,
}  # fmt: skip
_GRANITEMOE = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "eos_token_id": 2, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
_GLM4_MOE = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
    "num_attention_heads": 96, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "n_routed_experts": 128, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "partial_rotary_factor": 0.5,
}  # fmt: skip
_GPT_OSS = {
    "num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "sliding_window": 128, "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True,
    "rope_theta": 150_000.0,
}  # fmt: skip
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096, "rope_theta": 150_000.0,
}  # fmt: skip
EXPERTS = "num_local_experts"
DENSE, SPARSE = "dense", "sparse"  # stacks of layers with an MLP, with a mixture


def experts_of(f: Fields, count: str, size: str, **more: Any) -> Mixture:
    """A mixture whose sizes stand under these keys; transformers 5 may write the number of experts under one of all."""
    f.seen |= {count, EXPERTS}
    count = EXPERTS if count not in f.values and EXPERTS in f.values else count
    experts, active = f.integer(count), f.integer("num_experts_per_tok")
    if active > experts:
        raise f.wrong("num_experts_per_tok", active, f"at most {count}, {experts}")
    return Mixture(experts, active, f.integer(size), **more)


def everywhere(f: Fields, rope: Rope | None = None, window: int | None = None) -> dict[str, Any]:
    """A mixture in every layer."""
    layers = alike(f, window, rope)
    return layers | {"kinds": tuple(LayerKind(k.rope, k.window, sparse=True) for k in layers["kinds"])}


def qwen_sparse(f: Fields) -> list[bool]:
    """Which layers have a mixture, by Qwen's keys."""
    step, dense = f.integer("decoder_sparse_step"), f.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int for i in dense):
        raise f.wrong("mlp_only_layers", dense, "a list of layers")
    return [i not in dense and (i + 1) % step == 0 for i in range(layers_of(f))]


def some_sparse(rope: Rope, sparse: list[bool]) -> dict[str, Any]:
    """Layers with a mixture and layers with an MLP."""
    kinds = LayerKind(rope, stack=DENSE), LayerKind(rope, stack=SPARSE, sparse=True)
    return {"kinds": kinds, "layer_kinds": tuple(map(int, sparse))}


def _mixtral(f: Fields) -> DecoderConfig:
    mixture = experts_of(f, "num_local_experts", "intermediate_size", renormalise=True)
    names = (("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
    return common(f, **everywhere(f, window=window_of(f)), mixture=mixture, names=names)


def _qwen_rope(f: Fields) -> Rope:
    """Qwen's mixtures are read without its sliding windows."""
    f.expect("use_sliding_window", False)
    f.seen |= {"sliding_window", "max_window_layers"}
    if set(f.texts("layer_types") or ()) - {FULL}:
        f.expect("layer_types", [FULL] * layers_of(f))
    return read_rope(f)


def qwen_experts(f: Fields, shared: bool, **more: Any) -> Mixture:
    """Qwen's, with an expert of all tokens, whose part is gated, or without."""
    if shared:
        more |= {"shared": f.integer("shared_expert_intermediate_size"), "shared_gate": True}
    return experts_of(f, "num_experts", "moe_intermediate_size", **more)


def _qwen2_moe(f: Fields) -> DecoderConfig:
    rope, mixture = _qwen_rope(f), qwen_experts(f, True, renormalise=f.flag("norm_topk_prob"))
    layers = some_sparse(rope, qwen_sparse(f))
    return common(f, **layers, qkv_bias=f.flag("qkv_bias"), mixture=mixture)


def _qwen3_moe(f: Fields) -> DecoderConfig:
    rope, mixture = _qwen_rope(f), qwen_experts(f, False, renormalise=f.flag("norm_topk_prob"))
    layers = some_sparse(rope, qwen_sparse(f))
    return common(f, **layers, **bias_of_all(f), qk_norm="head", mixture=mixture)


def _olmoe(f: Fields) -> DecoderConfig:
    f.expect("clip_qkv")
    mixture = experts_of(f, "num_experts", "intermediate_size", renormalise=f.flag("norm_topk_prob"))
    return common(f, **everywhere(f), **bias_of_all(f), qk_norm="whole", mixture=mixture, hidden_act=activation(f))


def _granitemoe(f: Fields) -> DecoderConfig:
    mixture = experts_of(f, "num_local_experts", "intermediate_size", router="chosen", stored="fused")
    names = (
        ("mlp", "block_sparse_moe"), ("gate", "router.layer"), ("experts.gate_up_proj", "input_linear"),
        ("experts.down_proj", "output_linear"),
    )  # fmt: skip
    return common(f, **everywhere(f), **bias_of_all(f), **multipliers(f), mixture=mixture, names=names)


def _glm4_moe(f: Fields) -> DecoderConfig:
    """DeepSeek V3's router; the first layers are dense."""
    mixture = experts_of(
        f, "n_routed_experts", "moe_intermediate_size", router="sigmoid", renormalise=f.flag("norm_topk_prob"),
        groups=f.integer("n_group"), active_groups=f.integer("topk_group"), scaling=f.number("routed_scaling_factor"),
        shared=f.integer("n_shared_experts") * f.integer("moe_intermediate_size"),
    )  # fmt: skip
    if mixture.experts % mixture.groups or mixture.active_groups > mixture.groups:
        raise f.wrong("n_group", mixture.groups, "a divisor of n_routed_experts, at least topk_group")
    f.seen |= {"num_mtp_layers", "num_nextn_predict_layers"}  # what is trained on the side
    rope, dense = read_rope(f, partial="partial_rotary_factor"), f.get("first_k_dense_replace")
    dense = 0 if dense == 0 else f.integer("first_k_dense_replace")
    layers = some_sparse(rope, [i >= dense for i in range(layers_of(f))])
    norm = "head" if f.flag("use_qk_norm") else ""
    names = (("shared_expert", "shared_experts"),)
    return common(f, **layers, qkv_bias=f.flag("attention_bias"), qk_norm=norm, mixture=mixture, names=names)


def _gpt_oss(f: Fields) -> DecoderConfig:
    """Every second layer looks back so far; a clamped activation of its own, sinks, biases everywhere."""
    mixture = experts_of(
        f, "num_local_experts", "intermediate_size", router="chosen", router_bias=True, stored="transposed",
        limit=f.number("swiglu_limit"), alpha=f.number("swiglu_alpha"),
    )  # fmt: skip
    f.seen |= {"experts_per_token", "initial_context_length"}  # other names
    rope = read_rope(f, table=rope_table(f, _GPT_OSS_ROPE))
    kinds = {FULL: LayerKind(rope, sparse=True), SLIDING: LayerKind(rope, window_of(f), sparse=True)}
    names = (
        ("gate", "router"), ("experts.gate_up_proj.weight", "experts.gate_up_proj"),
        ("experts.gate_up_proj.bias", "experts.gate_up_proj_bias"), ("experts.down_proj.weight", "experts.down_proj"),
        ("experts.down_proj.bias", "experts.down_proj_bias"),
    )  # fmt: skip
    return common(f, **types_of(f, 2, kinds), **bias_of_all(f), sinks=True, mixture=mixture, names=names)


FAMILIES = {
    "mixtral": Family(_MIXTRAL, _mixtral),
    "qwen2_moe": Family(_QWEN2_MOE, _qwen2_moe),
    "qwen3_moe": Family(_QWEN3_MOE, _qwen3_moe),
    "olmoe": Family(_OLMOE, _olmoe),
    "granitemoe": Family(_GRANITEMOE, _granitemoe),
    "gpt_oss": Family(_GPT_OSS, _gpt_oss),
    "glm4_moe": Family(_GLM4_MOE, _glm4_moe),
}
