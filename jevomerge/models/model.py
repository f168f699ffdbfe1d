"""What everybody may know of a model: its parameter table, and the pure functions that rollouts need.

A family (a folder beside this file) gives one value of one of these protocols. Values are hashable, static arguments of
jitted functions: two that are equal compute the same function of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jevomerge.devices.mesh import moved
from jevomerge.models.layers import Params
from jevomerge.models.route import Route, Scaling
from jevomerge.models.specs import ParamSpec

# (Where a stack of blocks hangs, one element of the stack) -> that block's parameters.
Layer = Callable[[str, Any], Params]


def as_stored(block: str, params: Any) -> Params:
    """The `layer` of a model that needs no merging; what waits in the memory of the host comes to the device."""
    del block
    return jax.tree.map(moved, params)


class Model(Protocol):
    """Whatever can be merged."""

    @property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The parameter table, sorted by path."""

    @property
    def files(self) -> Mapping[str, Any]:
        """{file name: JSON object} of an exported model, beside weights and tokenizer."""

    @property
    def tied(self) -> Mapping[str, str]:
        """{tensor that may be stored although it is another one: that other one}."""

    @property
    def kinds(self) -> tuple[Hashable, ...]:
        """Of what kind each block of its stack is; blocks of one kind compute the same function. () without a stack."""

    def unlike(self, other: Model) -> dict[str, bool]:
        """{what of the function they compute differs: whether they may be merged all the same, with a note}.

        Which kinds of blocks they have, in which order, and how many tokens they know is not looked at.
        """

    def resized(self, kinds: Sequence[Hashable] | None = None, vocab: int | None = None) -> Self:
        """The same model with blocks of these kinds, with a vocabulary of this size."""

    def untied(self) -> Self:
        """The same model with a tensor of its own for each that is another one (`tied`)."""

    def as_given(self, params: Params) -> Any:
        """Nested dictionaries -> the parameters in the form in which their owner has them."""

    def as_dict(self, tree: Any) -> Params:
        """The inverse."""


class Stackless:
    """What a model says that is nested dictionaries without a stack to resize, a vocabulary or tied tensors."""

    tied = property(lambda self: dict[str, str]())
    kinds = property(lambda self: ())

    def resized(self, kinds: Sequence[Hashable] | None = None, vocab: int | None = None) -> Self:
        """The same."""
        return self

    def untied(self) -> Self:
        """The same."""
        return self

    def as_given(self, params: Params) -> Any:
        """The same."""
        return params

    def as_dict(self, tree: Any) -> Params:
        """The same."""
        found: Params = tree
        return found


class Language(Model, Protocol):
    """What likelihood and generation need. B rows, T new tokens, D hidden, V vocabulary."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def max_length(self) -> int | None:
        """How many tokens a text may have; None: not known."""

    @property
    def unmerged(self) -> bool:
        """Whether matrices among its parameters may be `models.members.Unmerged`."""

    @property
    def follows(self) -> bool:
        """Whether rows may go on `after` what one row has read (`hidden`), with padding between."""

    def embed(self, params: Params, tokens: Array, dtype: Any) -> Array:
        """(B, T) int32 -> (B, T, D) in `dtype`."""

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
        """(B, T, D) embeddings, (B, T) which are no padding -> (B, T, D) after the last norm, and the cache.

        `after`: the cache of one row, which all rows follow. `shift`: `Pictures.shift`.
        """

    def logits(self, params: Params, hidden: Array) -> Array:
        """(..., D) -> (..., V) float32."""

    def cache(self, rows: int, slots: int, dtype: Any, route: Route | None = None) -> Any:
        """An empty cache with room for `slots` tokens per row, for `hidden` with this route or none.

        It has `length`, `of_rows` and `joined`, as `models.decoder.decoder.Cache` has.
        """

    def taken_apart(self, params: Params) -> tuple[Self, Params]:
        """The same function without a stack that a scan leads through, for many passes that no route leads.

        It is slower to compile, and faster where reading a block of a stack means copying it.
        """

    def fold(self, route: Route, scale: Scaling = "stream") -> Any:
        """What makes an ordinary model of a concrete route; see `models.decoder.fold.Folding`."""


class Denoiser(Model, Protocol):
    """What drawing pictures of texts needs. B pictures, h rows and w columns of latents with C channels."""

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, C) of a picture; InputError for a size that it cannot have."""

    def condition(self, params: Params, tokens: Sequence[Array], sizes: Array | None, dtype: Any) -> Any:
        """What `denoise` is told of texts and of the sizes of their pictures, a pytree with B rows."""

    def denoise(self, params: Params, x: Array, t: Array, told: Any) -> Array:
        """(B, h, w, C) at time step t -> what a scheduler makes the next x of, in the dtype of x."""

    def decode(self, params: Params, x: Array) -> Array:
        """(B, h, w, C) without noise -> (B, height, width, 3) float32, colours from 0 to 1."""


