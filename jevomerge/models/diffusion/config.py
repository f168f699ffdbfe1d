"""The config.json of each part of a pipeline -> everything that decides the function it computes.

Fields are called as in the files, so that messages name what a user finds there. What files leave out is what the
classes of diffusers and transformers take for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jevomerge.models.fields import Fields, shown
from jevomerge.models.vision.config import MOST_LAYERS


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A U-Net whose blocks see a text; hashable, a static jit argument. Tuples have an entry for each block down."""

    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]  # up it is one more
    transformer_layers_per_block: tuple[int, ...]
    attention_head_dim: tuple[int, ...]  # how many heads there are, whatever its name says
    cross_attention_dim: int  # of the text's context
    use_linear_projection: bool  # around transformers; else convolutions of 1 x 1, the same function
    norm_num_groups: int
    norm_eps: float
    flip_sin_to_cos: bool
    freq_shift: int
    time_embedding_dim: int
    addition_time_embed_dim: int | None  # of each of SDXL's numbers about sizes; None: the U-Net is told nothing
    projection_class_embeddings_input_dim: int  # of these together with the pooled text; 0 without
    sample_size: int | None = dataclasses.field(default=None, compare=False)  # of latents, where nobody says otherwise


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """An autoencoder between pictures and latents; hashable, a static jit argument."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int  # in the decoder one more
    norm_num_groups: int
    scaling_factor: float  # what latents are multiplied by before a U-Net sees them
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    force_upcast: bool  # activations that float16 cannot hold

    @property
    def scale(self) -> int:
        """How many pixels a latent is along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


