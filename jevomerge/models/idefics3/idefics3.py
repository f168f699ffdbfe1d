"""Idefics3 and SmolVLM as models that see (Laurençon et al., 2024; Marafioti et al., 2025).

Parameters, named and laid out as in checkpoints except for the stacks of layers:

    {"text_model": ...,                          # the decoder's
     "vision_tower": ...,                        # see `models.vision.tower`
     "connector": {"modality_projection": {"proj": {"weight": (D, features)}}}}

Transformers finds the rows of the position table from fractions of a side, in float32. For the sides of the released
models (26, 27 and 32 patches) that gives rows in their plain order, as here; for some others its rounding puts a few
patches one row off, which ones depends on the processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import InputError
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.decoder.nested import TextConfig, read_text
from jevomerge.models.fields import Fields
from jevomerge.models.idefics3.splitting import SplittingProcessor, read_idefics3, text_of
from jevomerge.models.layers import Params
from jevomerge.models.specs import Axis, ParamSpec
from jevomerge.models.vision.config import VisionConfig, read_vision
from jevomerge.models.vision.processor import Processor, read_processor
from jevomerge.models.vision.seeing import ByViews, Views
from jevomerge.models.vision.specs import TOWER, Names, text_specs, tower_specs
from jevomerge.models.vision.tower import look, norm

if TYPE_CHECKING:
    from PIL.Image import Image

CONNECTOR = "connector"
NAMES = Names(text="model.text_model.", head="", tower="model.vision_model.", rest="model.")  # in all files
NESTING = TextConfig({"model_type": "llama", "rms_norm_eps": 1e-5})
PROCESSORS = {"Idefics3": read_idefics3, "SmolVLM": read_idefics3}


@dataclasses.dataclass(frozen=True)
class Idefics3(ByViews):
    """Idefics3 or SmolVLM as a `models.vision.seeing.Seeing`."""

    vision: VisionConfig
    text: Decoder
    image_token: int
    fold: int  # so many patches along each side become one feature
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # its config.json

    @classmethod
    def read(cls, f: Fields) -> Idefics3:
        """What a config.json of model_type `idefics3` or `smolvlm` describes.

        Raises:
            InputError: for a part, a key or a value that is not supported, by name.
        """
        f.defaults = {"scale_factor": 2, "image_token_id": 128257}
        f.get("vocab_size")  # of the text
        text = read_text(f, NESTING)
        vision = f.table("vision_config") or Fields({}, f"{f.where}: vision_config")
        tower, fold = read_vision(vision, "idefics3_vision"), f.integer("scale_factor")
        if tower.side % fold:
            raise InputError(f"{f.where}: `scale_factor: {fold}` does not divide the {tower.side} patches of a side")
        return cls(tower, text, f.integer("image_token_id"), fold, f.values)

    @property
    def unseen(self) -> Mapping[int, str]:
        """No other tokens."""
        return {}

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of all parts."""
        name = f"{CONNECTOR}.modality_projection.proj.weight"
        shape = (self.text.config.hidden_size, self.vision.hidden_size * self.fold**2)
        axes = (Axis("embed"), Axis("features"))
        connector = ParamSpec(name, NAMES.rest + name, shape, axes, role="other", component="projector")
        found = [*text_specs(self.text.specs, NAMES), *tower_specs(self.vision, NAMES.tower), connector]
        return tuple(sorted(found, key=lambda s: s.path))

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json."""
        return {"config.json": self.json}

    def stored_as(self, names: Iterable[str]) -> Idefics3:
        """The same: there is but one layout."""
        return self

    def processor(self, values: Mapping[str, Any], where: str = "preprocessor_config.json") -> Processor:
        """What a preprocessor_config.json describes, or the same within a processor_config.json.

        Raises:
            InputError: for what is not supported, and for views that this model cannot look at.
        """
        found, size = read_processor(values, PROCESSORS, where), self.vision.image_size
        if found.view_size != (size, size):
            raise InputError(f"{where}: max_image_size is not the image_size of the model's tower, {size}")
        return found

    def views(self, picture: Image, processor: Processor, name: str = "a picture") -> Views:
        """What the tower looks at of an RGB picture, which error messages call `name`."""
        assert isinstance(processor, SplittingProcessor)
        return Views(processor.views(picture, name), processor.grid(picture.size))

    def placeholder(self, layout: Any, token: str) -> str:
        """What stands in a text for a picture: `token`, which is `image_token` in words, once per feature."""
        return text_of(layout, token * self.per_view)

    def shifts(self, layouts: Sequence[Hashable]) -> None:
        """None: features are turned as tokens in their place."""

    @property
    def per_view(self) -> int:
        """How many features a view has."""
        return (self.vision.side // self.fold) ** 2

    def look(self, params: Params, pixels: Array) -> tuple[Array, Array]:
        """(V, 3, S, S) in the dtype of the activations -> (V, P, D), and nothing else."""
        (x,) = look(params[TOWER], self.vision, pixels, (self.vision.num_hidden_layers,))
        x = folded(norm(params[TOWER]["post_layernorm"], self.vision, x), self.fold)
        weight = params[CONNECTOR]["modality_projection"]["proj"]["weight"]
        x = jnp.einsum("vni,oi->vno", x, weight.astype(x.dtype))
        return x, x[0, :0]

    def order(self, layout: Any, first: int = 0) -> np.ndarray:
        """(N,): view by view, for only words tell them apart."""
        return first * self.per_view + np.arange((layout[0] * layout[1] + 1) * self.per_view)


def folded(x: Array, fold: int) -> Array:
    """(V, side * side, D) -> (V, P, fold * fold * D): squares of patches side by side, row by row (pixel shuffle)."""
    side, width = round(x.shape[1] ** 0.5), x.shape[-1]
    x = x.reshape(-1, side // fold, fold, side // fold, fold, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), -1, fold * fold * width)
