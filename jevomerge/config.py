"""The YAML schema of runs, checked before a weight is read; recipes: `recipe.schema`, tasks: `fitness.schema`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jevomerge.errors import InputError
from jevomerge.fitness.schema import AnyTask, tasks_of
from jevomerge.recipe.schema import Recipe, anchor_recipe, read_recipe
from jevomerge.strict import Dtype, Origin, Strict, anchor, load_one, validate

# --- runs ---------------------------------------------------------------------------------------------------


class Gene(Strict):
    """A parameter that is searched: its range and how finely it varies over the model.

    A parameter of kind int takes the whole numbers of its range, one of kind bool is on or off.
    """

    range: tuple[float, float] | None = None  # None: the parameter's own domain
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
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"the range {list(value)} is empty: give [low, high] with low < high")
        return value

    @field_validator("by")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("give at least one filter, each once")
        return value


class Anchors(Strict):
    """A few examples that stand for all of a task's search split, chosen by what the sources do on each of them."""

    examples: int = Field(gt=0)  # of each task
    estimator: Literal["mean", "irt"] = "mean"  # how the score on all follows; see fitness/anchors.py


class Search(Strict):
    """How the genome is searched; the defaults are the paper's (CMA-ES from 0.5 with sigma 1/6)."""

    strategy: str | None = None  # None: cma_es, for paths mixed; nsga2: each task is a goal of its own
    evaluations: int = Field(1000, ge=0)  # 0: `refine` has the start to itself
    population: int | None = Field(None, gt=0)  # None: 4 + floor(3 ln n)
    mean: float = Field(0.5, ge=0, le=1)  # of the first generation, in the unit box of the genes' ranges
    sigma: float = Field(1 / 6, gt=0)
    examples_per_generation: int | None = Field(None, gt=0)  # None: all of every task's search split
    anchors: Anchors | None = None  # fitness is an estimate from a few examples, always the same
    racing: Literal["exact", "hoeffding"] | None = None  # whether candidates that are too bad are scored to the end
    finalists: int = Field(5, gt=0)  # with minibatches or anchors: how many are scored on the whole split at the end;
    # with nsga2: how many points of the front are exported: the best, the best of each task, those farthest from them
    checkpoint_every: int = Field(10, gt=0)  # generations
    time_limit: float | None = Field(None, gt=0)  # seconds for candidates that are scored together, compiling included

    @model_validator(mode="after")
    def _one_saving(self) -> Search:
        if self.anchors is not None and self.examples_per_generation is not None:
            raise ValueError("`anchors` and `examples_per_generation` both say what is scored: leave one of them out")
        if self.anchors is not None and self.racing is not None:
            raise ValueError("`racing` bounds a score, `anchors` estimate one: leave one of them out")
        return self


class Refine(Strict):
    """The best genomes are moved along the gradient of a loss; see evolve/refine.py."""

    objective: Literal["likelihood", "entropy"] = "likelihood"  # of reference answers; of what follows the prompts
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(0.02, gt=0)  # in the unit box of the genes' ranges
    steps: int = Field(20, gt=0)
    examples_per_step: int | None = Field(16, gt=0)  # of each task's search split; None: all
    best: int = Field(1, gt=0)  # how many genomes are refined
    every: int | None = Field(None, gt=0)  # also in each such generation of the search; None: only after it


class PathSlice(Strict):
    """Layers [first, one past the last) of a model, as a slice of a passthrough recipe."""

    model: str
    layer_range: tuple[int, int]


class PathSearch(Strict):
    """Data-flow space: which layers of which models a token passes through, and how its stream is scaled.

    With a `recipe` beside it, model A is the merge and `models` are the others.
    """

    models: tuple[str, ...] = Field(min_length=1)  # the first is A, whose embedding, head and tokenizer are used
    repeats: int = Field(3, gt=0)  # how often all layers are laid out
    scaling: Literal["none", "per_hop", "matrix", "network"] = "per_hop"  # where the scales come from
    scale_range: tuple[float, float] = (0.5, 1.5)
    scale: Literal["stream", "delta"] = "stream"  # what they multiply: the residual stream, or the last MLP's output
    start: tuple[PathSlice, ...] = ()  # where the search begins, or a passthrough recipe's file; (): model A
    others_on: float = Field(0.5, gt=0, lt=1)  # of the slots not in the start, the share on in the first generation
    dtype: Dtype | None = None  # of the exported model; None: model A's, float32 where scales are folded in


class Stage(Strict):
    """One search: a recipe and which of its numbers are genes, or a path, or both."""

    name: str
    recipe: Recipe | None = None
    start_from: Literal["recipe"] | None = None  # the search begins at the recipe's own numbers, not at search.mean
    genome: dict[str, Gene] = Field(default_factory=dict)
    path: PathSearch | None = None
    search: Search = Field(default_factory=lambda: Search.model_validate({}))
    refine: Refine | None = None

    @model_validator(mode="after")
    def _something(self) -> Stage:
        if self.search.evaluations == 0 and self.refine is None:
            raise ValueError("search.evaluations must be greater than 0, unless `refine` starts from where it would")
        if self.recipe is None and self.path is None:
            raise ValueError("give a `recipe` with a `genome`, or a `path`, or both")
        if (self.recipe is None) != (not self.genome):
            raise ValueError("`recipe` and `genome` go together: which of the recipe's numbers are searched?")
        return self


