"""What everybody may know of a model that sees: a decoder, and what turns a picture into embeddings for it.

    processor = model.processor(preprocessor_config_json)
    views = model.views(open_picture(content, name), processor)     # once per picture, on the host
    text = prompt.replace("<image>", model.placeholder(views.layout, "<image>"))
    seen = features(params, model, views.pixels, views.layout)      # (N, D), once per picture
    pictures = Pictures(seen_of_each_row, model.image_token, model.shifts(layouts_of_each_row))
    apply(params["text_model"], model.text, tokens, valid, pictures=pictures)

V views, S pixels along a side, N features of a picture, D hidden.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.layers import Params
from jevomerge.models.specs import ParamSpec
from jevomerge.models.vision.processor import Processor


class Views(NamedTuple):
    """A picture as a tower looks at it."""

    pixels: np.ndarray  # (V, 3, S, S) float32
    layout: Hashable  # what of its size decides how many features it has; a static argument


class Seeing(Protocol):
    """A decoder, a tower and what joins them; a hashable value as `models.model.Model` is."""

    @property
    def text(self) -> Decoder:
        """Its language part, whose parameters hang under `text_model`."""

    @property
    def image_token(self) -> int:
        """The token that stands for one feature of a picture."""

    @property
    def unseen(self) -> Mapping[int, str]:
        """{token that stands for something else which is not looked at: what that is}."""

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table of all parts, sorted by path, names as in `stored_as`."""

    @property
    def files(self) -> Mapping[str, Any]:
        """Its config.json."""

    def stored_as(self, names: Iterable[str]) -> Self:
        """The same model, its parts called as in a file that holds tensors of these names."""

    def processor(self, values: Mapping[str, Any], where: str = ...) -> Processor:
        """What a preprocessor_config.json describes; InputError if this model cannot look at what it makes."""

    def views(self, picture: Any, processor: Processor, name: str = ...) -> Views:
        """What the tower looks at of an RGB picture, which error messages call `name`."""

    def placeholder(self, layout: Hashable, token: str) -> str:
        """What stands in a text for a picture: `token`, which is `image_token` in words, once per feature."""

    def shifts(self, layouts: Sequence[Hashable]) -> np.ndarray | None:
        """(F, H/2) int32, how much further the features of a text's pictures are turned than tokens in their place.

        As `models.model.Pictures` has it. None: they are turned as tokens are.
        """

    def features(self, params: Params, pixels: Array, layout: Hashable) -> Array:
        """(V, 3, S, S) in the dtype of the activations -> (N, D)."""


class ByViews(abc.ABC):
    """What looks at each view by itself: the features of a picture are then but chosen among what is seen in its views.

    So pictures that are laid out differently go through one compiled program.
    """

    @abc.abstractmethod
    def look(self, params: Params, pixels: Array) -> tuple[Array, Array]:
        """(V, 3, S, S) in the dtype of the activations -> (V, P, D) seen in each view, (E, D) that stands between."""

    @abc.abstractmethod
    def order(self, layout: Hashable, first: int = 0) -> np.ndarray:
        """(N,) which of the V * P rows are a picture's features, whose views begin at `first`; from -E on: the E."""

    def features(self, params: Params, pixels: Array, layout: Hashable) -> Array:
        """(V, 3, S, S) in the dtype of the activations -> (N, D)."""
        views, between = self.look(params, pixels)
        return jnp.concatenate([views.reshape(-1, views.shape[-1]), between])[self.order(layout)]


@functools.partial(jax.jit, static_argnames=("model", "layout", "dtype"))
def features(params: Params, model: Seeing, pixels: Array, layout: Hashable, dtype: Any = jnp.float32) -> Array:
    """What a picture's views (V, 3, S, S) are to the decoder: (N, D) in `dtype`; compiled once per layout.

    Of `params` only the parts beside the decoder are read: without a gene in them, once per picture is enough.
    """
    return model.features(params, pixels.astype(dtype), layout)
