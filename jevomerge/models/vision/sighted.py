"""A language model with its eyes as one: tower and projector can be merged, and a candidate has its own.

Its parameters are the decoder's and, beside them, those of the other parts, named as in `models.vision.specs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array

from jevomerge.models.layers import Params
from jevomerge.models.model import Language, Layer, Pictures, as_stored
from jevomerge.models.route import Route, Scaling
from jevomerge.models.specs import ParamSpec
from jevomerge.models.vision.seeing import ByViews
from jevomerge.models.vision.specs import TEXT

# What does not decide what tower and projector compute of a view: the text's, and which resolutions there are.
ELSEWHERE = ("text", "json", "names", "image_token", "pinpoints")


@dataclasses.dataclass(frozen=True)
class Sighted:
    """A `models.model.Language` that looks at pictures itself."""

    text: Language
    eyes: ByViews  # whose own language part is not looked at

    @property
    def eye_specs(self) -> tuple[ParamSpec, ...]:
        """The table of the parts beside the decoder, in no block of its scan: they are needed before it begins."""
        own = self.eyes.stored_as(()).specs  # type: ignore[attr-defined]
        return tuple(dataclasses.replace(s, block="") for s in own if not s.path.startswith(f"{TEXT}."))

    @property
    def depth(self) -> int:
        """How many blocks the tower has."""
        return max(s.leading[0] for s in self.eye_specs if s.stack)

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The table of all parts."""
        return tuple(sorted((*self.text.specs, *self.eye_specs), key=lambda s: s.path))

    @property
    def files(self) -> Mapping[str, Any]:
        """Those of the language part."""
        return self.text.files

    @property
    def tied(self) -> Mapping[str, str]:
        """As of the language part."""
        return self.text.tied

    @property
    def kinds(self) -> tuple[Hashable, ...]:
        """Those of the decoder's blocks."""
        return self.text.kinds

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.text.vocab_size

    @property
    def max_length(self) -> int | None:
        """As of the language part."""
        return self.text.max_length

    def unlike(self, other: Any) -> dict[str, bool]:
        """As of the language part."""
        return self.text.unlike(language_of(other))

    def seen_otherwise(self, other: Sighted) -> list[str]:
        """In what tower and projector differ."""
        tables = [[(s.path, s.leaf_shape) for s in model.eye_specs] for model in (self, other)]
        return _differing(self.eyes, other.eyes) or (["tensors"] if tables[0] != tables[1] else [])

    def resized(self, kinds: Sequence[Hashable] | None = None, vocab: int | None = None) -> Sighted:
        """With another decoder."""
        return dataclasses.replace(self, text=self.text.resized(kinds, vocab))

    def untied(self) -> Sighted:
        """With another decoder."""
        return dataclasses.replace(self, text=self.text.untied())

    def as_given(self, params: Params) -> Params:
        """The same."""
        return params

    def as_dict(self, tree: Params) -> Params:
        """The same."""
        return tree

    @property
    def unmerged(self) -> bool:
        """Its eyes multiply in ways of their own."""
        return False

    @property
    def follows(self) -> bool:
        """As of the language part."""
        return self.text.follows

    def embed(self, params: Params, tokens: Array, dtype: Any) -> Array:
        """As the decoder."""
        return self.text.embed(params, tokens, dtype)

    def hidden(
        self,
        params: Params,
        x: Array,
        valid: Array,
        cache: Any = None,
        *,
        after: Any = None,
        shift: Array | None = None,
        layer: Layer = as_stored,
        route: Route | None = None,
        scale: Scaling = "stream",
    ) -> tuple[Array, Any]:
        """As the decoder."""
        return self.text.hidden(
            params, x, valid, cache, after=after, shift=shift, layer=layer, route=route, scale=scale
        )

    def logits(self, params: Params, hidden: Array) -> Array:
        """As the decoder."""
        return self.text.logits(params, hidden)

    def cache(self, rows: int, slots: int, dtype: Any, route: Route | None = None) -> Any:
        """As the decoder."""
        return self.text.cache(rows, slots, dtype, route)

    def taken_apart(self, params: Params) -> tuple[Sighted, Params]:
        """As the decoder."""
        text, params = self.text.taken_apart(params)
        return dataclasses.replace(self, text=text), params

    def fold(self, route: Route, scale: Scaling = "stream") -> Any:
        """As the decoder."""
        return self.text.fold(route, scale)


@flax.struct.dataclass
class Unseen:
    """What stands in a batch of texts for pictures that the model has to look at itself, with the eyes it has."""

    pixels: Array  # (B, W, 3, S, S) float32 views of all pictures of each row; behind them anything
    order: Array  # (B, F) int32 which of what is seen in them are its features; see `ByViews.order`
    token: Array  # () int32, as of `Pictures`

    def seen(self, params: Params, model: Sighted, dtype: Any) -> Pictures:
        """The features in `dtype`."""
        rows, count = self.pixels.shape[:2]
        pixels = self.pixels.reshape(-1, *self.pixels.shape[2:])
        views, between = model.eyes.look(params, pixels.astype(dtype))
        views = views.reshape(rows, count * views.shape[1], -1)
        between = jnp.broadcast_to(between, (rows, *between.shape))
        all_seen = jnp.concatenate([views, between], axis=1)
        at = jnp.where(self.order < 0, self.order + all_seen.shape[1], self.order)
        return Pictures(jnp.take_along_axis(all_seen, at[..., None], axis=1), self.token)


def language_of(model: Any) -> Any:
    """The model without eyes."""
    return model.text if isinstance(model, Sighted) else model


def _differing(a: Any, b: Any) -> list[str]:
    """In which fields two values differ, those of values inside of them too: "vision.patch_size"."""
    if type(a) is not type(b):
        return ["model_type"]
    found = []
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in ELSEWHERE or x == y:
            continue
        inside = _differing(x, y) if dataclasses.is_dataclass(x) else [""]
        found += [f"{field.name}.{name}".removeprefix("config.").removesuffix(".") for name in inside]
    return found
