"""Llama, Mistral, Qwen and their kin: RMS norms before each half of a block, gated MLPs."""

from __future__ import annotations

from typing import Any

from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.readers.common import (
    Family,
    activation,
    alike,
    bias_of_all,
    by_type,
    common,
    layers_of,
    window_of,
)
from jevomerge.models.decoder.readers.rope import FULL, LONG, SLIDING, read_rope, rope_table
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields

_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
    "eos_token_id": 2,
}  # fmt: skip
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072,
}  # fmt: skip
_QWEN2 = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_MINISTRAL3 = _LLAMA | {
    "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5,
}  # fmt: skip
_MINISTRAL3_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_SEED_OSS = _LLAMA | {
    "vocab_size": 155136, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 80,
    "num_key_value_heads": 8, "max_position_embeddings": 524288, "attention_bias": True, "head_dim": 128,
}  # fmt: skip
_ARCEE = _LLAMA | {
    "hidden_size": 2560, "intermediate_size": 18432, "hidden_act": "relu2", "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "eos_token_id": 128001,
}  # fmt: skip
_SMOLLM3 = _LLAMA | {
    "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "eos_token_id": 128001, "no_rope_layer_interval": 4,
    "tie_word_embeddings": True, "rope_theta": 2e6,
}  # fmt: skip
_GRANITE = _LLAMA | {
    "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
}  # fmt: skip
_APERTUS = _LLAMA | {
    "vocab_size": 131072, "intermediate_size": 14336, "hidden_act": "xielu", "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5, "rope_theta": 12e6,
}  # fmt: skip
_APERTUS_ROPE = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
_HUNYUAN = _LLAMA | {"vocab_size": 290943, "rms_norm_eps": 1e-5}
_ERNIE = {
    "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
    "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "eos_token_id": 2, "tie_word_embeddings": True, "head_dim": 128, "rope_theta": 5e5,
}  # fmt: skip
_PHI3 = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "eos_token_id": 32000, "partial_rotary_factor": 1.0,
}  # fmt: skip


def _llama(f: Fields) -> DecoderConfig:
    for key in ("sliding_window", "attention_chunk_size"):  # transformers' forward pass has none, its cache does
        if f.get(key) is not None and f.integer(key) < f.integer("max_position_embeddings"):
            f.expect(key)
    return common(f, **alike(f), **bias_of_all(f), mlp_bias=f.flag("mlp_bias"))


def _mistral(f: Fields) -> DecoderConfig:
    return common(f, **alike(f, window_of(f)))


def _ministral(f: Fields) -> DecoderConfig:
    rope, window = read_rope(f), window_of(f)
    types = f.texts("layer_types") or [FULL if window is None else SLIDING] * layers_of(f)
    return common(f, **by_type(f, types, {FULL: LayerKind(rope), SLIDING: LayerKind(rope, window)}))


def _ministral3(f: Fields) -> DecoderConfig:
    table = rope_table(f, _MINISTRAL3_ROPE)
    rope = read_rope(f, table=table)
    growth = None
    if table.get("llama_4_scaling_beta"):
        growth = (table.number("llama_4_scaling_beta"), table.number("original_max_position_embeddings"))
    return common(f, **alike(f, window_of(f), rope), query_growth=growth)


def _qwen_layers(f: Fields) -> dict[str, Any]:
    """Qwen's sliding window: on from layer `max_window_layers`, and only if `use_sliding_window`."""
    rope, layers = read_rope(f), layers_of(f)
    window = window_of(f) if f.flag("use_sliding_window") else None
    f.seen |= {"sliding_window", "max_window_layers"}
    if window is None:
        return by_type(f, f.texts("layer_types") or [FULL] * layers, {FULL: LayerKind(rope)})
    first = f.get("max_window_layers")  # 0: all of them
    first = 0 if first == 0 else f.integer("max_window_layers")
    types = f.texts("layer_types") or [SLIDING if i >= first else FULL for i in range(layers)]
    return by_type(f, types, {FULL: LayerKind(rope), SLIDING: LayerKind(rope, window)})


def _qwen2(f: Fields) -> DecoderConfig:
    return common(f, **_qwen_layers(f), qkv_bias=True)


def _qwen3(f: Fields) -> DecoderConfig:
    return common(f, **_qwen_layers(f), **bias_of_all(f), qk_norm="head")


def _seed_oss(f: Fields) -> DecoderConfig:
    biases = {"qkv_bias": f.flag("attention_bias"), "o_bias": f.flag("attention_out_bias")}
    return common(f, **alike(f), **biases, mlp_bias=f.flag("mlp_bias"))


