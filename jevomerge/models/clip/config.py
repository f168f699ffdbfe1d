"""Everything that decides the function of CLIP's text encoder, and config.json -> that.

What files leave out is what the classes of transformers take for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields, shown
from jevomerge.models.vision.config import EncoderConfig, encoder_sizes


@dataclasses.dataclass(frozen=True)
class TextConfig(EncoderConfig):
    """CLIP's text encoder, alone or beside its tower; hashable, a static jit argument."""

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    projection_dim: int  # of the pooled vector; 0: there is none


TEXT: Mapping[str, Any] = {  # of the class
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}


def read_text(f: Fields) -> TextConfig:
    """A `CLIPTextModel`, or a `CLIPTextModelWithProjection`, by `architectures`.

    Raises:
        InputError: for another class or a value that is not supported, by name.
    """
    f.defaults = TEXT
    f.expect("model_type", "clip_text_model")
    known = ("CLIPTextModel", "CLIPTextModelWithProjection")
    kind = (f.texts("architectures") or ["nothing"])[0]
    if kind not in known:
        raise InputError(f"{f.where}: `architectures: {shown(kind)}` is not supported (only {' or '.join(known)})")
    f.get("projection_dim")
    return text_config(f, f.integer("projection_dim") if kind == known[1] else 0)


def text_config(f: Fields, projection: int) -> TextConfig:
    """Its sizes, whatever class they are of; `projection` is that of the pooled vector."""
    f.defaults = TEXT
    f.get("initializer_factor")
    config = TextConfig(
        **encoder_sizes(f),
        vocab_size=f.integer("vocab_size"),
        max_position_embeddings=f.integer("max_position_embeddings"),
        eos_token_id=f.integer("eos_token_id"),
        projection_dim=projection,
    )
    if config.hidden_size % config.num_attention_heads:
        raise f.wrong("num_attention_heads", config.num_attention_heads, f"a divisor of {config.hidden_size} channels")
    return config
