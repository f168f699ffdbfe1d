"""Picture tasks: prompts, what reads them, and who judges what is drawn.

A scorer is run where pictures are drawn, and rounds their colours to 255 steps itself. A function of the user's,
`f(pictures, rows)`, gets (N, H, W, 3) uint8 on the host, as a PNG would hold them (grey ones with three equal
channels), and of each the row of the task's data, and gives N scores. Broken pictures it never sees.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.errors import InputError
from jevomerge.fitness.data import refuse_cached
from jevomerge.fitness.own import as_scores, check_signature, find_function, with_ties
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.rollouts.drawing import Asked, Drawing, Drawn
from jevomerge.fitness.rollouts.own import Called
from jevomerge.fitness.rows import Row, read_rows
from jevomerge.fitness.schema import OwnScore
from jevomerge.fitness.scorers.registry import open_scorer
from jevomerge.fitness.scorers.scorer import READING, Scorer
from jevomerge.fitness.task import AsGiven, Document, Material
from jevomerge.fitness.template import render
from jevomerge.models.diffusion.pipeline import condition, time_ids
from jevomerge.models.diffusion.scheduler import lightning, plan
from jevomerge.models.diffusion.unet import Condition
from jevomerge.models.layers import Params
from jevomerge.models.vision.pictures import pillow
from jevomerge.recipe.studio import Studio
from jevomerge.tokenizers.prompts import PromptReader


class Stage:
    """What all candidates are drawn with: what the U-Net is told of prompts, parts that are not merged, a scorer.

    Each text is read once in a run, and each weight when it is first needed.

    Attributes:
        notes: which prompts are cut.
    """

    def __init__(self, studio: Studio, scorer: Scorer | None, task: PictureTask, size: tuple[int, int], dtype: str):
        """Of pictures of one size; no weight is read."""
        self._studio, self._model, self._dtype = studio, studio.model, jnp.dtype(dtype)
        self._scorer, self._reader = scorer, PromptReader(studio.model, studio.tokenizers)
        self.notes = self._reader.notes
        self._encoders = [part for part in studio.model.parts if part.startswith("text_encoder")]
        self._own = not {*self._encoders}.isdisjoint(studio.merged)  # whether candidates read prompts themselves
        others = studio.model.parts.keys() - studio.merged
        self._others = sorted(others if self._own else others - {*self._encoders})
        self._sizes = None if studio.model.pooled_from is None else np.asarray(time_ids([size]))
        zeros = task.negative is None and studio.model.zeros_for_empty
        self._against = [] if not task.guided or zeros else [task.negative or ""]
        self._prompts: dict[str, None] = {}
        self._answers: dict[str, None] = {}

    def check(self, asked: Sequence[Asked]) -> None:
        """All pictures there will be; InputError for prompts that cannot be read."""
        self._prompts |= dict.fromkeys([*(a.prompt for a in asked), *self._against])
        self._answers |= dict.fromkeys(a.answer for a in asked)
        self._reader([*self._prompts])

    def told(self, prompts: Sequence[str], rows: int) -> tuple[Any, Any, Any]:
        """`told`, `against` and `sizes` of an `Order` of at most so many prompts, filled up; of none none is read."""
        read = self._reader if self._own else self._read if prompts else self._nothing
        filled = [*prompts, *[prompts[0] if prompts else ""] * (rows - len(prompts))]
        sizes = None if self._sizes is None else np.repeat(self._sizes, rows, axis=0)
        return read(filled), read(self._against) if self._against else None, sizes

    def _read(self, texts: Sequence[str]) -> Condition:
        return jax.tree.map(lambda *rows: np.concatenate(rows), *(self._conditions[text] for text in texts))

    @functools.cached_property
    def _conditions(self) -> dict[str, Condition]:
        """Of all prompts; each is read alone, so that its numbers do not depend on what others there are."""
        params, found = self._studio.load(self._encoders), dict[str, Condition]()
        for text in self._prompts:
            told = condition(params, self._model, self._reader([text]), self._sizes, self._dtype)
            found[text] = jax.tree.map(np.asarray, told)
        return found

    def _nothing(self, texts: Sequence[str]) -> Condition:
        """Zeros in the same shapes."""
        params = self._studio.load(self._encoders, abstract=True)
        tokens = self._reader(texts)
        sizes = None if self._sizes is None else np.repeat(self._sizes, len(texts), axis=0)
        shapes = jax.eval_shape(lambda: condition(params, self._model, tokens, sizes, self._dtype))
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def shared(self, answers: Sequence[str], rows: int) -> tuple[Params, Any, Params | None]:
        """`parts`, `judged` and `scorer` of an `Order` of at most so many pictures; of none nothing is read.

        Weights are JAX's arrays, the same in every batch.
        """
        parts = self._parts if answers else self._studio.load(self._others, abstract=True)
        if self._scorer is None:
            return parts, None, None
        if not answers:
            scoring, told = self._scorer.blank()
            return parts, np.repeat(told[None], rows, axis=0), scoring
        scoring, judged = self._scoring
        filled = [*answers, *[answers[0]] * (rows - len(answers))]
        return parts, np.stack([judged[text] for text in filled]), scoring

    @functools.cached_property
    def _parts(self) -> Params:
        placed: Params = jax.tree.map(jnp.asarray, self._studio.load(self._others))
        return placed

    @functools.cached_property
    def _scoring(self) -> tuple[Params, dict[str, np.ndarray]]:
        """The scorer's parameters without those that read texts, and what it is told of each text."""
        assert self._scorer is not None
        params, texts = self._scorer.load(), [*self._answers]
        told = dict(zip(texts, self._scorer.told(texts, params), strict=True))
        return {name: tree for name, tree in params.items() if name not in READING}, told


