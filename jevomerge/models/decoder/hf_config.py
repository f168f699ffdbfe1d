"""Hugging Face `config.json` -> `DecoderConfig`, read as transformers reads it.

Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). A key that is absent
has the default of the family's class in transformers. What would change the function and is not implemented is
refused; what that class never reads changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import DecoderConfig, LayerKind
from jevomerge.models.decoder.readers import gemma, hybrids, layernorm, llama, mixtures, olmo
from jevomerge.models.decoder.readers.common import Family
from jevomerge.models.decoder.readers.hybrids import LINEAR
from jevomerge.models.decoder.readers.rope import FULL, SLIDING
from jevomerge.models.fields import Fields

_FAMILIES: dict[str, Family] = {
    **llama.FAMILIES, **gemma.FAMILIES, **olmo.FAMILIES, **layernorm.FAMILIES, **mixtures.FAMILIES, **hybrids.FAMILIES,
}  # fmt: skip
DEFAULTS: dict[str, Mapping[str, Any]] = {name: family.defaults for name, family in _FAMILIES.items()}
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


def read_config(f: Fields) -> DecoderConfig:
    """What decides the function that a config.json describes.

    Raises:
        InputError: for a key or a value that is not supported, by name.
    """
    family = _FAMILIES[f.text("model_type")]
    f.defaults = family.defaults
    f.integer("max_position_embeddings")
    config = family.read(f)
    for key in (*ELSEWHERE, *FACTORS):
        if key not in f.seen and f.get(key):
            f.expect(key, *([1] if key in FACTORS else []))
    return config


def with_config(values: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """A config.json with the layers, the vocabulary and the head of `config`, the rest as in `values`."""
    result = dict(values) | {"num_hidden_layers": config.num_hidden_layers, "vocab_size": config.vocab_size}
    if config.tie_word_embeddings != values.get("tie_word_embeddings"):
        result["tie_word_embeddings"] = config.tie_word_embeddings
    layers = [config.kinds[kind] for kind in config.layer_kinds]
    defaults = DEFAULTS.get(values.get("model_type", ""), {})
    if values.get("layer_types") or len({layer_type(kind) for kind in config.kinds}) > 1:
        result["layer_types"] = [layer_type(kind) for kind in layers]
    if "no_rope_layer_interval" in defaults:
        result["no_rope_layers"] = [int(kind.rope is not None) for kind in layers]
    if "decoder_sparse_step" in defaults:
        dense = [i for i, kind in enumerate(layers) if not kind.sparse]
        result |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    if "first_k_dense_replace" in defaults:
        result["first_k_dense_replace"] = sum(not kind.sparse for kind in layers)
    if full := next((kind for kind in config.kinds if kind.head_dim), None):  # once, not for each layer
        result.pop("per_layer_config", None)
        result |= {"global_head_dim": full.head_dim, "num_global_key_value_heads": full.kv_heads}
    return result


def check_layers(values: Mapping[str, Any], config: DecoderConfig) -> None:
    """Raise InputError for an order of layers that a config.json of the family cannot have."""
    sparse = [config.kinds[kind].sparse for kind in config.layer_kinds]
    if "first_k_dense_replace" in DEFAULTS.get(values.get("model_type", ""), {}) and sparse != sorted(sparse):
        raise InputError("a model of this family has its dense layers first; choose layers in such an order")


def layer_type(kind: LayerKind) -> str:
    """What `layer_types` calls it."""
    if kind.mixer == "delta":
        return LINEAR
    return FULL if kind.window is None else SLIDING
