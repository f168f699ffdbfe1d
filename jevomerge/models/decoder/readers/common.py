"""What the readers of all families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.readers.rope import FULL, SLIDING, read_rope
from jevomerge.models.decoder.rope import Rope
from jevomerge.models.fields import Fields

MOST_LAYERS = 10_000  # more are a slip of the pen; fewer are counted in the files
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}


class Family(NamedTuple):
    """A family of decoders."""

    defaults: Mapping[str, Any]  # what its class in transformers takes for a key that is absent; without null and false
    read: Callable[[Fields], DecoderConfig]


def common(f: Fields, **family: Any) -> DecoderConfig:
    """What all families share; `family` is the rest, the layers' kinds among it."""
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    groups = heads if f.get("num_key_value_heads") is None else f.integer("num_key_value_heads")
    size = hidden // heads if f.get("head_dim") is None else f.integer("head_dim")
    if heads % groups:
        raise f.wrong("num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}")
    if size % 2 or not size:
        raise f.wrong("head_dim", size, "an even number: rotary positions turn pairs")
    for kind in family["kinds"]:
        if kind.rope is not None and not kind.rope.fits(kind.head_dim or size):
            raise InputError(f"{f.where}: the rope's factors or its share of a head do not fit heads of {size}")
    if "hidden_act" not in family:
        f.expect("hidden_act", "silu", "swish")
    family = {"rms_norm_eps": None, "intermediate_size": None} | family
    family["rms_norm_eps"] = family["rms_norm_eps"] or f.number("rms_norm_eps")
    family["intermediate_size"] = family["intermediate_size"] or f.integer("intermediate_size")
    return DecoderConfig(
        vocab_size=f.integer("vocab_size"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        tie_word_embeddings=f.flag("tie_word_embeddings"),
        **family,
    )


def activation(f: Fields, key: str = "hidden_act") -> str:
    """Ours of the name that transformers has for it."""
    f.expect(key, *ACTIVATIONS)
    return ACTIVATIONS[f.text(key)]


def bias_of_all(f: Fields, key: str = "attention_bias") -> dict[str, bool]:
    """Biases of all four matrices of attention, or none."""
    return {"qkv_bias": f.flag(key), "o_bias": f.flag(key)}


def layers_of(f: Fields) -> int:
    """L."""
    return f.integer("num_hidden_layers", most=MOST_LAYERS)


def alike(f: Fields, window: int | None = None, rope: Rope | None = None) -> dict[str, Any]:
    """All layers are of one kind; `layer_types` is not read by these families, but by their caches."""
    layers, name = layers_of(f), FULL if window is None else SLIDING
    if set(f.texts("layer_types") or ()) - {name}:
        f.expect("layer_types", [name] * layers)
    return {"kinds": (LayerKind(rope or read_rope(f), window),), "layer_kinds": (0,) * layers}


def by_type(f: Fields, types: list[str], kinds: Mapping[str, LayerKind]) -> dict[str, Any]:
    """Layer types by name -> indices into `kinds`."""
    layers = layers_of(f)
    for name in types:
        if name not in kinds:
            raise InputError(f"{f.where}: layer type `{name}` is not supported (only {', '.join(kinds)})")
    if len(types) != layers:
        raise InputError(f"{f.where}: layer_types names {len(types)} layers, not {layers}")
    return {"kinds": tuple(kinds.values()), "layer_kinds": tuple(list(kinds).index(t) for t in types)}


def types_of(f: Fields, every: int, kinds: Mapping[str, LayerKind]) -> dict[str, Any]:
    """`layer_types`, by default a full layer after `every` - 1 sliding ones."""
    types = f.texts("layer_types") or [SLIDING if (i + 1) % every else FULL for i in range(layers_of(f))]
    if SLIDING in types and SLIDING in kinds and kinds[SLIDING].window is None:
        raise InputError(f"{f.where}: layer_types has {SLIDING}, but there is no `sliding_window`")
    return by_type(f, types, kinds)


def window_of(f: Fields) -> int | None:
    """How far back a token sees; None: to the beginning."""
    return None if f.get("sliding_window") is None else f.integer("sliding_window")
