"""The YAML schema of runs, checked before a weight is read; recipes: `recipe.schema`, tasks: `fitness.schema`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from jevomerge.devices.schema import MeshShape
from jevomerge.errors import InputError
from jevomerge.fitness.kept import KeepFeatures
from jevomerge.fitness.tasks import AnyTask, tasks_of
from jevomerge.genome.schema import Gene, PathSearch
from jevomerge.recipe.schema import Extract, Recipe, anchor_recipe, read_recipe, with_mbw
from jevomerge.schema import Dtype, Given, Origin, Strict, anchor, load_given, validate
from jevomerge.strategies.schema import Refine, Search

# --- runs ---------------------------------------------------------------------------------------------------


def _folder_name(name: str) -> str:
    if not name.isprintable() or "/" in name or name.startswith(".") or not 0 < len(name.encode()) <= LONGEST:
        raise ValueError(f"a name is that of a folder: up to {LONGEST} bytes without / or a dot in front")
    return name


LONGEST = 200  # bytes: of the 255 that file systems allow, some go to the names of temporary folders
Name = Annotated[str, AfterValidator(_folder_name)]


class Stage(Strict):
    """One search: a recipe and which of its numbers are genes, or a path, or both."""

    name: Name  # of the run folder
    recipe: Recipe | None = None  # what is merged, and how; the numbers that are no genes
    # The search begins at the recipe's own numbers, not at search.mean. As {mbw: "0,0.5,..."} it puts these block
    # weights of two U-Nets into the recipe first.
    start_from: Literal["recipe"] | None = None
    genome: dict[str, Gene] = Field(default_factory=dict)  # parameters of the method that are searched
    path: PathSearch | None = None  # layers that are searched, of the models or of the merge
    search: Search = Field(default_factory=lambda: Search.model_validate({}))  # by what, for how long
    refine: Refine | None = None  # whether the best follow the gradient
    memory: Literal["auto", "device", "mesh", "host", "int8"] = "auto"  # where models wait for merges; guides/pods.md
    extract: Extract | None = None  # the recipe's models are searched as adapters of their base

    @model_validator(mode="after")
    def _something(self) -> Stage:
        if self.search.evaluations == 0 and self.refine is None:
            raise ValueError("search.evaluations must be greater than 0, unless `refine` starts from where it would")
        if self.recipe is None and self.path is None:
            raise ValueError("give a `recipe` with a `genome`, or a `path`, or both")
        if (self.recipe is None) != (not self.genome):
            raise ValueError("`recipe` and `genome` go together: which of the recipe's numbers are searched?")
        if self.path is not None and self.recipe is not None and self.recipe.adapter is not None:
            raise ValueError("`recipe.adapter`: a model with a `path` is no adapter of another; leave one of them out")
        if self.extract is not None:
            if self.recipe is None or self.path is not None or self.refine is not None:
                raise ValueError("`extract`: it is for a `recipe` alone, without `path` or `refine`; leave it out")
            if self.search.share is False or self.memory not in ("auto", "device"):
                raise ValueError(
                    "`extract`: adapters are shared and on the devices; leave `search.share` and `memory` out"
                )
        return self


class Judging(Strict):
    """The tasks that judge, and how candidates are scored on them."""

    tasks: tuple[AnyTask, ...] = Field(min_length=1)  # files or what they hold; their weighted mean is the fitness
    seed: int = Field(0, ge=0, lt=2**32)  # of the search; JAX takes larger ones for smaller ones
    seeds: int = Field(1, gt=0, le=1000)  # so many runs, with this seed and those after it, in folders of their own
    tokens_per_batch: int = Field(16384, gt=0)  # rows are scored together up to so many tokens
    mesh: MeshShape = Field(default_factory=lambda: MeshShape.model_validate({}))  # how the devices are used
    members_per_device: int | None = Field(None, gt=0)  # candidates merged and scored at once; None: 1, or what fits
    compute_dtype: Dtype = "float32"  # of activations; the merged weights have the recipe's dtype
    features: KeepFeatures = Field(default_factory=lambda: KeepFeatures())  # where what models see in pictures is kept
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # who else is told of every evaluation

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("give each tracker once")
        return trackers

    @field_validator("tasks")
    @classmethod
    def _apart(cls, tasks: tuple[AnyTask, ...]) -> tuple[AnyTask, ...]:
        names = [task.name for task in tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two tasks have the same name, `{twice}`")
        return tasks

    @model_validator(mode="after")
    def _private(self) -> Judging:
        if self.features.folder is not None and any(task.private for task in self.tasks):
            raise ValueError("`features`: what models see in private pictures is not written; leave `folder` out")
        return self

    @property
    def parts(self) -> list[str]:
        """The folders of the runs that it is made of, in that of all; of one run none."""
        return [f"seed_{self.seed + k}" for k in range(self.seeds)] if self.seeds > 1 else []


class RunConfig(Stage, Judging):
    """One evolution: what is searched, and what judges."""


class StagedConfig(Judging):
    """Several searches, each of which may use the winners of those before by their stages' names."""

    name: Name  # of the folder of their run folders
    stages: tuple[Stage, ...] = Field(min_length=1)  # in this order

    @field_validator("stages")
    @classmethod
    def _named(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [s.name for s in stages]
        for name in names:
            if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
                raise ValueError(f"stage names are folders, each its own: `{name}` will not do")
        return stages

    @property
    def parts(self) -> list[str]:
        """The folders of the seeds, or those of the stages."""
        return super().parts or [stage.name for stage in self.stages]

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


def read_plannable(given: Given | RunConfig | StagedConfig) -> RunConfig | StagedConfig | Recipe:
    """What `read_config` reads, or a recipe for `merge`, in which nothing is searched."""
    if not isinstance(given, RunConfig | StagedConfig) and "merge_method" in load_given(given)[0]:
        return read_recipe(given)
    return read_config(given)


def read_config(given: Given | RunConfig | StagedConfig, held: Sequence[str] = ()) -> RunConfig | StagedConfig:
    """A run or several stages, from YAML; paths, and tasks given as files, are relative to its file.

    Of a mapping they are relative to the working directory; what was read before is returned as it is. Models in
    `held` are in memory: their names are no paths.
    """
    if isinstance(given, (RunConfig, StagedConfig)):
        return given
    data, origin, folder = load_given(given)
    if isinstance(genome := data.get("genome"), dict) and {"models", "merge_method"} <= genome.keys():
        raise InputError(
            f"{origin.at('genome')}this is a config of mergekit-evolve; `jevomerge translate` prints it as ours"
        )
    if isinstance(data.get("tasks"), list):
        data["tasks"] = [t for task in data["tasks"] for t in tasks_of(task, folder)]
    if "stages" not in data:
        recipe_origin = _anchor_search(data, origin, folder, held)
        config = validate(RunConfig, data, origin)
        if config.recipe is not None:
            config.recipe.with_origin(recipe_origin)
        return config
    origins, names = [], [*held]
    for i, stage in enumerate(_list(data, "stages")):
        if isinstance(stage, dict):
            origins.append(_anchor_search(stage, origin.inside("stages", i), folder, names))
            names.append(str(stage.get("name")))
    staged = validate(StagedConfig, data, origin)
    for stage, recipe_origin in zip(staged.stages, origins, strict=True):
        if stage.recipe is not None:
            stage.recipe.with_origin(recipe_origin)
    return staged


Config = TypeVar("Config", bound=Judging)


def replaced(config: Config, **values: Any) -> Config:
    """A config with other values of some keys, checked as if they had been read."""
    return validate(type(config), {**dict(config), **values}, Origin())


def read_run(given: Given) -> RunConfig:
    """One run, from YAML.

    Raises:
        InputError: also for several stages or seeds, each of which has a run folder of its own.
    """
    config = read_config(given)
    if config.seeds > 1:
        what = config.name if isinstance(given, Mapping) else given
        raise InputError(f"{what} has {config.seeds} seeds: name the folder of one, such as seed_{config.seed}")
    if isinstance(config, StagedConfig):
        what = config.name if isinstance(given, Mapping) else given
        raise InputError(f"{what} has stages: {', '.join(s.name for s in config.stages)}; name the folder of one")
    return config


def _anchor_search(data: dict[str, Any], origin: Origin, folder: Path, stages: Sequence[str]) -> Origin:
    """Make the paths of a stage's models absolute; says where its recipe was read from."""
    start = data.get("start_from")
    if isinstance(start, dict) and start.keys() == {"mbw"} and isinstance(data.get("recipe"), dict):
        try:
            data |= {"recipe": with_mbw(data["recipe"], str(start["mbw"])), "start_from": "recipe"}
        except ValueError as error:
            raise InputError(f"{origin.at('start_from', 'mbw')}{error}") from None
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