def _arcee(f: Fields) -> DecoderConfig:
    act = activation(f)
    return common(f, **alike(f), **bias_of_all(f), mlp_bias=f.flag("mlp_bias"), hidden_act=act, gated=False)


def _smollm3(f: Fields) -> DecoderConfig:
    """Every fourth layer, or those with a 0 in `no_rope_layers`, are without positions."""
    rope, layers, every = read_rope(f), layers_of(f), f.integer("no_rope_layer_interval")
    turning = f.get("no_rope_layers")
    turning = [int((i + 1) % every != 0) for i in range(layers)] if turning is None else turning
    if not isinstance(turning, list) or len(turning) != layers or not all(t in (0, 1) for t in turning):
        raise f.wrong("no_rope_layers", turning, f"a list of {layers} ones and zeros")
    window = window_of(f) if f.flag("use_sliding_window") else None
    f.seen.add("sliding_window")
    types = f.texts("layer_types") or [FULL if window is None or t else SLIDING for t in turning]
    names = [f"{name} {t}" for name, t in zip(types, turning, strict=False)]
    kinds = {f"{FULL} 1": LayerKind(rope), f"{FULL} 0": LayerKind(None)}
    if window is not None:
        kinds |= {f"{SLIDING} 1": LayerKind(rope, window), f"{SLIDING} 0": LayerKind(None, window)}
    return common(f, **by_type(f, names, kinds), **bias_of_all(f), mlp_bias=f.flag("mlp_bias"))


def multipliers(f: Fields) -> dict[str, float]:
    """Granite's."""
    return {
        "embed_scale": f.number("embedding_multiplier"), "residual_scale": f.number("residual_multiplier"),
        "query_scale": f.number("attention_multiplier"), "logit_scale": 1 / f.number("logits_scaling"),
    }  # fmt: skip


def _granite(f: Fields) -> DecoderConfig:
    return common(f, **alike(f), **bias_of_all(f), mlp_bias=f.flag("mlp_bias"), **multipliers(f))


def _apertus(f: Fields) -> DecoderConfig:
    f.expect("hidden_act", "xielu")
    rope = read_rope(f, table=rope_table(f, _APERTUS_ROPE))
    norms = ("attention_layernorm", "", "feedforward_layernorm", "")
    return common(
        f, **alike(f, rope=rope), **bias_of_all(f), hidden_act="xielu", gated=False, qk_norm="head", norms=norms
    )


def _hunyuan(f: Fields) -> DecoderConfig:
    """NTK scaling with a fixed `alpha` is another theta."""
    table = rope_table(f)
    rope = read_rope(f, LONG, table=table)
    if rope.rope_type == "dynamic" and table.get("alpha"):
        size = f.integer("head_dim")
        rope = Rope(theta=rope.theta * table.number("alpha") ** (size / (size - 2)))
    names = (("q_norm", "query_layernorm"), ("k_norm", "key_layernorm"))
    return common(f, **alike(f, rope=rope), **bias_of_all(f), qk_norm="head", qk_norm_last=True, names=names)


def _ernie(f: Fields) -> DecoderConfig:
    bias = f.flag("use_bias")
    return common(f, **alike(f), qkv_bias=bias, o_bias=bias, mlp_bias=bias, rope_interleaved=True)


def _phi3(f: Fields) -> DecoderConfig:
    """Phi's long ropes have had three names."""
    table = rope_table(f)
    if table.values.get("rope_type", table.values.get("type")) in ("su", "yarn"):
        table = Fields({**table.values, "rope_type": "longrope"}, table.where)
    rope = read_rope(f, ("default", "longrope"), table=table, partial="partial_rotary_factor")
    return common(f, **alike(f, window_of(f), rope), fused_qkv="parts", fused_gate_up=True)


FAMILIES = {
    "llama": Family(_LLAMA, _llama),
    "mistral": Family(_MISTRAL, _mistral),
    "ministral": Family(_MISTRAL, _ministral),
    "ministral3": Family(_MINISTRAL3, _ministral3),
    "qwen2": Family(_QWEN2, _qwen2),
    "qwen3": Family(_QWEN2 | {"head_dim": 128}, _qwen3),
    "seed_oss": Family(_SEED_OSS, _seed_oss),
    "arcee": Family(_ARCEE, _arcee),
    "smollm3": Family(_SMOLLM3, _smollm3),
    "granite": Family(_GRANITE, _granite),
    "apertus": Family(_APERTUS, _apertus),
    "hunyuan_v1_dense": Family(_HUNYUAN, _hunyuan),
    "ernie4_5": Family(_ERNIE, _ernie),
    "phi3": Family(_PHI3, _phi3),
}
