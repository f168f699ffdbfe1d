"""The YAML schema of runs and tasks, checked before a weight is read; recipes: `jevomerge.recipe.schema`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jevomerge.errors import InputError
from jevomerge.recipe.schema import Recipe, anchor_recipe, read_recipe
from jevomerge.strict import Dtype, Strict, anchor, load_one, validate

# --- tasks --------------------------------------------------------------------------------------------------


class DataSource(Strict):
    """Where examples come from: a local JSONL, JSON or Parquet file, or a dataset on the hub."""

    path: str
    name: str | None = None  # of a hub dataset's configuration
    split: str = "train"  # of a hub dataset
    rows: tuple[int, int] | None = None  # [start, stop): only these rows
    limit: int | None = Field(None, gt=0)  # at most so many of them


class Task(Strict):
    """Something a good model does: examples, a prompt, and how an output is judged.

    The score of an example is
      `likelihood`: mean log-probability per token of the reference answer;
      `match`: 1 if the reference answer is what greedy decoding would write, from one forward pass;
      `generation`: 1 if the answer extracted from greedily generated text equals the reference.
    """

    name: str
    search: DataSource  # what evolution sees
    heldout: DataSource  # what it never sees; scored once, at the end
    prompt: str  # a template over the example's fields: "Q: {question}\nA:"
    answer: str  # likewise
    score: Literal["likelihood", "match", "generation"] = "likelihood"
    extract: Literal["exact", "last_number"] | None = None
    pattern: str | None = None  # or a regular expression whose first group, at its last match, is the answer
    max_new_tokens: int = Field(256, gt=0)
    stop: tuple[str, ...] = ()  # generated text ends before the first of these
    weight: float = Field(1.0, gt=0)

    @field_validator("search", "heldout", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _extractor(self) -> Task:
        if self.score == "generation" and (self.extract is None) == (self.pattern is None):
            raise ValueError("score: generation needs either `extract` (exact, last_number) or `pattern`")
        if self.score != "generation" and (self.extract or self.pattern):
            raise ValueError(f"`extract` and `pattern` judge generated text; score: {self.score} generates none")
        return self


# --- runs ---------------------------------------------------------------------------------------------------


class Gene(Strict):
    """A parameter that is searched: its range and how finely it varies over the model.

    A parameter of kind int takes the whole numbers of its range, one of kind bool is on or off.
    """

    range: tuple[float, float]
    layers_per_group: int | None = Field(None, gt=0)  # None: one value for all layers
    by: Literal["component", "tensor"] | tuple[str, ...] | None = None
    # component: attention, MLP and norms each get their own; tensor: every kind of tensor does; a list of filters: a
    # tensor belongs to the first that its name contains, else to the rest

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"range": value} if isinstance(value, (list, tuple)) else value

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"the range {list(value)} is empty: give [low, high] with low < high")
        return value

    @field_validator("by")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("give at least one filter, each once")
        return value


class Search(Strict):
    """How the genome is searched; the defaults are the paper's (CMA-ES from 0.5 with sigma 1/6)."""

    strategy: str = "cma_es"
    evaluations: int = Field(1000, gt=0)
    population: int | None = Field(None, gt=0)  # None: 4 + floor(3 ln n)
    mean: float = Field(0.5, ge=0, le=1)  # of the first generation, in the unit box of the genes' ranges
    sigma: float = Field(1 / 6, gt=0)
    examples_per_generation: int | None = Field(None, gt=0)  # None: all of every task's search split
    finalists: int = Field(5, gt=0)  # with minibatches: how many of the best are scored on the whole split
    checkpoint_every: int = Field(10, gt=0)  # generations


class RunConfig(Strict):
    """One evolution: a recipe, which of its numbers are genes, and the tasks that judge."""

    name: str
    recipe: Recipe
    start_from: Literal["recipe"] | None = None  # the search begins at the recipe's own numbers, not at search.mean
    genome: dict[str, Gene] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    search: Search = Field(default_factory=lambda: Search.model_validate({}))
    seed: int = 0
    tokens_per_batch: int = Field(16384, gt=0)  # rows are scored together up to so many tokens
    members_per_batch: int = Field(1, gt=0)  # candidates merged and scored at once (1 is fastest on a CPU)
    compute_dtype: Dtype = "float32"  # of activations; the merged weights have the recipe's dtype


# --- reading ------------------------------------------------------------------------------------------------


def read_run(path: str | Path) -> RunConfig:
    """A run's YAML; its paths, and its tasks given as files, are relative to that file."""
    path = Path(path)
    data, origin = load_one(path)
    for i, task in enumerate(data["tasks"] if isinstance(data.get("tasks"), list) else []):
        if isinstance(task, str):
            data["tasks"][i] = read_task(path.parent / task).model_dump()
        else:
            _anchor_task(task, path.parent)
    start, recipe_origin = data.get("start_from"), origin.inside("recipe")
    if isinstance(start, str) and start != "recipe":
        if "recipe" in data:
            raise InputError(f"{origin.at('start_from')}a file replaces `recipe`: give one of them, or `recipe` here")
        recipe = read_recipe(path.parent / start if (path.parent / start).exists() else start)
        data |= {"recipe": recipe.model_dump(), "start_from": "recipe"}
        recipe_origin = recipe.origin
    elif isinstance(data.get("recipe"), dict):
        data["recipe"] = anchor_recipe(data["recipe"], path.parent)
    config = validate(RunConfig, data, origin)
    config.recipe.read_from(recipe_origin)
    return config


def read_task(path: str | Path) -> Task:
    """A task's YAML; data paths are relative to it."""
    path = Path(path)
    data, origin = load_one(path)
    _anchor_task(data, path.parent)
    return validate(Task, data, origin)


def _anchor_task(data: Any, folder: Path) -> None:
    for key in ("search", "heldout") if isinstance(data, dict) else ():
        if isinstance(data.get(key), str):
            data[key] = anchor(data[key], folder)
        elif isinstance(data.get(key), dict):
            data[key]["path"] = anchor(data[key].get("path"), folder)