UNET: Mapping[str, Any] = {  # of the class, as are the others
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}
VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "force_upcast": True,
}
# Options of the classes by the one value that is implemented; None: off.
ONLY_UNET: Mapping[str, Any] = {
    "center_input_sample": False, "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu",
    "only_cross_attention": False, "mid_block_only_cross_attention": False, "dual_cross_attention": False,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "num_attention_heads": None, "class_embed_type": None,
    "num_class_embeds": None, "class_embeddings_concat": False, "addition_embed_type": "text_time",
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional", "time_embedding_act_fn": None, "timestep_post_act": None,
    "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
    "cross_attention_norm": None,
}  # fmt: skip
ONLY_VAE: Mapping[str, Any] = {
    "act_fn": "silu", "shift_factor": None, "use_quant_conv": True, "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}  # fmt: skip
# Keys that change nothing here: scores are in float32 anyhow, no heads are added, images have any size.
INERT = ("upcast_attention", "addition_embed_type_num_heads", "sample_size")


def read_unet(f: Fields) -> UNetConfig:
    """A `UNet2DConditionModel` as in Stable Diffusion 1.5, 2 and XL.

    Raises:
        InputError: for an option or a value that is not supported, by name.
    """
    f.defaults = UNET
    _expect(f, "UNet2DConditionModel", ONLY_UNET)
    down, up = f.texts("down_block_types") or [], f.texts("up_block_types") or []
    for key, types, whole in (("down_block_types", down, "DownBlock2D"), ("up_block_types", up, "UpBlock2D")):
        if unknown := [t for t in types if t not in (whole, f"CrossAttn{whole}")]:
            raise f.wrong(key, unknown[0], f"{whole} or CrossAttn{whole}")
    if len(down) != len(up) or not down:
        raise f.wrong("up_block_types", up, f"as many as down_block_types, {len(down)}")
    blocks = len(down)
    channels = _each(f, "block_out_channels", blocks)
    added = f.get("addition_embed_type") is not None
    config = UNetConfig(
        in_channels=f.integer("in_channels"),
        out_channels=f.integer("out_channels"),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=channels,
        layers_per_block=_each(f, "layers_per_block", blocks),
        transformer_layers_per_block=_each(f, "transformer_layers_per_block", blocks),
        attention_head_dim=_each(f, "attention_head_dim", blocks),
        cross_attention_dim=f.integer("cross_attention_dim"),
        use_linear_projection=f.flag("use_linear_projection"),
        norm_num_groups=f.integer("norm_num_groups"),
        norm_eps=f.number("norm_eps"),
        flip_sin_to_cos=f.flag("flip_sin_to_cos"),
        freq_shift=_shift(f),
        time_embedding_dim=f.integer("time_embedding_dim") if f.get("time_embedding_dim") else 4 * channels[0],
        addition_time_embed_dim=f.integer("addition_time_embed_dim") if added else None,
        projection_class_embeddings_input_dim=f.integer("projection_class_embeddings_input_dim") if added else 0,
        sample_size=size if type(size := f.get("sample_size")) is int else None,
    )
    _divides(f, "norm_num_groups", config.norm_num_groups, channels)
    for heads, width in zip(config.attention_head_dim, channels, strict=True):
        _divides(f, "attention_head_dim", heads, (width,))
    return config


def read_vae(f: Fields) -> VaeConfig:
    """An `AutoencoderKL` as in Stable Diffusion 1.5, 2 and XL.

    Raises:
        InputError: for an option or a value that is not supported, by name.
    """
    f.defaults = VAE
    _expect(f, "AutoencoderKL", ONLY_VAE)
    types = f.texts("down_block_types") or []
    channels = _each(f, "block_out_channels", len(types))
    for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if f.texts(key) != [known] * len(types):
            raise f.wrong(key, f.get(key), f"{known}, once for each of block_out_channels")
    config = VaeConfig(
        in_channels=f.integer("in_channels"),
        out_channels=f.integer("out_channels"),
        latent_channels=f.integer("latent_channels"),
        block_out_channels=channels,
        layers_per_block=f.integer("layers_per_block", MOST_LAYERS),
        norm_num_groups=f.integer("norm_num_groups"),
        scaling_factor=f.number("scaling_factor"),
        latents_mean=_numbers(f, "latents_mean"),
        latents_std=_numbers(f, "latents_std"),
        force_upcast=f.flag("force_upcast"),
    )
    _divides(f, "norm_num_groups", config.norm_num_groups, channels)
    return config


def _expect(f: Fields, name: str, only: Mapping[str, Any]) -> None:
    """Refuse other classes, other values of options than the one implemented, and null for a value: it means none."""
    f.expect("_class_name", name)
    for key, value in f.values.items():
        if value is None and f.defaults.get(key) is not None:
            raise f.wrong(key, "null", f"a value, as {shown(f.defaults[key])}")
    for key, allowed in only.items():
        f.expect(key, *([] if allowed is None else [allowed]))
    for key in INERT:
        f.get(key)


def _each(f: Fields, key: str, blocks: int) -> tuple[int, ...]:
    """A whole number for each block; one alone is that of all."""
    given = f.get(key)
    given = given if isinstance(given, list) else [given] * blocks
    if len(given) != blocks or not all(type(n) is int and 1 <= n <= 1_000_000 for n in given):
        raise f.wrong(key, f.get(key), f"a whole number, or {blocks} of them, one for each block")
    return tuple(given)


def _numbers(f: Fields, key: str) -> tuple[float, ...] | None:
    given = f.get(key)
    if given is None:
        return None
    ok = isinstance(given, list) and all(type(n) in (int, float) and math.isfinite(n) for n in given)
    if not ok or len(given) != f.integer("latent_channels"):
        raise f.wrong(key, given, "a number for each of latent_channels")
    return tuple(map(float, given))


def _shift(f: Fields) -> int:
    if (shift := f.get("freq_shift")) not in (0, 1):
        raise f.wrong("freq_shift", shift, "0 or 1")
    return int(shift)


def _divides(f: Fields, key: str, number: int, widths: tuple[int, ...]) -> None:
    if uneven := [width for width in widths if width % number]:
        raise f.wrong(key, number, f"a divisor of {uneven[0]} channels")
