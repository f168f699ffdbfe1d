"""The YAML schema of runs, tasks and recipes: typed, frozen, checked before a weight is read.

Everything wrong with a file is reported at once, each problem with its line and, for an unknown key, the key
that was probably meant.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jevomerge.errors import InputError
from jevomerge.merge.registry import SEMANTICS

Dtype = Literal["float32", "bfloat16", "float16"]


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


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


# --- recipes (mergekit's format) ----------------------------------------------------------------------------

Scalar = bool | int | float
Value = Scalar | Annotated[tuple[Scalar, ...], Field(min_length=1)]  # a list is a gradient over the layers


class Conditional(Strict):
    """A value for the tensors whose name contains `filter` (None or "*": all)."""

    filter: str | None = None
    value: Value


Setting = Value | Annotated[tuple[Conditional, ...], Field(min_length=1)]


class RecipeModel(Strict):
    """A model in a recipe, and the parameters that apply to it alone."""

    model: str
    parameters: dict[str, Setting] = {}
    layer_range: tuple[int, int] | None = None


class RecipeSlice(Strict):
    """A range of layers made from the same range of several models."""

    sources: tuple[RecipeModel, ...]
    parameters: dict[str, Setting] = {}


class Recipe(Strict):
    """A merge as mergekit's YAML writes it; `semantics` and `seed` are ours."""

    merge_method: str
    models: tuple[RecipeModel, ...] = ()
    slices: tuple[RecipeSlice, ...] = ()
    base_model: str | None = None
    parameters: dict[str, Setting] = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: Literal["base"] | None = None  # the base model's, or the first model's: all are the same
    semantics: Literal[SEMANTICS] = "mergekit"  # type: ignore[valid-type]
    seed: int = 0

    @model_validator(mode="after")
    def _one_list(self) -> Recipe:
        if bool(self.models) == bool(self.slices):
            raise ValueError("give either `models` or `slices`")
        if len(self.slices) > 1:
            raise ValueError("several `slices` stack layers; only one slice over all layers is supported")
        return self

    @property
    def inputs(self) -> tuple[RecipeModel, ...]:
        """The models of the recipe, whichever way they are listed."""
        return self.models or self.slices[0].sources


# --- runs ---------------------------------------------------------------------------------------------------


class Gene(Strict):
    """A parameter that is searched: its range and how finely it varies over the model."""

    range: tuple[float, float]
    layers_per_group: int | None = Field(None, gt=0)  # None: one value for all layers
    components: bool = False  # attention, MLP and norms each get their own

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
    genome: dict[str, Gene] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    search: Search = Field(default_factory=lambda: Search.model_validate({}))
    seed: int = 0
    tokens_per_batch: int = Field(16384, gt=0)  # rows are scored together up to so many tokens
    members_per_batch: int = Field(1, gt=0)  # candidates merged and scored at once (1 is fastest on a CPU)
    compute_dtype: Dtype = "float32"  # of activations; the merged weights have the recipe's dtype


# --- reading ------------------------------------------------------------------------------------------------

Schema = TypeVar("Schema", bound=Strict)


def read_run(path: str | Path) -> RunConfig:
    """A run's YAML; its paths, and its tasks given as files, are relative to that file."""
    path = Path(path)
    data, lines = load_yaml(path)
    for i, task in enumerate(_list(data, "tasks")):
        if isinstance(task, str):
            data["tasks"][i] = read_task(path.parent / task).model_dump()
        else:
            _anchor_task(task, path.parent)
    if isinstance(data.get("recipe"), dict):
        _anchor_recipe(data["recipe"], path.parent)
    return validate(RunConfig, data, lines, path)


def read_task(path: str | Path) -> Task:
    """A task's YAML; data paths are relative to it."""
    path = Path(path)
    data, lines = load_yaml(path)
    _anchor_task(data, path.parent)
    return validate(Task, data, lines, path)


def read_recipe(path: str | Path) -> Recipe:
    """A mergekit recipe; model paths are relative to it or else, as mergekit's are, to the working directory."""
    path = Path(path)
    data, lines = load_yaml(path)
    _anchor_recipe(data, path.parent)
    return validate(Recipe, data, lines, path)


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def _anchor(value: Any, folder: Path) -> Any:
    """A path that exists, beside the file or from the working directory, made absolute; hub names stay."""
    if isinstance(value, str):
        for path in (folder / value, Path(value)):
            if path.exists():
                return str(path.resolve())
    return value


def _anchor_task(data: Any, folder: Path) -> None:
    for key in ("search", "heldout") if isinstance(data, dict) else ():
        if isinstance(data.get(key), str):
            data[key] = _anchor(data[key], folder)
        elif isinstance(data.get(key), dict):
            data[key]["path"] = _anchor(data[key].get("path"), folder)


def _anchor_recipe(data: dict[str, Any], folder: Path) -> None:
    models = _list(data, "models") + [
        m for s in _list(data, "slices") if isinstance(s, dict) for m in _list(s, "sources")
    ]
    for model in models:
        if isinstance(model, dict) and "model" in model:
            model["model"] = _anchor(model["model"], folder)
    if "base_model" in data:
        data["base_model"] = _anchor(data["base_model"], folder)


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The mapping in a YAML file, and the line of every key and item in it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a mapping of keys to values")
    lines: dict[tuple[Any, ...], int] = {}

    def walk(node: Any, where: tuple[Any, ...]) -> None:
        lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*where, key.value)] = key.start_mark.line + 1
                walk(value, (*where, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*where, i))

    walk(node, ())
    return data, lines


def validate(schema: type[Schema], data: dict[str, Any], lines: dict[tuple[Any, ...], int], path: Path) -> Schema:
    """`data` as `schema`, or one `InputError` that lists every problem with its line."""
    try:
        return schema.model_validate(data)
    except pydantic.ValidationError as error:
        problems: dict[tuple[Any, ...], str] = {}
        for e in error.errors():
            # The longest part of the location that the file has: pydantic adds the names of union members.
            where: tuple[Any, ...] = ()
            for part in e["loc"]:
                if (*where, part) in lines:
                    where = (*where, part)
            missing = e["type"] == "missing"
            name = ".".join(str(p) for p in (e["loc"] if missing else where)) or "file"
            message = e["msg"].removeprefix("Value error, ")
            if e["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(e["loc"][-1]), _keys(schema, e["loc"][:-1]), n=1)
                message = "unknown key" + (f", did you mean `{close[0]}`?" if close else "")
            elif missing:
                message = "is required"
            problems.setdefault((where, name), f"{path}:{lines[where]}: `{name}`: {message}")
        raise InputError("\n".join(problems.values())) from None


def _keys(schema: type[BaseModel], where: tuple[Any, ...]) -> list[str]:
    """The keys known at a location: those of the innermost model on the way there."""
    found = schema
    for part in where:
        if part in found.model_fields:
            annotation = found.model_fields[part].annotation
            candidates = (annotation, *getattr(annotation, "__args__", ()))
            found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), found)
    return list(found.model_fields)