@flax.struct.dataclass
class Pictures:
    """What stands in a batch of texts for the embeddings of one token: the features of the pictures of each row."""

    features: Array  # (B, F, D), those of all its pictures in their order; behind them anything
    token: Array  # () int32, of which a row has as many as features
    shifts: Array | None = None  # (B, F, H/2) int32, for models to which pictures are no lines of tokens: see `shift`

    def place(self, x: Array, tokens: Array) -> Array:
        """(B, T, D) embeddings of (B, T) tokens, those that are `token` replaced in order; NaN where F is too few."""
        here, count = self._found(tokens)
        return jnp.where(here[..., None], _at(self.features, count).astype(x.dtype), x)

    def shift(self, tokens: Array) -> Array | None:
        """(B, T, H/2) how much further each token is turned than in a text of these (B, T) tokens, pair by pair.

        What follows a feature is turned as much further as the pair of it that is turned most: with Qwen's positions
        a text goes on behind the largest one of a picture (M-RoPE; Wang et al., 2024).
        """
        if self.shifts is None:
            return None
        here, count = self._found(tokens)
        found = jnp.where((count > 0)[..., None], _at(self.shifts, count), 0)
        return jnp.where(here[..., None], found, jnp.max(found, axis=-1, keepdims=True))

    def _found(self, tokens: Array) -> tuple[Array, Array]:
        """(B, T) which tokens stand for a feature, and how many do up to each."""
        here = tokens == self.token
        return here, jnp.cumsum(here, axis=1, dtype=jnp.int32)

    def seen(self, params: Params, model: Any, dtype: Any) -> Pictures:
        """The same: they have been looked at."""
        return self


def _at(rows: Array, count: Array) -> Array:
    """(B, F, N), (B, T) -> (B, T, N): of each row the element with that number, the first being 1."""
    return jnp.take_along_axis(rows, jnp.maximum(count - 1, 0)[..., None], axis=1)


class Shown(Protocol):
    """Pictures in a batch of texts: features (`Pictures`), or what the model has yet to look at."""

    def seen(self, params: Params, model: Any, dtype: Any) -> Pictures:
        """Their features in `dtype`, for a model with these parameters."""


def apply(
    params: Params,
    model: Language,
    tokens: Array,
    valid: Array,
    cache: Any = None,
    *,
    after: Any = None,
    pictures: Shown | None = None,
    layer: Layer = as_stored,
    route: Route | None = None,
    scale: Scaling = "stream",
    dtype: Any = jnp.float32,
) -> tuple[Array, Any]:
    """Run a model over new tokens (B, T) int32, of which those `valid` (B, T) are no padding.

    `after` is the cache of one row, which all rows follow. `pictures` are those of all tokens given here: a prompt is
    not cut between them, what comes before and after has none.

    Returns:
        (B, T, D) final hidden states in `dtype`, which `unembed` turns into logits, and the cache.
    """
    x, shift = model.embed(params, tokens, dtype), None
    if pictures is not None:
        seen = pictures.seen(params, model, dtype)
        x, shift = seen.place(x, tokens), seen.shift(tokens)
    return model.hidden(params, x, valid, cache, after=after, shift=shift, layer=layer, route=route, scale=scale)


def unembed(params: Params, model: Language, hidden: Array) -> Array:
    """(..., D) hidden states -> (..., V) logits in float32."""
    return model.logits(params, hidden)
