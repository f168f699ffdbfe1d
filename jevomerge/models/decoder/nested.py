"""The decoder of a larger model, whose `text_config` leaves out whatever its class knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.hf_config import FAMILIES
from jevomerge.models.fields import Fields

# Read off `LlamaConfig()`, `MistralConfig()` and `Qwen2Config()` of transformers 5, which a test repeats.
_COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
}

# Of the first SmolVLM's files, about a resampler that it does not have.
HARMLESS = ("neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor", "use_resampler")


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sparse config with its class' sizes; one without a `model_type` is a Llama's."""
    family = values.get("model_type", "llama")
    defaults = _COMMON | DEFAULTS[family] if family in DEFAULTS else {}
    given = {key: value for key, value in values.items() if value is not None or key not in defaults}
    return {"model_type": family} | defaults | given


def read_text(f: Fields, absent: Mapping[str, Any] | None = None) -> Decoder:
    """The decoder of a config.json's `text_config`, or of `absent`; its head is tied if either of the two says so.

    Raises:
        InputError: for a family, a key or a value that is not supported, by name.
    """
    values = completed(f.get("text_config", absent or {}))
    tied = bool(f.get("tie_word_embeddings", False) or values.get("tie_word_embeddings"))
    fields = Fields({**values, "tie_word_embeddings": tied}, f"{f.where}: text_config")
    if (family := values["model_type"]) not in FAMILIES:
        raise InputError(f"{fields.where}: model_type `{family}` is not supported (only {', '.join(FAMILIES)})")
    config = FAMILIES[family](fields)
    for key in HARMLESS:
        fields.get(key)
    fields.expect("qk_layer_norms", False)
    fields.refuse_rest()
    return Decoder(config, fields.values)
