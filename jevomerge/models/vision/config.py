"""Everything that decides the function a vision tower computes, and `vision_config` -> that."""

from __future__ import annotations

import dataclasses
from typing import Any

from jevomerge.errors import InputError
from jevomerge.models.fields import Fields

MOST_LAYERS = 10_000  # more are a slip of the pen
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What decides the function of a stack of CLIP's blocks, be it over patches or over words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str  # as in `models.layers.ACTIVATIONS`
    layer_norm_eps: float


@dataclasses.dataclass(frozen=True)
class VisionConfig(EncoderConfig):
    """A tower: a grid of patches through such a stack; hashable, a static jit argument."""

    image_size: int  # height and width of a view in pixels
    patch_size: int
    clip: bool  # CLIP: a class token before the patches, a norm before the blocks; SigLIP: a bias of the patches

    @property
    def side(self) -> int:
        """Patches along each side of a view; pixels that are left over are not looked at."""
        return self.image_size // self.patch_size

    @property
    def positions(self) -> int:
        """How many tokens a view is."""
        return self.side**2 + self.clip


# What transformers' classes take for keys that a `vision_config` leaves out, by its model_type.
_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_size": 224}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": _SIZES
    | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32},
    "siglip_vision_model": _SIZES | _SIGLIP | {"patch_size": 16},
    "idefics3_vision": _SIZES | _SIGLIP | {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32},
}


def read_vision(f: Fields, kind: str) -> VisionConfig:
    """A `vision_config`, which may leave out whatever its class knows; `kind` is its model_type.

    Raises:
        InputError: for a tower or a value that is not supported, by name.
    """
    if kind not in DEFAULTS:
        raise InputError(f"{f.where}: model_type `{kind}` is not supported (only {', '.join(DEFAULTS)})")
    f.defaults = DEFAULTS[kind]
    f.expect("num_channels", 3)
    config = VisionConfig(
        **encoder_sizes(f),
        image_size=_square(f, "image_size"),
        patch_size=_square(f, "patch_size"),
        clip=kind == "clip_vision_model",
    )
    if config.hidden_size % config.num_attention_heads:
        raise f.wrong("hidden_size", config.hidden_size, f"a multiple of the {config.num_attention_heads} heads")
    if not config.side:
        raise f.wrong("patch_size", config.patch_size, f"at most the image_size, {config.image_size}")
    return config


def encoder_sizes(f: Fields) -> dict[str, Any]:
    """What an `EncoderConfig` has, of a tower or of CLIP's text encoder."""
    f.expect("hidden_act", *ACTIVATIONS)
    return {
        "hidden_size": f.integer("hidden_size"),
        "intermediate_size": f.integer("intermediate_size"),
        "num_hidden_layers": f.integer("num_hidden_layers", MOST_LAYERS),
        "num_attention_heads": f.integer("num_attention_heads"),
        "hidden_act": ACTIVATIONS[f.text("hidden_act")],
        "layer_norm_eps": f.number("layer_norm_eps"),
    }


def _square(f: Fields, key: str) -> int:
    """A size, which may be written as height and width."""
    size = f.get(key)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return Fields({key: size[0]}, f.where).integer(key)
    return f.integer(key)
