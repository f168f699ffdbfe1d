"""CLIP: texts and pictures as vectors of one space (Radford et al., 2021).

Parameters, named and laid out as in checkpoints except for the stacks of blocks:

    {"text_model": ..., "text_projection": {"weight": (P, D)},       # see `models.clip.text`
     "vision_tower": ..., "visual_projection": {"weight": (P, D)},   # see `models.vision.tower`
     "logit_scale": ()}

Dimensions in comments: B batch, T tokens, S pixels along a side, P of the space.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from jevomerge.models.clip import text
from jevomerge.models.clip.config import TextConfig, text_config
from jevomerge.models.fields import Fields
from jevomerge.models.layers import Linear, Params
from jevomerge.models.specs import Axis, ParamSpec
from jevomerge.models.tree import Tree, sketched
from jevomerge.models.vision.config import VisionConfig, read_vision
from jevomerge.models.vision.specs import TOWER, tower_specs
from jevomerge.models.vision.tower import look, norm

PROJECTION, SCALE = "visual_projection", "logit_scale"


@dataclasses.dataclass(frozen=True)
class Clip:
    """Two towers that end in one space; hashable, a static jit argument."""

    text: TextConfig
    vision: VisionConfig

    tied = property(lambda self: dict[str, str]())

    @classmethod
    def read(cls, f: Fields) -> Clip:
        """What the config.json of a `CLIPModel` describes.

        Raises:
            InputError: for another model or a value that is not supported, by name.
        """
        f.defaults = {"projection_dim": 512}
        f.expect("model_type", "clip")
        f.get("logit_scale_init_value")
        # Where files have a `text_config_dict`, as old ones do, transformers looks at nothing else.
        words, pictures = (
            f.table(f"{part}_config_dict") or f.table(f"{part}_config") or Fields({}, f"{f.where}: {part}_config")
            for part in ("text", "vision")
        )
        return cls(text_config(words, f.integer("projection_dim")), read_vision(pictures, "clip_vision_model"))

    @property
    def width(self) -> int:
        """P."""
        return self.text.projection_dim

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of both towers."""
        return (*_text_specs(self.text), ParamSpec(SCALE, SCALE, (), (), role="other"), *self.eyes)

    @property
    def eyes(self) -> tuple[ParamSpec, ...]:
        """Of it what pictures need."""
        path = f"{PROJECTION}.weight"
        shape, axes = (self.width, self.vision.hidden_size), (Axis("projection"), Axis("embed"))
        return (*tower_specs(self.vision, "vision_model."), ParamSpec(path, path, shape, axes, role="other"))

    def of_texts(self, params: Params, tokens: Array) -> Array:
        """(B, T) int32 that end with an end of text, whatever comes behind -> (B, P) float32 of length 1."""
        tree = Tree(params)
        return unit(text.pooled(tree, self.text, tokens, text.read(tree, self.text, tokens, 0)[1]))

    def of_pictures(self, params: Params, pixels: Array) -> Array:
        """(B, 3, S, S) float32, as the processor of the model makes them -> (B, P) float32 of length 1."""
        hidden = look(params[TOWER], self.vision, pixels, [self.vision.num_hidden_layers])[0]
        first = norm(params[TOWER]["post_layernorm"], self.vision, hidden[:, 0])
        y: Any = Tree(params)(PROJECTION, Linear(self.width, ("projection", "embed")), first)
        return unit(y)


def unit(x: Array) -> Array:
    """(..., P) made as long as 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def _text_specs(config: TextConfig) -> tuple[ParamSpec, ...]:
    tokens = jnp.zeros((1, 1), jnp.int32)
    wanted = sketched(lambda tree: text.pooled(tree, config, tokens, text.read(tree, config, tokens, 0)[1]))
    return tuple(w.spec("text", {"vocab": config.vocab_size}) for w in wanted)
