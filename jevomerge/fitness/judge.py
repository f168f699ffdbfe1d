"""Scoring models and populations of candidate merges on tasks.

A `Judge` owns the host side (text, tokens, extraction); what runs on the device are the module's jitted
functions, compiled once per batch shape and never per candidate, per generation or per split.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jevomerge.config import Task
from jevomerge.errors import FitnessError, InputError
from jevomerge.fitness.candidates import Candidates, Model
from jevomerge.fitness.data import (
    Example,
    Layout,
    fingerprint,
    load_examples,
    make_batches,
    plan_layouts,
    refuse_overlap,
)
from jevomerge.fitness.extract import is_correct
from jevomerge.fitness.rollout import Batch, answer_likelihood, generate
from jevomerge.models import DecoderConfig, Params, Path, Scaling

SPLITS = ("search", "heldout")


class Scores(NamedTuple):
    """Scores of one model: {task: (n,)} per example, and the same of a second criterion that breaks ties."""

    primary: dict[str, np.ndarray]
    secondary: dict[str, np.ndarray]
    texts: dict[str, list[str]]  # what it wrote, for the tasks where it generates


# --- on the device ------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("config", "layout", "dtype"))
def score_members(
    candidates: Candidates, genomes: Array, batch: Batch, *, config: DecoderConfig, layout: Layout, dtype: str
) -> tuple[Array, Array]:
    """(M, n) genomes -> (M, B) likelihoods and matches, each member made inside its own forward pass."""

    def member(genome: Array) -> tuple[Array, Array]:
        return answer_likelihood(candidates.lazy(genome), config, batch, layout.answer_slots, dtype=dtype)

    if genomes.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], member(genomes[0]))
    return jax.vmap(member)(genomes) if candidates.batched else jax.lax.map(member, genomes)


@functools.partial(jax.jit, static_argnames=("config", "layout", "dtype"))
def score_model(
    params: Params, batch: Batch, *, config: DecoderConfig, layout: Layout, dtype: str
) -> tuple[Array, Array]:
    """(B,) likelihoods and matches of one model."""
    return answer_likelihood(Model(params), config, batch, layout.answer_slots, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("config", "scale", "layout", "dtype"))
def generate_batch(
    params: Params,
    path: Path | None,
    batch: Batch,
    max_new_tokens: Array,
    eos: Array,
    *,
    config: DecoderConfig,
    scale: Scaling,
    layout: Layout,
    dtype: str,
) -> Array:
    """(B, new) generated tokens of one model."""
    model = Model(params, path=path, scale=scale)
    return generate(model, config, batch, max_new_tokens, eos, layout.answer_slots, dtype=dtype)


# --- on the host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scoring(task: Task) -> Iterator[None]:
    """What goes wrong in the block has to do with this task."""
    try:
        yield
    except Exception as error:
        raise FitnessError(f"task {task.name}: {type(error).__name__}: {error}") from error


class Judge:
    """Tasks made ready for one tokenizer and one architecture."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Any,
        config: DecoderConfig,
        *,
        splits: Sequence[str] = SPLITS,
        tokens_per_batch: int = 16384,
        examples_at_once: int | None = None,
        dtype: str = "float32",
    ):
        """Read, check and tokenise the data of `splits`; no weights are needed.

        Batches are laid out for the first split, and for minibatches of `examples_at_once` of it.
        """
        self.tasks, self.tokenizer, self.config, self.dtype = tuple(tasks), tokenizer, config, dtype
        if len({t.name for t in tasks}) < len(tasks):
            raise InputError("tasks: two tasks have the same name")
        eos = tokenizer.eos_token_id
        if eos is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token in tokenizer_config.json)")
        self.eos = jnp.asarray([eos], jnp.int32)
        self.pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.examples: dict[str, dict[str, list[Example]]] = {split: {} for split in splits}
        self.layouts: dict[str, list[Layout]] = {}
        for task in tasks:
            for split in splits:
                self.examples[split][task.name] = load_examples(task, split, tokenizer)
            if set(splits) == set(SPLITS):
                refuse_overlap(task, *(self.examples[s][task.name] for s in SPLITS))
            first, *rest = (self.examples[split][task.name] for split in splits)
            others = [e for examples in rest for e in examples]
            self._check_tokens(task, [*first, *others])
            self.layouts[task.name] = plan_layouts(task, first, others, tokens_per_batch, examples_at_once)

    def _check_tokens(self, task: Task, examples: Sequence[Example]) -> None:
        top = max(max(e.prompt_tokens + e.answer_tokens) for e in examples)
        if top >= self.config.vocab_size:
            raise InputError(
                f"task {task.name}: token {top} is outside the model's vocabulary of {self.config.vocab_size}; "
                "tokenizer and weights do not belong together"
            )

    def fingerprint(self, split: str) -> dict[str, str]:
        """A digest of each task's examples."""
        return {name: fingerprint(examples) for name, examples in self.examples[split].items()}

    def sample(self, split: str, count: int, key: Array) -> dict[str, np.ndarray]:
        """A minibatch: `count` examples of each task (or all), as sorted indices."""
        chosen = {}
        for name, examples in self.examples[split].items():
            order = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(name.encode())), len(examples))
            chosen[name] = np.sort(np.asarray(order)[:count])
        return chosen

    def fitness(self, scores: Scores) -> tuple[float, float]:
        """The weighted mean over tasks of the mean score, and of the second criterion."""
        total = sum(task.weight for task in self.tasks)
        first, second = (
            float(sum(t.weight * float(np.mean(values[t.name])) for t in self.tasks) / total) for values in scores[:2]
        )
        return first, second

    def members(
        self,
        candidates: Candidates,
        genomes: np.ndarray,
        subset: Mapping[str, np.ndarray] | None = None,
        members_per_batch: int = 1,
    ) -> Iterator[list[Scores]]:
        """Score a population on the search split, yielding as each group of members is done.

        The last group is filled up with copies, so that every group has the same shape.
        """
        for start in range(0, len(genomes), members_per_batch):
            group = genomes[start : start + members_per_batch]
            count = len(group)
            group = np.concatenate([group, np.repeat(group[-1:], members_per_batch - count, axis=0)])
            on_device = jnp.asarray(group.astype(np.float32))
            scores = [Scores({}, {}, {}) for _ in range(count)]
            models: dict[int, Model] = {}  # the last one merged as a whole, which only generation needs
            for task in self.tasks:
                with _scoring(task):
                    if task.score == "generation":
                        for m in range(count):
                            if m not in models:
                                models = {m: candidates.whole(on_device[m])}
                            self._generation(scores[m], task, "search", subset, models[m], self.config)
                        continue
                    static = {"config": self.config, "dtype": self.dtype}
                    score = functools.partial(score_members, candidates, on_device, **static)
                    outputs = self._likelihoods(task, "search", subset, score)
                    for m in range(count):
                        self._put(scores[m], task, outputs[:, m])
            yield scores

    def model(self, params: Params, split: str, config: DecoderConfig | None = None) -> Scores:
        """Score one model on a whole split; `config` if it is not of the judge's architecture."""
        scores, config = Scores({}, {}, {}), config or self.config
        for task in self.tasks:
            with _scoring(task):
                if task.score == "generation":
                    self._generation(scores, task, split, None, Model(params), config)
                else:
                    score = functools.partial(score_model, params, config=config, dtype=self.dtype)
                    self._put(scores, task, self._likelihoods(task, split, None, score))
        return scores

    def _generation(
        self,
        scores: Scores,
        task: Task,
        split: str,
        subset: Mapping[str, np.ndarray] | None,
        model: Model,
        config: DecoderConfig,
    ) -> None:
        """Put generated answers and their scores into `scores`; nothing breaks their ties."""
        chosen = self._chosen(task, split, subset)
        texts = self._texts(task, chosen, model, config)
        correct = [float(is_correct(task, t, e.answer)) for t, e in zip(texts, chosen, strict=True)]
        self._put(scores, task, np.stack([correct, np.zeros(len(correct))]))
        scores.texts[task.name] = texts

    def _likelihoods(
        self,
        task: Task,
        split: str,
        subset: Mapping[str, np.ndarray] | None,
        score: Callable[..., tuple[Array, Array]],
    ) -> np.ndarray:
        """(2, [M,] n) of `score(batch, layout=...)`: a task's score of every example, then what breaks its ties."""
        chosen = self._chosen(task, split, subset)
        parts, order = [], []
        for layout, index, batch in make_batches(task, chosen, self.layouts[task.name], self.pad):
            pair = np.stack([np.asarray(x, np.float64) for x in score(batch, layout=layout)])
            parts.append(pair[..., index >= 0])
            order.append(index[index >= 0])
        scores = np.concatenate(parts, axis=-1)[..., np.argsort(np.concatenate(order))]
        return scores if task.score == "likelihood" else scores[::-1]

    def _texts(self, task: Task, examples: Sequence[Example], model: Model, config: DecoderConfig) -> list[str]:
        texts = [""] * len(examples)
        limit = jnp.asarray(task.max_new_tokens, jnp.int32)
        for layout, index, batch in make_batches(task, examples, self.layouts[task.name], self.pad):
            static = {"config": config, "scale": model.scale, "layout": layout, "dtype": self.dtype}
            tokens = generate_batch(model.params, model.path, batch, limit, self.eos, **static)
            real = index >= 0
            decoded = self.tokenizer.batch_decode(np.asarray(tokens)[real], skip_special_tokens=True)
            for i, text in zip(index[real], decoded, strict=True):
                texts[i] = text
        return texts

    def _chosen(self, task: Task, split: str, subset: Mapping[str, np.ndarray] | None) -> list[Example]:
        examples = self.examples[split][task.name]
        return examples if subset is None else [examples[i] for i in subset[task.name]]

    def _put(self, scores: Scores, task: Task, pair: np.ndarray) -> None:
        scores.primary[task.name], scores.secondary[task.name] = pair
