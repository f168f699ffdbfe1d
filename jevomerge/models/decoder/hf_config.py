"""Hugging Face `config.json` -> `DecoderConfig`, read as transformers reads it.

Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). A key that is absent
has the default of the family's class in transformers. What would change the function and is not implemented is
refused; what that class never reads changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import AttentionKind, DecoderConfig
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields

# What the class of each family in transformers takes for a key that is absent; null and false are left out.
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
_GEMMA3 = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "eos_token_id": 1,
}  # fmt: skip
DEFAULTS: dict[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
    "gemma3_text": _GEMMA3,
}
# What other decoders do in the same forward pass: whoever sets these meant another function, even where the class of
# the family does not look at them. Off is null, false, 0 or empty, or for factors 1.
ELSEWHERE = (
    "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "per_layer_config", "alibi",
    "num_experts", "num_local_experts", "n_routed_experts", "num_kv_shared_layers", "is_encoder_decoder",
    "add_cross_attention", "use_mrope", "kv_lora_rank", "no_rope_layers",
)  # fmt: skip
FACTORS = (
    "partial_rotary_factor", "rotary_pct", "logit_scale", "logits_scaling", "residual_multiplier", "scale_depth",
    "embedding_multiplier", "scale_emb",
)  # fmt: skip
MOST_LAYERS = 10_000  # more are a slip of the pen; fewer are counted in the files
FULL, SLIDING = "full_attention", "sliding_attention"


def with_config(values: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """A config.json with the layers, the vocabulary and the head of `config`, the rest as in `values`."""
    result = dict(values) | {"num_hidden_layers": config.num_hidden_layers, "vocab_size": config.vocab_size}
    if config.tie_word_embeddings != values.get("tie_word_embeddings"):
        result["tie_word_embeddings"] = config.tie_word_embeddings
    if values.get("layer_types") or len(config.kinds) > 1:
        names = (FULL, SLIDING) if len(config.kinds) > 1 or config.kinds[0].window is None else (SLIDING,)
        result["layer_types"] = [names[kind] for kind in config.layer_kinds]
    return result


def read_config(f: Fields) -> DecoderConfig:
    """What decides the function that a config.json describes.

    Raises:
        InputError: for a key or a value that is not supported, by name.
    """
    family = f.text("model_type")
    f.defaults = DEFAULTS[family]
    for key in (*ELSEWHERE, *FACTORS):
        if f.get(key):
            f.expect(key, *([1] if key in FACTORS else []))
    f.integer("max_position_embeddings")
    return _FAMILIES[family](f)


def _common(f: Fields, kinds: Sequence[AttentionKind], layer_kinds: Sequence[int], **family: Any) -> DecoderConfig:
    """What all families share; `family` is the rest."""
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    groups = heads if f.get("num_key_value_heads") is None else f.integer("num_key_value_heads")
    size = hidden // heads if f.get("head_dim") is None else f.integer("head_dim")
    if heads % groups:
        raise f.wrong("num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}")
    if size % 2 or not size:
        raise f.wrong("head_dim", size, "an even number: rotary positions turn pairs")
    if "hidden_act" not in family:
        f.expect("hidden_act", "silu", "swish")
    return DecoderConfig(
        vocab_size=f.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=f.integer("intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        rms_norm_eps=f.number("rms_norm_eps"),
        tie_word_embeddings=f.flag("tie_word_embeddings"),
        kinds=tuple(kinds),
        layer_kinds=tuple(layer_kinds),
        **family,
    )


def _rope(f: Fields) -> Rope:
    """The rotary embedding of all layers, from either spelling; transformers prefers the old one."""
    f.defaults = {"rope_theta": 10000.0} | dict(f.defaults)
    found = f.table("rope_scaling") or f.table("rope_parameters") or Fields({}, f.where)
    f.seen |= {"rope_parameters", "original_max_position_embeddings"}
    # Phi's place for it, which transformers looks at first in every family.
    first = f.get("original_max_position_embeddings")
    length = f.integer("max_position_embeddings" if first is None else "original_max_position_embeddings")
    return _rope_from(found, f.number("rope_theta"), length, first is not None)


def _rope_from(scaling: Fields, theta: float, length: int, overrides: bool = False) -> Rope:
    """A rope dictionary, `type` being an old spelling of `rope_type`.

    Args:
        scaling: the dictionary.
        theta: where it does not say.
        length: of the texts that the model was first trained on, where it does not say.
        overrides: `length` holds even if it does.
    """
    scaling.defaults = {
        "rope_type": scaling.get("type") or "default", "rope_theta": theta, "original_max_position_embeddings": length,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True,
    }  # fmt: skip
    kind, rope = scaling.text("rope_type"), dict[str, Any](theta=scaling.number("rope_theta"))
    scaling.expect("partial_rotary_factor", 1.0)
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise InputError(f"{scaling.where}: rope_type `{kind}` is not supported (default, linear, llama3, yarn)")
    if kind == "default":
        return Rope(**rope)
    rope["factor"] = scaling.number("factor")
    if kind == "linear":
        return Rope(rope_type=kind, **rope)
    original = scaling.number("original_max_position_embeddings")
    rope["original_max_position_embeddings"] = length if overrides else original
    if kind == "llama3":
        rope |= {name: scaling.number(name) for name in ("low_freq_factor", "high_freq_factor")}
        return Rope(rope_type=kind, **rope)
    rope |= {name: scaling.number(name) for name in ("beta_fast", "beta_slow")}
    if scaling.get("attention_factor") is not None:
        rope["attention_factor"] = scaling.number("attention_factor")
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):  # DeepSeek's
        logarithm = 0.1 * math.log(max(rope["factor"], 1.0))
        upper, lower = (scaling.number(name) * logarithm + 1.0 for name in ("mscale", "mscale_all_dim"))
        rope["attention_factor"] = upper / lower
    return Rope(rope_type=kind, truncate=scaling.flag("truncate"), **rope)


def _layers(f: Fields) -> int:
    return f.integer("num_hidden_layers", most=MOST_LAYERS)


def _alike(f: Fields, window: int | None, layers: int) -> dict[str, Any]:
    """All layers are of one kind; `layer_types` is not read by these families, but by their caches."""
    name = FULL if window is None else SLIDING
    if set(f.texts("layer_types") or ()) - {name}:
        f.expect("layer_types", [name] * layers)
    return {"kinds": (AttentionKind(_rope(f), window=window),), "layer_kinds": (0,) * layers}


def _by_type(f: Fields, types: list[str], layers: int, kinds: Mapping[str, AttentionKind]) -> dict[str, Any]:
    """Layer types by name -> indices into `kinds`."""
    for name in types:
        if name not in kinds:
            raise InputError(f"{f.where}: layer type `{name}` is not supported (only {', '.join(kinds)})")
    if len(types) != layers:
        raise InputError(f"{f.where}: layer_types names {len(types)} layers, not {layers}")
    return {"kinds": tuple(kinds.values()), "layer_kinds": tuple(list(kinds).index(t) for t in types)}


def _window(f: Fields) -> int | None:
    return None if f.get("sliding_window") is None else f.integer("sliding_window")


def _llama(f: Fields) -> DecoderConfig:
    for key in ("sliding_window", "attention_chunk_size"):  # transformers' forward pass has none, its cache does
        if f.get(key) is not None and f.integer(key) < f.integer("max_position_embeddings"):
            f.expect(key)
    bias = f.flag("attention_bias")
    return _common(f, **_alike(f, None, _layers(f)), qkv_bias=bias, o_bias=bias, mlp_bias=f.flag("mlp_bias"))


def _mistral(f: Fields) -> DecoderConfig:
    return _common(f, **_alike(f, _window(f), _layers(f)))


def _qwen_layers(f: Fields) -> dict[str, Any]:
    """Qwen's sliding window: on from layer `max_window_layers`, and only if `use_sliding_window`."""
    rope, layers = _rope(f), _layers(f)
    window = _window(f) if f.flag("use_sliding_window") else None
    f.seen |= {"sliding_window", "max_window_layers"}
    if window is None:
        return _by_type(f, f.texts("layer_types") or [FULL] * layers, layers, {FULL: AttentionKind(rope)})
    first = f.get("max_window_layers")  # 0: all of them
    first = 0 if first == 0 else f.integer("max_window_layers")
    types = f.texts("layer_types") or [SLIDING if i >= first else FULL for i in range(layers)]
    return _by_type(f, types, layers, {FULL: AttentionKind(rope), SLIDING: AttentionKind(rope, window)})


