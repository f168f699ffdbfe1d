"""LLaVA as a model that sees: features of patches, projected into the embeddings of a decoder (Liu et al., 2023).

Parameters, named and laid out as in checkpoints except for the stacks of layers:

    {"text_model": ...,                          # the decoder's
     "vision_tower": ...,                        # see `models.vision.tower`
     "multi_modal_projector": {"linear_1": {"weight": (D, features), "bias": (D,)}, "linear_2": ...},
     "image_newline": (D,)}                      # LLaVA-NeXT
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.specs import param_specs
from jevomerge.models.fields import Fields
from jevomerge.models.layers import ACTIVATIONS, Linear, Params
from jevomerge.models.llava.config import LlavaConfig, read_llava
from jevomerge.models.llava.tiling import Tiling, TilingProcessor, read_llava_next, tiling
from jevomerge.models.specs import Axis, ParamSpec
from jevomerge.models.vision import processor as processors
from jevomerge.models.vision.processor import Processor
from jevomerge.models.vision.seeing import ByViews, Views
from jevomerge.models.vision.specs import TOWER, Names, module_specs, text_specs, tower_specs
from jevomerge.models.vision.tower import look

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECTOR, NEWLINE = "multi_modal_projector", "image_newline"
PROCESSORS = {  # by which processor files such models may come with
    "CLIP": processors.read_clip,
    "Siglip": processors.read_siglip,
    "Llava": processors.read_llava,
}
TILING_PROCESSORS = {"LlavaNext": read_llava_next}


def names_in(names: Iterable[str]) -> Names:
    """What a file that holds these tensors calls the parts.

    Transformers saved `language_model.model.*` and `language_model.lm_head` until 4.51, models of 4.52 to 5 have
    `model.language_model.*` and `lm_head`; the tower lost its `vision_model` in 5. All four layouts are about.
    """
    names = list(names)
    nested = any(name.startswith("model.") for name in names)
    wrapped = any("vision_tower.vision_model." in name for name in names)
    root, tower = "model." if nested else "", "vision_tower.vision_model." if wrapped else "vision_tower."
    return Names(
        text="model.language_model." if nested else "language_model.model.",
        head="" if nested else "language_model.",
        tower=root + tower,
        rest=root,
    )


class Projector(nn.Module):
    """Two linear maps with an activation between."""

    config: LlavaConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., features) -> (..., D)."""
        c = self.config
        x = ACTIVATIONS[c.act](Linear(c.width, ("embed", "features"), c.bias, name="linear_1")(x))
        return Linear(c.width, ("embed", "embed"), c.bias, name="linear_2")(x)


@functools.cache
def _table(config: LlavaConfig, text: DecoderConfig, names: Names) -> tuple[ParamSpec, ...]:
    """The parameter table of all parts, sorted by path."""

    def projector() -> Params:
        x = jnp.zeros((1, len(config.layers) * config.vision.hidden_size))
        params: Any = Projector(config).init(jax.random.key(0), x)["params"]
        return params

    found = [
        *text_specs(param_specs(text), names),
        *tower_specs(config.vision, names.tower),
        *module_specs(projector, PROJECTOR, f"{names.rest}{PROJECTOR}.", "projector", {}),
    ]
    if config.pinpoints:
        shape, axes = (config.width,), (Axis("embed"),)
        found += [ParamSpec(NEWLINE, names.rest + NEWLINE, shape, axes, role="other", component="projector")]
    return tuple(sorted(found, key=lambda s: s.path))


@dataclasses.dataclass(frozen=True)
class Llava(ByViews):
    """LLaVA-1.5 or LLaVA-NeXT as a `models.vision.seeing.Seeing`."""

    config: LlavaConfig
    text: Decoder
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # its config.json
    names: Names = dataclasses.field(default_factory=lambda: names_in(()), compare=False)

    @classmethod
    def read(cls, fields: Fields) -> Llava:
        """What a config.json describes; see `read_llava`."""
        config, text = read_llava(fields)
        return cls(config, text, fields.values)

    @property
    def image_token(self) -> int:
        """The token that stands for one feature of a picture."""
        return self.config.image_token

    @property
    def unseen(self) -> Mapping[int, str]:
        """No other tokens."""
        return {}

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of all parts."""
        return _table(self.config, self.text.config, self.names)

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json."""
        return {"config.json": self.json}

    def stored_as(self, names: Iterable[str]) -> Llava:
        """The same model, its parts called as in a file that holds tensors of these names."""
        return dataclasses.replace(self, names=names_in(names))

    def processor(self, values: Mapping[str, Any], where: str = "preprocessor_config.json") -> Processor:
        """What a preprocessor_config.json describes, or the same within a processor_config.json.

        Raises:
            InputError: for what is not supported, and for views that this model cannot look at.
        """
        c = self.config
        found = processors.read_processor(values, TILING_PROCESSORS if c.pinpoints else PROCESSORS, where)
        size = c.vision.image_size
        if found.view_size != (size, size):
            made = "of every shape" if found.view_size is None else f"of {found.view_size[0]} x {found.view_size[1]}"
            raise InputError(f"{where}: makes views {made}, the model's tower takes {size} x {size}")
        if isinstance(found, TilingProcessor) and (found.pinpoints != c.pinpoints or found.tile != size):
            raise InputError(f"{where}: image_grid_pinpoints are not those of the model's config.json")
        return found

    def views(self, picture: Image, processor: Processor, name: str = "a picture") -> Views:
        """What the tower looks at of an RGB picture, which error messages call `name`."""
        c, size = self.config, (picture.height, picture.width)
        layout = tiling(size, c.pinpoints, c.vision.image_size, c.vision.side) if c.pinpoints else None
        return Views(processor.views(picture, name), layout)

    def placeholder(self, layout: Hashable, token: str) -> str:
        """What stands in a text for a picture: `token`, which is `image_token` in words, once per feature."""
        return token * (layout.tokens(self.config.vision.side) if isinstance(layout, Tiling) else self.config.per_view)

    def shifts(self, layouts: Sequence[Hashable]) -> None:
        """None: features are turned as tokens in their place."""

    def look(self, params: Params, pixels: Array) -> tuple[Array, Array]:
        """(V, 3, S, S) in the dtype of the activations -> (V, P, D), and LLaVA-NeXT's newline as (1, D)."""
        c = self.config
        seen = jnp.concatenate(look(params[TOWER], c.vision, pixels, c.layers), axis=-1)
        x: Any = Projector(c).apply({"params": params[PROJECTOR]}, seen[:, int(c.drop_first) :])
        return x, params[NEWLINE][None].astype(x.dtype) if c.pinpoints else x[0, :0]

    def order(self, layout: Hashable, first: int = 0) -> np.ndarray:
        """(N,): a view's, or the whole's, then the tiles' as one picture, a newline behind each of its rows."""
        views = layout.grid[0] * layout.grid[1] + 1 if isinstance(layout, Tiling) else 1
        index = np.arange(first, first + views)[:, None] * self.config.per_view + np.arange(self.config.per_view)
        if not isinstance(layout, Tiling):
            return index[0]
        (rows, columns), side = layout.grid, self.config.vision.side
        whole = index[1:].reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
        top, left = ((has - kept) // 2 for has, kept in zip(whole.shape, layout.kept, strict=True))
        whole = whole[top : top + layout.kept[0], left : left + layout.kept[1]]
        return np.concatenate([index[0], np.pad(whole, ((0, 0), (0, 1)), constant_values=-1).reshape(-1)])
