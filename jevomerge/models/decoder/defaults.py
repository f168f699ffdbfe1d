"""What transformers' classes take for keys that a config.json leaves out; nested ones leave out all that is default.

Read off `LlamaConfig()`, `MistralConfig()` and `Qwen2Config()` of transformers 5, which a test repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sparse config with its class' sizes; one without a `model_type` is a Llama's."""
    family = values.get("model_type", "llama")
    defaults = _COMMON | DEFAULTS[family] if family in DEFAULTS else {}
    given = {key: value for key, value in values.items() if value is not None or key not in defaults}
    return {"model_type": family} | defaults | given