class MeshShape(Strict):
    """The devices as a grid; what is not given follows from their number and, if they say how much it is, memory."""

    pop: int | None = Field(None, gt=0)  # how many candidates are scored at a time, each ...
    model: int | None = Field(None, gt=0)  # ... by so many devices, over which its weights are split


class Judging(Strict):
    """The tasks that judge, and how candidates are scored on them."""

    tasks: tuple[AnyTask, ...] = Field(min_length=1)
    seed: int = 0
    tokens_per_batch: int = Field(16384, gt=0)  # rows are scored together up to so many tokens
    mesh: MeshShape = Field(default_factory=lambda: MeshShape.model_validate({}))
    members_per_device: int | None = Field(None, gt=0)  # candidates merged and scored at once; None: 1, or what fits
    compute_dtype: Dtype = "float32"  # of activations; the merged weights have the recipe's dtype
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # who else is told of every evaluation

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("give each tracker once")
        return trackers


class RunConfig(Stage, Judging):
    """One evolution: what is searched, and what judges."""


class StagedConfig(Judging):
    """Several searches, each of which may use the winners of those before by their stages' names."""

    name: str
    stages: tuple[Stage, ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _named(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [s.name for s in stages]
        for name in names:
            if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
                raise ValueError(f"stage names are folders, each its own: `{name}` will not do")
        return stages

    def run_of(self, stage: Stage, winners: Mapping[str, str]) -> RunConfig:
        """A stage as a run, with the winners of earlier stages, {name: folder}, in place of their names."""
        shared = {k: getattr(self, k) for k in Judging.model_fields}
        own = {k: getattr(stage, k) for k in Stage.model_fields}
        if stage.recipe is not None:
            own["recipe"] = stage.recipe.with_models(winners)
        if stage.path is not None:
            models = tuple(winners.get(m, m) for m in stage.path.models)
            start = tuple(s.model_copy(update={"model": winners.get(s.model, s.model)}) for s in stage.path.start)
            own["path"] = stage.path.model_copy(update={"models": models, "start": start})
        return RunConfig.model_construct(**shared, **own)


# --- reading ------------------------------------------------------------------------------------------------


def read_config(path: str | Path) -> RunConfig | StagedConfig:
    """The YAML of a run or of several stages; its paths, and tasks given as files, are relative to that file."""
    path = Path(path)
    data, origin = load_one(path)
    if isinstance(data.get("tasks"), list):
        data["tasks"] = [t for task in data["tasks"] for t in tasks_of(task, path.parent)]
    if "stages" not in data:
        recipe_origin = _anchor_search(data, origin, path.parent, ())
        config = validate(RunConfig, data, origin)
        if config.recipe is not None:
            config.recipe.with_origin(recipe_origin)
        return config
    origins, names = [], list[str]()
    for i, stage in enumerate(_list(data, "stages")):
        if isinstance(stage, dict):
            origins.append(_anchor_search(stage, origin.inside("stages", i), path.parent, names))
            names.append(str(stage.get("name")))
    staged = validate(StagedConfig, data, origin)
    for stage, recipe_origin in zip(staged.stages, origins, strict=True):
        if stage.recipe is not None:
            stage.recipe.with_origin(recipe_origin)
    return staged


def read_run(path: str | Path) -> RunConfig:
    """The YAML of a run.

    Raises:
        InputError: also for several stages, each of which has a run folder of its own.
    """
    config = read_config(path)
    if isinstance(config, StagedConfig):
        raise InputError(f"{path} has stages: {', '.join(s.name for s in config.stages)}; name the folder of one")
    return config


def _anchor_search(data: dict[str, Any], origin: Origin, folder: Path, stages: Sequence[str]) -> Origin:
    """Make the paths of a stage's models absolute; says where its recipe was read from."""
    start = data.get("start_from")
    if isinstance(start, str) and start != "recipe":
        if data.get("recipe") is not None:
            raise InputError(f"{origin.at('start_from')}a file replaces `recipe`: give one of them, or `recipe` here")
        recipe = read_recipe(folder / start if (folder / start).exists() else start)
        data |= {"recipe": recipe.model_dump(), "start_from": "recipe"}
        return recipe.origin
    if isinstance(data.get("recipe"), dict):
        data["recipe"] = anchor_recipe(data["recipe"], folder, stages)
    if isinstance(data.get("path"), dict):
        data["path"] = _anchor_path(data["path"], folder, stages, origin.inside("path"))
    return origin.inside("recipe")


def _anchor_path(path: dict[str, Any], folder: Path, stages: Sequence[str], origin: Origin) -> dict[str, Any]:
    """The same with its models' paths made absolute and the start, where that is a file, read."""

    def found(model: Any) -> Any:
        return model if model in stages else anchor(model, folder)

    path = dict(path)
    if isinstance(start := path.get("start"), str):
        try:
            slices = read_recipe(folder / start if (folder / start).exists() else start).path
        except InputError as error:
            raise InputError(f"{origin.at('start')}{error}") from None
        path["start"] = [{"model": model, "layer_range": [first, stop]} for model, first, stop in slices]
    elif slices := _list(path, "start"):
        path["start"] = [s | {"model": found(s.get("model"))} if isinstance(s, dict) else s for s in slices]
    if models := _list(path, "models"):
        path["models"] = [found(m) for m in models]
    return path


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []
