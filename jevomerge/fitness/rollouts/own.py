"""What a function of the user's makes of a model: pure, jitted, over population and mesh like ours.

    def f(model, params): ...                # (N,), or one number
    def f(model, params, batch): ...         # (B,), one score for each row of `batch`, a `Batch` of tokens

`params` are a candidate's in the form in which their owner has them, `model` what they are parameters of: a `Language`,
through whose blocks the candidate's path leads if it has one, or an `OwnModel`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.errors import FitnessError
from jevomerge.fitness.batches import Batch, Layout
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.models.layers import Params
from jevomerge.models.model import Language, Layer, as_stored
from jevomerge.models.route import Route, Scaling
from jevomerge.models.specs import unflatten
from jevomerge.problems.problem import Instance


@dataclass(frozen=True)
class Called:
    """A function, with what it is called in messages."""

    function: Callable[..., Any]
    name: str = field(compare=False)

    def __call__(self, *arguments: Any) -> Any:
        """What it returns.

        Raises:
            FitnessError: for whatever goes wrong in it.
        """
        try:
            return self.function(*arguments)
        except Exception as error:
            raise FitnessError(f"{self.name}: {type(error).__name__}: {error}") from error

    def of_model(self, model: Language, instance: Instance, *batch: Any) -> Array:
        """(N,) float32: what it makes of a model, and of a batch if it takes one; traceable.

        Raises:
            FitnessError: for what is no array of numbers.
        """
        params = model.as_given(merged(model, instance))
        given = model if instance.layer is as_stored and instance.route is None else Seen(model, instance, params)
        found = self(given, params, *batch)
        try:
            scores = jnp.asarray(found)
        except (TypeError, ValueError):
            raise FitnessError(f"{self.name} gave {type(found).__name__}, not an array of scores") from None
        if scores.ndim > 1 or jnp.issubdtype(scores.dtype, jnp.complexfloating):
            raise FitnessError(f"{self.name} gave {scores.dtype}{list(scores.shape)}, not a score or (N,) of them")
        if not scores.size:
            raise FitnessError(f"{self.name} gave no scores")
        return scores.reshape(-1).astype(jnp.float32)


def merged(model: Language, instance: Instance) -> Params:
    """A candidate's parameters, all merged; what of them the function makes no use of, the compiler leaves out."""
    params = instance.params
    if instance.layer is not as_stored:
        for block in sorted({spec.block for spec in model.specs if spec.block}):
            layers = functools.partial(jax.lax.map, functools.partial(instance.layer, block))
            params = _replaced(params, block.split("."), layers)
    return params


def _replaced(tree: Params, path: Sequence[str], f: Callable[[Any], Any]) -> Any:
    """A tree with `f` of what is at `path` in its place."""
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], f)} if path else f(tree)


@dataclass(frozen=True, eq=False)
class Seen:
    """A candidate's model as a function of the user's sees it: a `Language` that follows the candidate's route.

    In a pass over the very parameters that the function was given, without a cache, each block is merged where it is
    needed, as in our own passes: that is faster than reading it again once it is merged.
    """

    model: Language
    instance: Instance
    params: Any  # that the function is given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

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
        """As the model's, along the route."""
        if params is self.params and cache is None:
            params, layer = self.instance.params, self.instance.layer
        _, _, route, scale = self.instance
        return self.model.hidden(
            params, x, valid, cache, after=after, shift=shift, layer=layer, route=route, scale=scale
        )

    def cache(self, rows: int, slots: int, dtype: Any, route: Route | None = None) -> Any:
        """As the model's, for the route."""
        return self.model.cache(rows, slots, dtype, self.instance.route)


class Numbered(NamedTuple):
    """One of the N scores that a function gives without a batch, in place of an example."""

    prompt: str  # what the function is called
    answer: str
    number: int


@dataclass(frozen=True)
class OfParams:
    """Asks for the N scores of a function of parameters alone: all of them in one pass, whichever are wanted."""

    function: Called
    count: int  # N

    many_passes = False
    unmerged = False
    writes = False
    draws = False

    def check(self, model: Language, examples: Sequence[Numbered]) -> None:
        """Nothing."""

    def layouts(
        self,
        search: Sequence[Numbered],
        others: Sequence[Numbered],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """A single one, for all."""
        return [Layout(self.count, 0, 0)]

    def strata(self, examples: Sequence[Numbered], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) zeros."""
        return np.zeros(len(examples), int)

    def batch(self, model: Language, examples: Sequence[Numbered], layout: Layout) -> np.ndarray:
        """(N,) the numbers of the scores that are wanted."""
        numbers = np.zeros(layout.rows, np.int32)
        numbers[: len(examples)] = [e.number for e in examples]
        return numbers

    def run(self, model: Language, instance: Instance, batch: Array, layout: Layout, *, dtype: str) -> Array:
        """(N,) those scores."""
        return _checked(self.function.of_model(model, instance), self.function, self.count, "")[batch]

    def read(self, outputs: Sequence[np.ndarray], folder: Any = None) -> list[float]:
        """The scores."""
        return np.asarray(outputs[0], np.float64).tolist()

    def spent(self, examples: Sequence[Numbered], batch: Any, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """No tokens that are known of."""
        return {}

    def label(self, task: str, layout: Layout) -> str:
        """Such as "score fitness by judges:accuracy"."""
        return f"score {task} by {self.function.name}"

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """None that are known of."""
        return {}

    def cache(self, model: Language, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class OfBatch(Likelihood):
    """Asks for the scores of a function of parameters and a batch, which is laid out as for likelihoods."""

    function: Called = field(kw_only=True)

    unmerged = False

    def run(self, model: Language, instance: Instance, batch: Batch, layout: Layout, *, dtype: str) -> Array:  # type: ignore[override]
        """(B,) one score for each row."""
        return _checked(
            self.function.of_model(model, instance, batch), self.function, layout.rows, " of a batch's rows"
        )

    def read(self, outputs: Sequence[np.ndarray], folder: Any = None) -> list[float]:  # type: ignore[override]
        """The scores."""
        return np.asarray(outputs[0], np.float64).tolist()

    def label(self, task: str, layout: Layout) -> str:
        """Such as "score gsm8k by judges:f, 16 x 128 tokens"."""
        return f"score {task} by {self.function.name}, {layout.rows} x {layout.length} tokens"


def count_scores(function: Called, model: Any) -> int:
    """N, of a function without a batch; from shapes alone.

    Raises:
        FitnessError: for whatever goes wrong in the function.
    """
    params = unflatten({s.path: jax.ShapeDtypeStruct(s.leaf_shape, np.float32) for s in model.specs})
    return int(jax.eval_shape(lambda tree: function.of_model(model, Instance(tree)), params).shape[0])


def _checked(scores: Array, function: Called, count: int, what: str) -> Array:
    if scores.shape != (count,):
        raise FitnessError(f"{function.name} gave {scores.shape[0]} scores, not one for each{what or f' of {count}'}")
    return scores
