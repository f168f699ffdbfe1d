"""The pictures that an image model draws of prompts: one program for all steps, and what judges them on the device.

The noise of a picture comes from its prompt and its seed alone, inside the program: it is the same for all candidates,
whatever is drawn beside it and wherever. What the U-Net is told of a prompt is read once in a run and travels in the
batch, unless text encoders are merged, of which each candidate then makes its own.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.fitness.batches import Layout, plan_layouts, shortest
from jevomerge.fitness.scorers.scorer import Scorer
from jevomerge.models.diffusion.pipeline import Pipeline, condition, draw, noise_keys, sample
from jevomerge.models.diffusion.scheduler import Steps
from jevomerge.models.diffusion.unet import Condition
from jevomerge.models.layers import Params
from jevomerge.models.model import Model
from jevomerge.models.vision.pictures import as_small_jpeg, pillow
from jevomerge.problems.problem import Instance

SIDE = 256  # pixels of the longer side of what is kept for people


class Asked(NamedTuple):
    """A picture that is asked for."""

    prompt: str
    answer: str  # by what it is judged: the prompt, or what stands for it
    seed: int  # of its noise


class Drawn(NamedTuple):
    """What has been drawn."""

    small: np.ndarray  # (h, w, 3) uint8, for people
    broken: bool  # not finite, or all of one colour
    judged: Any  # (H, W, 3) uint8, all of it, for who judges on the host; else the score

    @property
    def jpeg(self) -> str:
        """A small picture, in base64."""
        return base64.b64encode(as_small_jpeg(pillow()[0].fromarray(self.small))).decode()


@flax.struct.dataclass
class Order:
    """B pictures that are to be drawn, and all that takes beside the parts that are merged."""

    keys: Array  # (B, 2) uint32: of their noise
    told: Any  # `Condition` of B texts; where text encoders are merged, for each (B, S) tokens
    against: Any  # the same of one text; None: of none
    sizes: Array | None  # (B, 6), see `pipeline.time_ids`
    guidance: Array  # () float32
    steps: Steps
    parts: Params  # that are not merged
    judged: Any  # (B, D) what the scorer is told of them; None: there is no scorer
    scorer: Any  # its parameters


@dataclass(frozen=True)
class Drawing:
    """Asks for pictures."""

    pipeline: Pipeline
    size: tuple[int, int]  # height and width
    guided: bool  # whether a step takes two passes
    scorer: Scorer | None  # that judges on the device
    stage: Any = field(compare=False)  # `fitness.drawn.Stage`: who reads prompts, and what all candidates share
    steps: Steps = field(compare=False)
    guidance: float = field(compare=False)

    many_passes = True
    unmerged = False
    writes = False
    draws = True

    def check(self, model: Model, examples: Sequence[Asked]) -> None:
        """Raise InputError for prompts that the text encoders cannot read."""
        self.stage.check(examples)

    def layouts(
        self,
        search: Sequence[Asked],
        others: Sequence[Asked],
        tokens_per_batch: int,
        at_once: int | None = None,
        pieces: int = 1,
    ) -> list[Layout]:
        """A single one: pictures are as long as their latents, twice with guidance, and have one size."""
        height, width, _ = self.pipeline.latents(*self.size)
        count = len(search) + len(others)
        length = height * width * (2 if self.guided else 1)
        return plan_layouts([length] * count, [0] * count, len(search), tokens_per_batch, at_once, pieces)

    def strata(self, examples: Sequence[Asked], layouts: Sequence[Layout]) -> np.ndarray:
        """(n,) zeros."""
        return shortest([0] * len(examples), layouts)

    def batch(self, model: Model, examples: Sequence[Asked], layout: Layout) -> Order:
        """Their noise, and what the U-Net is told of them; without examples nothing is read."""
        some, rows = [*examples], layout.rows
        keys = np.zeros((rows, 2), np.uint32)
        if some:
            keys[: len(some)] = jax.random.key_data(noise_keys([e.prompt for e in some], [e.seed for e in some]))
        told, against, sizes = self.stage.told([e.prompt for e in some], rows)
        guidance: Any = np.float32(self.guidance)
        arrays: tuple[Any, ...] = (keys, told, against, sizes, guidance, self.steps)  # NumPy's, for any mesh
        return Order(*arrays, *self.stage.shared([e.answer for e in some], rows))

    def run(
        self, model: Model, instance: Instance, batch: Order, layout: Layout, *, dtype: str
    ) -> tuple[Array, Array, Array]:
        """(B, h, w, 3) small pictures, (B,) which are broken, and (B,) scores, else (B, H, W, 3) whole pictures."""
        params: Params = {**batch.parts, **instance.params}
        told, against = self._told(params, batch, dtype)
        keys = jax.random.wrap_key_data(batch.keys, impl="threefry2x32")
        noise = draw(keys, self.pipeline.latents(*self.size), batch.steps.draws)
        static = {"dtype": dtype}
        images = sample(params, self.pipeline, told, noise, batch.steps, batch.guidance, against, **static)
        colours = jnp.broadcast_to(images, (*images.shape[:3], 3))  # grey ones have one channel
        finite = jnp.isfinite(colours).all(axis=(1, 2, 3))
        whole = jnp.round(jnp.nan_to_num(colours) * 255).astype(jnp.uint8)
        plain = (whole.max(axis=(1, 2)) == whole.min(axis=(1, 2))).all(axis=1)
        judged = whole
        if self.scorer is not None:
            judged = self.scorer.score(batch.scorer, colours, batch.judged)
        return smaller(whole), ~finite | plain, judged

    def _told(self, params: Params, batch: Order, dtype: str) -> tuple[Condition, Condition | None]:
        """What the U-Net is told, and what pictures are led away from."""

        def read(texts: Any, sizes: Array | None) -> Condition:
            if isinstance(texts, Condition):
                return texts
            found: Condition = condition(params, self.pipeline, texts, sizes, dtype)
            return found

        told = read(batch.told, batch.sizes)
        if not self.guided:
            return told, None
        if batch.against is None:
            return told, told.zeros()
        away = read(batch.against, None if batch.sizes is None else batch.sizes[:1])
        return told, jax.tree.map(lambda one, all: jnp.broadcast_to(one, all.shape), away, told)

    def read(self, outputs: Sequence[np.ndarray], folder: Any = None) -> list[Drawn]:
        """What has been drawn."""
        return [Drawn(small, bool(broken), judged) for small, broken, judged in zip(*outputs, strict=True)]

    def spent(self, examples: Sequence[Asked], batch: Order, outputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        """No tokens."""
        return {}

    def label(self, task: str, layout: Layout) -> str:
        """Such as "draw birds, 4 x 512 x 512 in 4 steps"."""
        height, width = self.size
        return f"draw {task}, {layout.rows} x {height} x {width} in {len(self.steps.t)} steps"

    def loops(self, layout: Layout) -> Mapping[str, float]:
        """None of dynamic length."""
        return {}

    def cache(self, model: Model, layout: Layout, hops: int | None) -> tuple[tuple[int, ...], ...]:
        """None."""
        return ()


def smaller(pictures: Array) -> Array:
    """(B, H, W, 3) uint8 -> (B, h, w, 3): the means of squares, so that no side is longer than SIDE if that can be."""
    rows, height, width, channels = pictures.shape
    common = math.gcd(height, width)
    factor = next((n for n in range(-(-max(height, width) // SIDE), common + 1) if common % n == 0), common)
    squares = pictures.reshape(rows, height // factor, factor, width // factor, factor, channels)
    return jnp.round(squares.astype(jnp.float32).mean(axis=(2, 4))).astype(jnp.uint8)
