"""Hugging Face `config.json` -> `DecoderConfig`, refusing what it does not understand.

Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). A key that
is neither handled nor known to leave the function unchanged is an error: a model that silently computes
something else is worse than one that does not load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import AttentionKind, DecoderConfig
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields


def with_config(values: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """A config.json with the layers and the vocabulary of `config`, the rest as in `values`."""
    result = dict(values) | {"num_hidden_layers": config.num_hidden_layers, "vocab_size": config.vocab_size}
    if "layer_types" in values or len(config.kinds) > 1:
        names = ("full_attention", "sliding_attention")  # in the order in which `FAMILIES` number them
        result["layer_types"] = [names[kind] for kind in config.layer_kinds]
    return result


def _common(f: Fields, **family: Any) -> DecoderConfig:
    """What all families share; `family` overrides."""
    layers, heads = f.need("num_hidden_layers"), f.need("num_attention_heads")
    f.expect("partial_rotary_factor", 1.0)
    values: dict[str, Any] = {
        "vocab_size": f.need("vocab_size"),
        "hidden_size": f.need("hidden_size"),
        "intermediate_size": f.need("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": f.get("num_key_value_heads", heads),
        "head_dim": f.get("head_dim", f.need("hidden_size") // heads),
        "rms_norm_eps": f.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": f.get("tie_word_embeddings", False),
    }
    if "kinds" not in family:
        if set(f.get("layer_types", ())) - {"full_attention"}:
            f.expect("layer_types", ["full_attention"] * layers)
        values |= {"kinds": (AttentionKind(_rope(f)),), "layer_kinds": (0,) * layers}
    if "hidden_act" not in family:
        f.expect("hidden_act", "silu")
    config = DecoderConfig(**(values | family))
    if config.num_hidden_layers != layers:
        raise InputError(f"{f.where}: layer_types names {config.num_hidden_layers} layers, not {layers}")
    return config


def _rope(f: Fields, default_theta: float = 10000.0) -> Rope:
    """The rotary embedding, from either spelling."""
    theta = f.get("rope_theta", default_theta)
    scaling = f.get("rope_parameters") or f.get("rope_scaling") or {}
    return _rope_from(Fields(scaling, f"{f.where}: rope_parameters"), theta, f)


def _rope_from(scaling: Fields, theta: float, f: Fields) -> Rope:
    """A rope scaling dictionary, `type` being an old spelling of `rope_type`."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    scaling.get("type")
    rope = {"theta": float(scaling.get("rope_theta", theta)), "rope_type": kind}
    scaling.expect("partial_rotary_factor", 1.0)
    if kind in ("linear", "llama3", "yarn"):
        rope["factor"] = float(scaling.need("factor"))
    elif kind != "default":
        raise InputError(f"{scaling.where}: rope_type `{kind}` is not supported (default, linear, llama3, yarn)")
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling.get("original_max_position_embeddings") or f.need(
            "max_position_embeddings"
        )
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
    }.get(kind, ())
    rope |= {name: value for name in names if (value := scaling.get(name)) is not None}
    scaling.refuse_rest()
    return Rope(**rope)


def _llama(f: Fields) -> DecoderConfig:
    bias = f.get("attention_bias", False)
    return _common(f, qkv_bias=bias, o_bias=bias, mlp_bias=f.get("mlp_bias", False))


def _mistral(f: Fields) -> DecoderConfig:
    window = f.get("sliding_window") if "sliding_window" in f.values else 4096  # null is no window, absent the default
    kind = AttentionKind(_rope(f), window=window)
    return _common(f, kinds=(kind,), layer_kinds=(0,) * f.need("num_hidden_layers"))


def _qwen_layers(f: Fields) -> dict[str, Any]:
    """Qwen's sliding window: on from layer `max_window_layers`, and only if `use_sliding_window`."""
    rope, layers, window = _rope(f), f.need("num_hidden_layers"), f.get("sliding_window")
    first, types = f.get("max_window_layers", 28), f.get("layer_types")
    if not f.get("use_sliding_window", False) or window is None:
        return {"kinds": (AttentionKind(rope),), "layer_kinds": (0,) * layers}
    types = types or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return _by_type(f, types, {"full_attention": AttentionKind(rope), "sliding_attention": AttentionKind(rope, window)})


def _by_type(f: Fields, types: list[str], kinds: dict[str, AttentionKind]) -> dict[str, Any]:
    """Layer types by name -> indices into `kinds`."""
    for name in types:
        if name not in kinds:
            raise InputError(f"{f.where}: layer type `{name}` is not supported (only {', '.join(kinds)})")
    return {"kinds": tuple(kinds.values()), "layer_kinds": tuple(list(kinds).index(t) for t in types)}


def _qwen2(f: Fields) -> DecoderConfig:
    return _common(f, qkv_bias=True, **_qwen_layers(f))


def _qwen3(f: Fields) -> DecoderConfig:
    bias = f.get("attention_bias", False)
    return _common(f, qkv_bias=bias, o_bias=bias, qk_norm=True, **_qwen_layers(f))


def _gemma3(f: Fields) -> DecoderConfig:
    f.expect("attn_logit_softcapping")
    f.expect("final_logit_softcapping")
    f.expect("use_bidirectional_attention", False)
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    f.expect("hidden_act", "gelu_pytorch_tanh")
    bias, layers = f.get("attention_bias", False), f.need("num_hidden_layers")
    parameters = f.get("rope_parameters")
    if parameters:  # transformers 5: one dictionary per layer type
        theta = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
        ropes = {
            name: _rope_from(Fields(parameters.get(name) or {}, f"{f.where}: rope_parameters.{name}"), t, f)
            for name, t in theta.items()
        }
    else:  # transformers 4: local layers have a base of their own and are never scaled
        local = Rope(theta=float(f.get("rope_local_base_freq", 10_000.0)))
        ropes = {"full_attention": _rope(f, 1_000_000.0), "sliding_attention": local}
    every = f.get("sliding_window_pattern", f.get("_sliding_window_pattern", 6))
    types = f.get("layer_types") or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)
    ]
    kinds = {
        "full_attention": AttentionKind(ropes["full_attention"]),
        "sliding_attention": AttentionKind(ropes["sliding_attention"], window=f.get("sliding_window", 4096)),
    }
    return _common(
        f,
        hidden_act="gelu_tanh",
        head_dim=f.get("head_dim", 256),
        query_scale=float(f.get("query_pre_attn_scalar", 256)) ** -0.5,
        embed_scale=f.need("hidden_size") ** 0.5,
        tie_word_embeddings=f.get("tie_word_embeddings", True),
        norm_plus_one=True,
        sandwich_norms=True,
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        **_by_type(f, types, kinds),
    )


FAMILIES: dict[str, Callable[[Fields], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}
