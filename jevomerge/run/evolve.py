"""`jevomerge evolve`, and evolution from Python: files, folders and texts, or trees and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.files import expanded
from jevomerge.checkpoint.memory import InMemory
from jevomerge.checkpoint.pipeline import open_model
from jevomerge.config import RunConfig, StagedConfig, read_config
from jevomerge.errors import InputError
from jevomerge.models.model import Model
from jevomerge.observers.observer import Observer
from jevomerge.observers.terminal import Terminal
from jevomerge.recipe.opening import Opener
from jevomerge.reports.writer import PageWriter
from jevomerge.run.result import Result
from jevomerge.run.stages import evolve_config
from jevomerge.schema import Given, load_given
from jevomerge.strategies.registry import register


def evolve(
    config: Given | RunConfig | StagedConfig | None = None,
    *,
    models: Mapping[str, Any] | Sequence[Any] = (),
    model: Model | None = None,
    recipe: Given | None = None,
    genome: Mapping[str, Any] | None = None,
    fitness: Callable[..., Any] | str | None = None,
    of: str = "params",
    search: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    **settings: Any,
) -> Result | dict[str, Result]:
    """Search for the best merge of some models, and write a run folder.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from jevomerge.models.own import own_model
    >>> from jevomerge.observers.observer import SILENT
    >>> zeros, ones = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = evolve(
    ...         models=[zeros, ones], model=own_model(lambda params, x: params["w"] * x, zeros),
    ...         recipe={"merge_method": "task_arithmetic", "base_model": "0"}, genome={"weight": [0, 1]},
    ...         fitness=lambda model, params: -abs(model.apply(params, 1.0) - 0.3),
    ...         search={"evaluations": 60}, output=f"{folder}/run", observer=SILENT,
    ...     )
    ...     print(found.params["w"].round(1))
    [0.3 0.3]

    Args:
        config: the YAML of a run or of several stages, or what it holds; the keywords below replace parts of it.
        models: parameters in memory, by the names that the recipe uses, or in order ("0", "1", ...).
        model: what they are parameters of, see `own_model`, or `Checkpoint.model`.
        recipe: the merge, as a run's YAML has it. Without a list of models it merges all of `models` but its
            `base_model`.
        genome: {parameter: its gene}, which of the recipe's numbers are searched.
        fitness: what is maximised instead of `tasks`: a function, or "module:function" where it can be imported.
        of: what the fitness is a function of: "params", pure, `f(model, params) -> (N,)`; or "folder", where the
            candidate is written as a folder, `f(folder) -> (N,)`. The fitness is the mean.
        search: how the genome is searched, as in YAML; its `strategy` may be a class or an object, too.
        output: the run folder; runs/NAME if not given.
        resume: continue the run in `output`, with the same arguments; more `evaluations` make a search longer, also
            one that is finished.
        observer: who watches; by default the terminal, and a page is written at the end.
        settings: other keys of a run, such as `name`, `seed`, `tasks`, `path`, `refine`.

    Returns:
        the outcome; of several stages one for each by name, of several seeds one for each as "seed_K".

    Raises:
        InputError: for whatever is wrong with the arguments, models or data, before weights are read.
    """
    held = _held(models, model)
    if search is not None and not isinstance(search.get("strategy"), str | None):
        search = {**search, "strategy": register(search["strategy"])}
    data: Any = config
    parts = {"recipe": recipe, "genome": genome, "search": search, **settings}
    if given := {key: value for key, value in parts.items() if value is not None}:
        data = {"name": "evolve", **({} if config is None else _mapping(config)), **given}
    elif config is None:
        raise InputError("evolve: give a config, or a `recipe` with its `genome`, or a `path`")
    if fitness is not None:
        data = {**_mapping(data), "tasks": [{"name": "fitness", "score": {"function": fitness, "of": of}}]}
    if held:
        data = {**data, "recipe": _listing(data.get("recipe"), list(held))}
    run = read_config(data, tuple(held))
    folder = expanded(output) if output is not None else Path("runs") / run.name
    values = evolve_config(run, folder, observer or PageWriter(Terminal()), resume=resume, opener=_opener(held))
    found = _results(run, folder, values, model)
    return found.get("") or found


def _results(
    run: RunConfig | StagedConfig, folder: Path, values: dict[str, Any], model: Model | None
) -> dict[str, Result]:
    """By stage, by seed, by "seed_0/stage", or "" of the only run."""
    if run.seeds > 1:
        one = run.model_copy(update={"seeds": 1})
        seeds = {part: _results(one, folder / part, values[part], model) for part in run.parts}
        return {"/".join(filter(None, (part, k))): r for part, own in seeds.items() for k, r in own.items()}
    if isinstance(run, RunConfig):
        return {"": Result(folder, values, model)}
    return {part: Result(folder / part, values[part], None) for part in run.parts}


def _held(models: Mapping[str, Any] | Sequence[Any], model: Model | None) -> dict[str, InMemory]:
    """Models in memory by name."""
    if bool(models) != (model is not None):
        raise InputError(
            "evolve: `models`, parameters in memory, and `model`, what they are parameters of, go together"
        )
    named = models if isinstance(models, Mapping) else {str(i): params for i, params in enumerate(models)}
    held = {}
    for name, tree in named.items():
        assert model is not None
        try:
            params = model.as_dict(tree)
        except ValueError as error:
            raise InputError(f"models: {name}: {error}") from None
        held[name] = InMemory(name, model, params)
    return held


def _opener(held: Mapping[str, InMemory]) -> Opener:
    return lambda reference, **options: held[reference] if reference in held else open_model(reference, **options)


def _mapping(config: Any) -> dict[str, Any]:
    if isinstance(config, (RunConfig, StagedConfig)):
        return config.model_dump()
    return load_given(config)[0]


def _listing(recipe: Any, names: Sequence[str]) -> dict[str, Any]:
    """A recipe that lists its models: as it does itself, or all of `names` but its base model."""
    if recipe is None:
        raise InputError("evolve: `models` are merged by a `recipe`, such as {'merge_method': 'linear'}")
    recipe = load_given(recipe)[0]
    if any(recipe.get(key) for key in ("models", "slices", "modules")):
        return recipe
    return {**recipe, "models": [{"model": name} for name in names if name != recipe.get("base_model")]}
