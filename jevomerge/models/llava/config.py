"""config.json of LLaVA-1.5 and LLaVA-NeXT -> everything that decides what they compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.nested import TextConfig, read_text
from jevomerge.models.fields import Fields
from jevomerge.models.llava.tiling import Size, read_pinpoints
from jevomerge.models.vision.config import ACTIVATIONS, VisionConfig, read_vision

# What transformers takes where there is no `vision_config` at all: CLIP's ViT-L/14 at 336 pixels.
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
NESTING = TextConfig({"model_type": "llama"})
DEFAULTS: Mapping[str, Any] = {  # of the classes
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
    "image_token_index": 32000,
}
HARMLESS = (  # `image_grid_pinpoints` is in EvoVLM-JP-v1's file, which is no LLaVA-NeXT's
    "ignore_index", "vocab_size", "use_image_newline_parameter", "image_seq_length", "image_grid_pinpoints",
    "image_token_index",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """What LLaVA adds to a decoder; hashable, a static jit argument."""

    vision: VisionConfig
    layers: tuple[int, ...]  # after how many of the tower's blocks features are taken; several stand side by side
    drop_first: bool  # strategy "default": the first token of a view is no feature, be it a class token or not
    width: int  # of the decoder
    act: str = "gelu"  # of the projector, as in `models.layers.ACTIVATIONS`
    bias: bool = True  # of the projector
    image_token: int = 32000
    pinpoints: tuple[Size, ...] = ()  # LLaVA-NeXT's; (): one view a picture

    @property
    def per_view(self) -> int:
        """How many features a view has."""
        return self.vision.positions - self.drop_first


def read_llava(f: Fields) -> tuple[LlavaConfig, Decoder]:
    """What a config.json of model_type `llava` or `llava_next` describes.

    Raises:
        InputError: for a part, a key or a value that is not supported, by name.
    """
    if f.get("mm_vision_tower") is not None:
        raise InputError(
            f"{f.where}: this is the layout of the first LLaVA code; take the model in the layout of transformers "
            "(llava-hf), or convert it with its convert_llava_weights_to_hf.py"
        )
    f.defaults = DEFAULTS
    tiled = f.text("model_type") == "llava_next"
    table = f.table("vision_config") or Fields(LARGE, f"{f.where}: vision_config")
    vision = read_vision(table, table.get("model_type") or "clip_vision_model")
    text = read_text(f, NESTING)
    f.expect("projector_hidden_act", *ACTIVATIONS)
    f.expect("vision_feature_select_strategy", "default", "full")
    config = LlavaConfig(
        vision=vision,
        layers=_layers(f, vision.num_hidden_layers),
        drop_first=f.text("vision_feature_select_strategy") == "default",
        width=text.config.hidden_size,
        act=ACTIVATIONS[f.text("projector_hidden_act")],
        bias=f.flag("multimodal_projector_bias"),
        image_token=f.integer("image_token_index" if f.get("image_token_id") is None else "image_token_id"),
        pinpoints=read_pinpoints(f) if tiled else (),
    )
    for key in HARMLESS:
        f.get(key)
    _check(config, f)
    return config, text


def _layers(f: Fields, depth: int) -> tuple[int, ...]:
    """`vision_feature_layer`: indices into the tower's hidden states, of which there is one before the first block."""
    given = f.get("vision_feature_layer")
    given = DEFAULTS["vision_feature_layer"] if given is None else given
    layers = given if isinstance(given, list) else [given]
    if not layers or not all(type(i) is int and -depth - 1 <= i <= depth for i in layers):
        raise InputError(f"{f.where}: `vision_feature_layer: {given}`: the tower has {depth} layers")
    return tuple(i % (depth + 1) for i in layers)


def _check(config: LlavaConfig, f: Fields) -> None:
    """Tiles are put together again from whole squares of patches."""
    if not config.pinpoints:
        return
    if config.per_view != config.vision.side**2:
        raise InputError(
            f"{f.where}: vision_feature_select_strategy: llava_next needs one feature for each of the "
            f"{config.vision.side**2} patches of a view, not {config.per_view}: `default` with CLIP, `full` with SigLIP"
        )
    if any(n % config.vision.image_size for pair in config.pinpoints for n in pair):
        raise InputError(
            f"{f.where}: image_grid_pinpoints must be multiples of the tower's image_size, {config.vision.image_size}"
        )