@dataclass(frozen=True)
class ByPictures(AsGiven):
    """A task of prompts; a function or a scorer judges what is drawn for them."""

    given: PictureTask
    called: Called | None  # None: the rollout's scorer judges
    rollout: Drawing
    answers: ClassVar[None] = None
    likelihood: ClassVar[None] = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """As they are given, or the scorer's."""
        return self.given.bounds if self.rollout.scorer is None else self.rollout.scorer.bounds

    @property
    def notes(self) -> tuple[str, ...]:
        """Also of prompts that are cut."""
        return notes_of(self.given, self.rollout)

    def material(self, split: str) -> Material:
        """The rows of a split as documents, which have a picture for each seed."""
        rows, documents, asked = read_prompts(self.given, split)

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Drawn]]) -> list[tuple[float, float]]:
            return with_ties(self._scores([dict(rows[d]) for d in numbers], outputs))

        first = np.arange(len(documents) + 1) * len(self.given.seeds_of(split))
        return Material(asked, first, documents, read)

    def _scores(self, rows: Sequence[Row], outputs: Sequence[Sequence[Drawn]]) -> np.ndarray:
        """(D,) the mean over each document's pictures."""
        drawn = [(picture, row) for pictures, row in zip(outputs, rows, strict=True) for picture in pictures]
        scores = np.full(len(drawn), self._worst)
        whole = [i for i, (picture, _) in enumerate(drawn) if not picture.broken]
        judged: Any = [drawn[i][0].judged for i in whole]
        if whole and self.called is not None:
            found = self.called(np.stack(judged), [drawn[i][1] for i in whole])
            judged = as_scores(found, self.called, len(whole), self.bounds, "pictures")
        scores[whole] = judged
        means: np.ndarray = scores.reshape(len(rows), -1).mean(axis=1)
        return means

    @property
    def _worst(self) -> float:
        low = -math.inf if self.bounds is None else self.bounds[0]
        return low if math.isfinite(low) else math.nan


def notes_of(task: PictureTask, drawing: Drawing) -> tuple[str, ...]:
    """What is worth knowing of a task, prompts that are cut among it."""
    cut = tuple(drawing.stage.notes)
    if cut and task.private:
        cut = (f"{task.name}: {len(cut)} times a prompt has more tokens than its text encoder takes, and is cut",)
    return (*task.notes, *cut)


def read_prompts(task: PictureTask, split: str) -> tuple[list[Row], list[Document], list[Asked]]:
    """The rows of a split, each as a document, and the pictures that are asked for: of each one for each seed."""
    where, source = f"task {task.name}, {split}", getattr(task, split)
    refuse_cached(task, split)
    rows, documents = read_rows(source, where), []
    for number, row in enumerate(rows, (source.rows or (0,))[0]):
        try:
            documents.append(Document(render(task.prompts, row), render(task.judged_by or task.prompts, row)))
        except ValueError as error:
            raise InputError(f"{where}: {source.path}, row {number} (the first is 0): {error}") from None
    return rows, documents, [Asked(d.prompt, d.answer, seed) for d in documents for seed in task.seeds_of(split)]


def make_drawn(task: PictureTask, studio: Studio, dtype: str) -> ByPictures:
    """A picture task that is ready; `studio` was opened by its scheduler, `dtype` is that of activations.

    Raises:
        InputError: if these models draw no such pictures, or there is nobody to judge them.
    """
    if not isinstance(task.score, OwnScore):
        scorer = open_scorer(str(task.score), task.weights, task.clip)
        return ByPictures(task, None, make_drawing(task, studio, scorer, dtype))
    called = find_function(task.score)
    check_signature(called, "(pictures, rows)")
    return ByPictures(task, called, make_drawing(task, studio, None, dtype))


def make_drawing(task: PictureTask, studio: Studio, scorer: Scorer | None, dtype: str) -> Drawing:
    """What a picture task asks a model for.

    Raises:
        InputError: if these models draw no such pictures.
    """
    pillow()  # what has been drawn is kept for people
    model, size = studio.model, task.size
    if size is None:
        if model.unet.sample_size is None:
            raise InputError("size: the U-Net's config.json does not say what it was trained on; give one")
        size = model.unet.sample_size * (model.vae.scale if model.vae else 1)
    height, width = (size, size) if isinstance(size, int) else size
    model.latents(height, width)
    scheduler = lightning(model.scheduler, task.steps) if task.scheduler == "lightning" else model.scheduler
    steps = jax.tree.map(np.asarray, plan(scheduler, task.steps))
    stage = Stage(studio, scorer, task, (height, width), dtype)
    return Drawing(model, (height, width), task.guided, scorer, stage, steps, task.guidance)
