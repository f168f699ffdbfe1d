"""Gemma: norms that mostly multiply by 1 + weight, scaled embeddings, gelu, soft caps."""

from __future__ import annotations

from typing import Any

from jevomerge.models.decoder.config import DecoderConfig, LayerKind, Mixture
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
from jevomerge.models.decoder.readers.rope import FULL, KINDS, SLIDING, read_rope, rope_from, ropes_by_type
from jevomerge.models.fields import Fields

_GEMMA = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA2 = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "eos_token_id": 1, "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}  # fmt: skip
_GEMMA3 = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "eos_token_id": 1,
}  # fmt: skip
_GEMMA4 = {
    "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "eos_token_id": 1, "tie_word_embeddings": True,
    "sliding_window": 512, "hidden_size_per_layer_input": 256, "global_head_dim": 512,
}  # fmt: skip
_GEMMA4_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
SANDWICH = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip


def _shared(f: Fields) -> dict[str, Any]:
    """What all Gemmas have."""
    return {
        "hidden_act": "gelu_tanh", "embed_scale": f.integer("hidden_size") ** 0.5, "norm_plus_one": True,
        **bias_of_all(f),
    }  # fmt: skip


def _gemma(f: Fields) -> DecoderConfig:
    f.expect("hidden_act", "gelu_pytorch_tanh", "gelu")  # the second is a slip of the first releases
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    return common(f, **alike(f), **_shared(f))


def _capped(f: Fields) -> dict[str, Any]:
    """Gemma 2's soft caps; null is none."""
    caps = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
    f.seen |= set(caps.values())
    return {ours: None if f.get(key) is None else f.number(key) for ours, key in caps.items()}


def _gemma2(f: Fields, norms: tuple[str, str, str, str] = SANDWICH) -> DecoderConfig:
    """Every second layer sees all."""
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    rope = read_rope(f)
    kinds = {FULL: LayerKind(rope), SLIDING: LayerKind(rope, window_of(f))}
    scale = f.number("query_pre_attn_scalar") ** -0.5
    return common(f, **types_of(f, 2, kinds), **_shared(f), **_capped(f), query_scale=scale, norms=norms)


def _vaultgemma(f: Fields) -> DecoderConfig:
    return _gemma2(f, ("input_layernorm", "", "pre_feedforward_layernorm", ""))


def _gemma3(f: Fields) -> DecoderConfig:
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    ropes = ropes_by_type(f, {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)})
    kinds = {FULL: LayerKind(ropes[FULL]), SLIDING: LayerKind(ropes[SLIDING], window_of(f))}
    return common(
        f,
        **types_of(f, f.integer("sliding_window_pattern"), kinds),
        **_shared(f),
        query_scale=f.number("query_pre_attn_scalar") ** -0.5,
        norms=SANDWICH,
        qk_norm="head",
    )


def _gemma4(f: Fields) -> DecoderConfig:
    """The models with one stream, dense or with a mixture beside each MLP.

    Every sixth layer sees all, with larger heads, whose values may be its keys.
    """
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    f.expect("hidden_size_per_layer_input", 0)
    f.expect("use_double_wide_mlp", False)
    sizes = ("num_experts", "top_k_experts", "moe_intermediate_size")
    f.seen |= {"vocab_size_per_layer_input", *sizes}
    mixture = None
    if f.flag("enable_moe_block"):
        experts, active, size = map(f.integer, sizes)
        mixture = Mixture(experts, active, size, renormalise=True, stored="fused", beside=True)
        if mixture.active > mixture.experts:
            raise f.wrong("top_k_experts", mixture.active, f"at most num_experts, {mixture.experts}")
    names = tuple((f"experts.{name}_proj.weight", f"experts.{name}_proj") for name in ("gate_up", "down"))
    layers = layers_of(f)
    types = f.texts("layer_types") or [FULL if i % 6 == 5 else SLIDING for i in range(layers)]
    if types[-1] != FULL:
        f.expect("layer_types", [*types[:-1], FULL])
    size, heads = f.integer("global_head_dim"), None
    shared = f.flag("attention_k_eq_v")
    if f.get("num_global_key_value_heads") is not None and shared:
        heads = f.integer("num_global_key_value_heads")
    size, heads = _per_layer(f, types, size, heads)
    both = f.table("rope_parameters") or Fields(_GEMMA4_ROPES, f.where)
    length = f.integer("max_position_embeddings")
    ropes = {}
    for name, share in ((SLIDING, None), (FULL, 1.0)):
        table = both.table(name) or Fields(_GEMMA4_ROPES[name], both.where)
        ropes[name] = rope_from(table, 10_000.0, length, kinds=(*KINDS, "proportional"), share=share)
    kinds = {
        FULL: LayerKind(ropes[FULL], stack="full", head_dim=size, kv_heads=heads, keys_are_values=shared),
        SLIDING: LayerKind(ropes[SLIDING], window_of(f), stack="sliding"),
    }
    f.seen.add("final_logit_softcapping")
    cap = None if f.get("final_logit_softcapping") is None else f.number("final_logit_softcapping")
    own: dict[str, Any] = {
        **_shared(f),
        "norm_plus_one": False,
        "norms": SANDWICH,
        "qk_norm": "head",
        "logit_softcap": cap,
    }
    own |= {"query_scale": 1.0, "value_norm": True, "layer_scalar": True, "mixture": mixture, "names": names}
    return common(f, **by_type(f, types, kinds), **own)


def _per_layer(f: Fields, types: list[str], size: int, heads: int | None) -> tuple[int, int | None]:
    """Head size and key heads of the layers that see all, as transformers 5 writes them: an entry for each layer."""
    given = f.table("per_layer_config")
    if given is None:
        return size, heads
    tables = {int(i): given.table(i) for i in given.values if i.isdigit()}
    found = {tuple(sorted(t.values.items())) for t in tables.values() if t is not None}
    full = {i for i, name in enumerate(types) if name == FULL}
    if tables.keys() != full or len(found) > 1 or set(dict(*found)) - {"head_dim", "num_key_value_heads"}:
        f.seen.discard("per_layer_config")  # which says what else there may be
        return size, heads
    (one,) = (t for t in [next(iter(tables.values()))] if t is not None)
    return one.integer("head_dim"), one.integer("num_key_value_heads") if one.get("num_key_value_heads") else None


FAMILIES = {
    "gemma": Family(_GEMMA, _gemma),
    "gemma2": Family(_GEMMA2, _gemma2),
    "vaultgemma": Family(_GEMMA2, _vaultgemma),
    "gemma3_text": Family(_GEMMA3, _gemma3),
    "gemma4_text": Family(_GEMMA4, _gemma4),
}
