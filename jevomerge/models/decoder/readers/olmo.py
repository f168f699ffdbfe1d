"""OLMo, EXAONE 4 and GLM-4: norms without weights, behind both halves of a block, or on both sides of them."""

from __future__ import annotations

from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.readers.common import (
    Family,
    alike,
    bias_of_all,
    by_type,
    common,
    layers_of,
    types_of,
    window_of,
)
from jevomerge.models.decoder.readers.rope import FULL, SLIDING, read_rope, ropes_by_type
from jevomerge.models.fields import Fields

_OLMO = {
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "eos_token_id": 50279,
}  # fmt: skip
_OLMO2 = _OLMO | {"rms_norm_eps": 1e-5}
_EXAONE4 = {
    "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "eos_token_id": 2, "sliding_window": 4096, "sliding_window_pattern": 4,
}  # fmt: skip
_GLM = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7, "attention_bias": True, "partial_rotary_factor": 0.5,
    "eos_token_id": [151329, 151336, 151338],
}  # fmt: skip
BEHIND = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
_GLM4_NORMS = (
    "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm",
)  # fmt: skip


def _olmo(f: Fields) -> DecoderConfig:
    f.expect("clip_qkv")
    f.seen.add("rms_norm_eps")
    return common(f, **alike(f), **bias_of_all(f), norm="layer", norm_weight=False, rms_norm_eps=1e-5)


def _olmo2(f: Fields) -> DecoderConfig:
    return common(f, **alike(f), **bias_of_all(f), norms=BEHIND, qk_norm="whole")


def _olmo3(f: Fields) -> DecoderConfig:
    """Three layers of four look back so far; only the fourth are scaled to long texts."""
    ropes = ropes_by_type(f, {FULL: ("rope_theta", 500_000.0), SLIDING: ("rope_local_base_freq", 500_000.0)})
    kinds = {FULL: LayerKind(ropes[FULL]), SLIDING: LayerKind(ropes[SLIDING], window_of(f))}
    return common(f, **types_of(f, 4, kinds), **bias_of_all(f), norms=BEHIND, qk_norm="whole")


def _exaone4(f: Fields) -> DecoderConfig:
    """Where there is a window, layers that see all know no positions."""
    rope, window = read_rope(f), window_of(f)
    if window is None:
        f.seen.add("sliding_window_pattern")
        layers = by_type(f, f.texts("layer_types") or [FULL] * layers_of(f), {FULL: LayerKind(rope)})
    else:
        kinds = {FULL: LayerKind(None), SLIDING: LayerKind(rope, window)}
        layers = types_of(f, f.integer("sliding_window_pattern"), kinds)
    return common(f, **layers, norms=BEHIND, qk_norm="head")


def _glm(f: Fields) -> DecoderConfig:
    rope = read_rope(f, partial="partial_rotary_factor")
    bias = f.flag("attention_bias")
    return common(f, **alike(f, rope=rope), qkv_bias=bias, fused_gate_up=True, rope_interleaved=True)


def _glm4(f: Fields) -> DecoderConfig:
    rope = read_rope(f, partial="partial_rotary_factor")
    bias = f.flag("attention_bias")
    own = {"fused_gate_up": True, "rope_interleaved": True, "norms": _GLM4_NORMS}
    return common(f, **alike(f, rope=rope), qkv_bias=bias, **own)


FAMILIES = {
    "olmo": Family(_OLMO, _olmo),
    "olmo2": Family(_OLMO2, _olmo2),
    "olmo3": Family(_OLMO2 | {"sliding_window": 4096}, _olmo3),
    "exaone4": Family(_EXAONE4, _exaone4),
    "glm": Family(_GLM, _glm),
    "glm4": Family(_GLM, _glm4),
}
