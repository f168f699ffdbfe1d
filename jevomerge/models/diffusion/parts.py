"""The parts of a pipeline, each a folder of its own: what its config.json says, and its table of tensors.

    config = read_config("unet", json, "unet/config.json")
    shapes(config)                                      # {"conv_in.weight": (320, 4, 3, 3), ...}, as its file has them

In the table of a pipeline the names begin with the part's; see `models.diffusion.pipeline`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jevomerge.models.clip import text
from jevomerge.models.clip.config import TextConfig, read_text
from jevomerge.models.diffusion import vae
from jevomerge.models.diffusion.config import UNetConfig, VaeConfig, read_unet, read_vae
from jevomerge.models.diffusion.unet import Condition, denoise
from jevomerge.models.fields import Fields
from jevomerge.models.specs import Axis, ParamSpec, tensor_names
from jevomerge.models.tree import Sketch, sketched
from jevomerge.schema import Notes

Config = UNetConfig | VaeConfig | TextConfig
PARTS: dict[str, Callable[[Fields], Config]] = {  # by folder
    "unet": read_unet,
    "text_encoder": read_text,
    "text_encoder_2": read_text,
    "vae": read_vae,
}
# What genes are grouped by: the first that stands in a tensor's name.
COMPONENTS = {
    r"norm": "norms",
    r"\battn1\b": "self_attention",
    r"\battn2\b": "cross_attention",
    r"\battentions\b.*\bto_|self_attn": "attention",
    r"\bff\b|\bmlp\b": "mlp",
    r"embedding|time_emb": "embeddings",
    r"text_projection": "projection",
}
OTHERWISE = "conv"  # also of the linear maps around transformers, which in other models are convolutions


def read_config(part: str, values: Mapping[str, Any], where: str, notes: Notes | None = None) -> Config:
    """What the config.json of a part says; `where` names it in messages, keys that nobody reads go to `notes`.

    Raises:
        InputError: for a class, an option or a value that is not supported, by name.
    """
    fields = Fields(values, where)
    config = PARTS[part](fields)
    note_unread(fields, notes)
    return config


def note_unread(fields: Fields, notes: Notes | None) -> None:
    """A note of the keys that nobody asked for."""
    if notes is not None and (unread := fields.unread()):
        notes.add(f"{fields.where}: {', '.join(unread)}: not known; ignored")


@functools.cache
def specs(config: Config) -> tuple[ParamSpec, ...]:
    """The parameter table of a part, sorted by path, names as in its own file."""
    parts = {"vocab": config.vocab_size} if isinstance(config, TextConfig) else {}
    found = tuple(
        wanted.spec(next((what for word, what in COMPONENTS.items() if re.search(word, wanted.path)), OTHERWISE), parts)
        for wanted in sketched(lambda sketch: _pass(sketch, config))
    )
    return tuple(map(_cut, found)) if isinstance(config, UNetConfig) else found


def _cut(spec: ParamSpec) -> ParamSpec:
    """The same, split over the devices of a member by what it makes: a matrix by rows, a convolution by filters."""
    first, *others = spec.axes
    return dataclasses.replace(spec, axes=(Axis(first.name, spec.shape[0]), *others))


def _pass(sketch: Sketch, config: Config) -> None:
    """The smallest inputs through all of a part."""
    if isinstance(config, UNetConfig):
        side = 2 ** len(config.block_out_channels)
        pooled = config.projection_class_embeddings_input_dim - (config.addition_time_embed_dim or 0)
        told = Condition(jnp.zeros((1, 1, config.cross_attention_dim)), jnp.zeros((1, pooled)), jnp.zeros((1, 1)))
        denoise(sketch, config, jnp.zeros((1, side, side, config.in_channels)), jnp.zeros(()), told)
    elif isinstance(config, VaeConfig):
        vae.encode(sketch, config, jnp.zeros((1, config.scale, config.scale, config.in_channels)))
        vae.decode(sketch, config, jnp.zeros((1, 1, 1, config.latent_channels)))
    else:
        tokens = jnp.zeros((1, 1), jnp.int32)
        last = text.normed(sketch, config, text.read(sketch, config, tokens, 0)[1])
        if config.projection_dim:
            text.pooled(sketch, config, tokens, last)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{name of a tensor, as in the file of its part: shape}."""
    return {name: spec.shape for name, spec, _ in tensor_names(specs(config))}
