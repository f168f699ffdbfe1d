"""Cohere, StableLM, GPT-NeoX, StarCoder2 and Nemotron: layer norms, parallel halves of blocks, MLPs without a gate."""

from __future__ import annotations

from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.readers.common import (
    Family,
    activation,
    alike,
    bias_of_all,
    common,
    types_of,
    window_of,
)
from jevomerge.models.decoder.readers.rope import FULL, SLIDING, read_rope
from jevomerge.models.fields import Fields

_COHERE = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625,
    "num_hidden_layers": 40, "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5, "eos_token_id": 255001, "tie_word_embeddings": True, "rope_theta": 5e5,
}  # fmt: skip
_STABLELM = {
    "vocab_size": 50304, "intermediate_size": 6912, "hidden_size": 2560, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25,
}  # fmt: skip
_NEOX = {
    "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
    "intermediate_size": 24576, "hidden_act": "gelu", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
    "eos_token_id": 2, "use_parallel_residual": True, "attention_bias": True, "rotary_pct": 0.25,
}  # fmt: skip
_STARCODER2 = {
    "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
    "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "eos_token_id": 50256, "use_bias": True,
    "tie_word_embeddings": True,
}  # fmt: skip
_NEMOTRON = {
    "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32,
    "num_attention_heads": 48, "hidden_act": "relu2", "max_position_embeddings": 4096, "norm_eps": 1e-5,
    "eos_token_id": 3, "partial_rotary_factor": 0.5,
}  # fmt: skip
_ONE_NORM = ("input_layernorm", "", "input_layernorm", "")
_NEOX_NAMES = (
    ("model", "gpt_neox"), ("embed_tokens", "embed_in"), ("lm_head", "embed_out"), ("norm", "final_layer_norm"),
    ("self_attn", "attention"), ("qkv_proj", "query_key_value"), ("o_proj", "dense"),
    ("up_proj", "dense_h_to_4h"), ("down_proj", "dense_4h_to_h"),
)  # fmt: skip


def _same_heads(f: Fields) -> None:
    """Of these families a head is as large as it follows."""
    f.expect("head_dim", f.integer("hidden_size") // f.integer("num_attention_heads"))


def _cohere(f: Fields) -> DecoderConfig:
    f.expect("use_qk_norm", False)
    eps, scale = f.number("layer_norm_eps"), f.number("logit_scale")
    own = {"norm": "layer", "rms_norm_eps": eps, "norms": _ONE_NORM, "parallel": True, "rope_interleaved": True}
    return common(f, **alike(f), **bias_of_all(f), logit_scale=scale, **own)


def _cohere2(f: Fields) -> DecoderConfig:
    """Every fourth layer sees all, and knows no positions."""
    _same_heads(f)
    kinds = {FULL: LayerKind(None), SLIDING: LayerKind(read_rope(f), window_of(f))}
    every = f.integer("sliding_window_pattern")
    eps, scale = f.number("layer_norm_eps"), f.number("logit_scale")
    own = {"norm": "layer", "rms_norm_eps": eps, "norms": _ONE_NORM, "parallel": True, "rope_interleaved": True}
    return common(f, **types_of(f, every, kinds), **bias_of_all(f), logit_scale=scale, **own)


def _stablelm(f: Fields) -> DecoderConfig:
    _same_heads(f)
    f.expect("qk_layernorm", False)
    rope = read_rope(f, partial="partial_rotary_factor")
    own = {"norm": "layer", "norm_bias": True, "rms_norm_eps": f.number("layer_norm_eps"), "hidden_act": activation(f)}
    if f.flag("use_parallel_residual"):
        own |= {"parallel": True, "norms": _ONE_NORM}
    return common(f, **alike(f, rope=rope), qkv_bias=f.flag("use_qkv_bias"), **own)


def _gpt_neox(f: Fields) -> DecoderConfig:
    _same_heads(f)
    f.expect("num_key_value_heads", f.integer("num_attention_heads"))
    rope = read_rope(f, partial="rotary_pct", theta="rotary_emb_base")
    own = {"norm": "layer", "norm_bias": True, "rms_norm_eps": f.number("layer_norm_eps"), "hidden_act": activation(f)}
    own |= {"parallel": f.flag("use_parallel_residual"), "gated": False, "mlp_bias": True, "fused_qkv": "heads"}
    return common(f, **alike(f, rope=rope), **bias_of_all(f), names=_NEOX_NAMES, **own)


def _starcoder2(f: Fields) -> DecoderConfig:
    bias = f.flag("use_bias")
    own = {"norm": "layer", "norm_bias": True, "rms_norm_eps": f.number("norm_epsilon"), "hidden_act": activation(f)}
    own |= {"gated": False, "names": (("up_proj", "c_fc"), ("down_proj", "c_proj"))}
    return common(f, **alike(f, window_of(f)), qkv_bias=bias, o_bias=bias, mlp_bias=bias, **own)


def _nemotron(f: Fields) -> DecoderConfig:
    rope = read_rope(f, partial="partial_rotary_factor")
    own = {"norm": "layer", "norm_bias": True, "norm_plus_one": True, "rms_norm_eps": f.number("norm_eps")}
    own |= {"hidden_act": activation(f), "gated": False, "mlp_bias": f.flag("mlp_bias")}
    return common(f, **alike(f, rope=rope), **bias_of_all(f), **own)


_COHERE2 = _COHERE | {"sliding_window": 4096, "sliding_window_pattern": 4, "rope_theta": 10000.0}
FAMILIES = {
    "cohere": Family(_COHERE, _cohere),
    "cohere2": Family(_COHERE2, _cohere2),
    "stablelm": Family(_STABLELM, _stablelm),
    "gpt_neox": Family(_NEOX, _gpt_neox),
    "starcoder2": Family(_STARCODER2, _starcoder2),
    "nemotron": Family(_NEMOTRON, _nemotron),
}