def _qwen2(f: Fields) -> DecoderConfig:
    return _common(f, **_qwen_layers(f), qkv_bias=True)


def _qwen3(f: Fields) -> DecoderConfig:
    bias = f.flag("attention_bias")
    return _common(f, **_qwen_layers(f), qkv_bias=bias, o_bias=bias, qk_norm=True)


def _gemma3(f: Fields) -> DecoderConfig:
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    bias, layers, window = f.flag("attention_bias"), _layers(f), _window(f)
    every = f.integer("sliding_window_pattern")
    types = f.texts("layer_types") or [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    ropes = _gemma3_ropes(f)
    kinds = {FULL: AttentionKind(ropes[FULL]), SLIDING: AttentionKind(ropes[SLIDING], window)}
    if window is None and SLIDING in types:
        raise InputError(f"{f.where}: layer_types has {SLIDING}, but there is no `sliding_window`")
    return _common(
        f,
        **_by_type(f, types, layers, kinds),
        hidden_act="gelu_tanh",
        query_scale=f.number("query_pre_attn_scalar") ** -0.5,
        embed_scale=f.integer("hidden_size") ** 0.5,
        norm_plus_one=True,
        sandwich_norms=True,
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
    )


def _gemma3_ropes(f: Fields) -> dict[str, Rope]:
    """Those of the two kinds of layers: a dictionary each, or in the old spelling keys of their own."""
    both = f.table("rope_parameters") or Fields({}, f.where)
    if both.values and not both.values.keys() & {FULL, SLIDING}:
        raise InputError(f"{both.where} must have an object each for {FULL} and {SLIDING}")
    ropes = {}
    length = f.integer("max_position_embeddings")
    for name, key, theta in ((FULL, "rope_theta", 1_000_000.0), (SLIDING, "rope_local_base_freq", 10_000.0)):
        own, old = both.table(name), f.table("rope_scaling") if name == FULL else None  # local layers are never scaled
        f.defaults = {key: theta} | dict(f.defaults)
        # A dictionary in the old spelling is laid over a default one: its `rope_type` counts, its `type` does not.
        values = {**(own.values if own else {"rope_type": "default"}), **(old.values if old else {})}
        ropes[name] = _rope_from(Fields(values, f"{f.where}: rope_parameters: {name}"), f.number(key), length)
    return ropes


_FAMILIES: dict[str, Callable[[Fields], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}
