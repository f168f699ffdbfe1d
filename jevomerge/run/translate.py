"""`jevomerge translate`: the config of a mergekit-evolve run as one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from jevomerge.checkpoint.files import expanded, read_json
from jevomerge.errors import InputError
from jevomerge.recipe.schema import Reference
from jevomerge.schema import Strict, load_one, validate

GENES = {  # of mergekit-evolve's methods
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
NORMALIZED = ("linear", "ties", "dare_ties")  # unless the config says otherwise


class Genome(Strict):
    """What mergekit-evolve searches."""

    models: tuple[Reference, ...] = Field(min_length=1)
    merge_method: Literal["linear", "task_arithmetic", "ties", "dare_ties", "slerp"]
    base_model: Reference | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: tuple[str, ...] | None = None
    smooth: bool = False


class EvolveTask(Strict):
    """A task of lm-evaluation-harness, whose metric is "name,filter"."""

    name: str
    weight: float = 1.0
    metric: str = "acc,none"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EvolveConfig(Strict):
    """A config of mergekit-evolve."""

    genome: Genome
    tasks: tuple[EvolveTask, ...] = Field(min_length=1)
    limit: int | None = Field(None, gt=0)
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


def translate(path: str | Path) -> str:
    """The YAML of a run that searches what a config of mergekit-evolve does; what differs is said in its comments.

    Raises:
        InputError: for a file that is no such config, or one whose search has no counterpart.
    """
    path = expanded(path)
    data, origin = load_one(path)
    config = validate(EvolveConfig, data, origin)
    genome = config.genome
    if genome.merge_method == "slerp" and (len(genome.models) != 2 or genome.smooth or genome.filters):
        raise InputError(f"{origin.at('genome')}slerp is searched between two models, without `smooth` and `filters`")
    notes = ["mergekit-evolve scores on all documents and holds none out: say which ones are which."]
    start = {"weight": 1 / len(genome.models), "density": 1.0, "t": 0.5}
    recipe: dict[str, Any] = {"merge_method": genome.merge_method}
    per_model = {name: start[name] for name in GENES[genome.merge_method] if name != "t"}
    recipe["models"] = [{"model": m, **({"parameters": per_model} if per_model else {})} for m in genome.models]
    if genome.merge_method == "slerp":
        recipe |= {"base_model": genome.models[0], "parameters": {"t": start["t"]}}
    else:
        normalize = genome.merge_method in NORMALIZED if genome.normalize is None else genome.normalize
        recipe["parameters"] = {"normalize": normalize}
        if genome.base_model is not None and genome.merge_method != "linear":
            recipe["base_model"] = genome.base_model
    recipe["dtype"] = "bfloat16"
    if genome.tokenizer_source is not None:
        recipe["tokenizer_source"] = genome.tokenizer_source
    how: dict[str, Any] = {} if genome.filters is None else {"by": list(genome.filters)}
    if genome.smooth and genome.layer_granularity > 0:
        layers = _layers(path.parent, genome.models[0])
        how["smooth"] = layers // genome.layer_granularity
    elif genome.layer_granularity > 0:
        how["layers_per_group"] = genome.layer_granularity
    lowest = -1.0 if genome.allow_negative_weights else 0.0
    ranges = {"weight": [lowest, 1.0], "density": [0.0, 1.0], "t": [0.0, 1.0]}
    notes += ["Genes have ranges here; mergekit-evolve's have none, and their magnitude counts."]
    if config.shuffle:
        notes += ["shuffle: documents are taken in their order; search.examples_per_generation draws some anew."]
    if config.fewshot_as_multiturn and config.num_fewshot:
        notes += ["fewshot_as_multiturn: examples are part of one message."]
    rows = config.limit or 100
    run: dict[str, Any] = {"name": path.stem, "recipe": recipe}
    run |= {} if config.random_init else {"start_from": "recipe"}
    run["genome"] = {name: {"range": ranges[name], **how} for name in GENES[genome.merge_method]}
    run["tasks"] = [_task(task, config, rows) for task in config.tasks]
    run["search"] = {"strategy": "cma_es", "evaluations": 100}
    text: str = yaml.safe_dump(run, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return "".join(f"# {note}\n" for note in notes) + text


def _task(task: EvolveTask, config: EvolveConfig, rows: int) -> dict[str, Any]:
    metric, _, given = task.metric.partition(",")
    harness: dict[str, Any] = {"task": task.name, "metric": metric}
    harness |= {} if given in ("", "none") else {"filter": given}
    harness |= {} if config.num_fewshot is None else {"num_fewshot": config.num_fewshot}
    harness |= {"chat_template": config.apply_chat_template, "lower_is_better": task.weight < 0}
    own = {"search": {"rows": [0, rows]}, "heldout": {"rows": [rows, 2 * rows]}}
    return {"harness": harness, **own, "weight": abs(task.weight)}


def _layers(folder: Path, model: str) -> int:
    """Of a model that lies here."""
    found = next((p for p in (folder / model, expanded(model)) if (p / "config.json").exists()), None)
    if found is None or not isinstance(layers := read_json(found / "config.json").get("num_hidden_layers"), int):
        raise InputError(f"`smooth` counts the layers of {model}: download it, and name its folder")
    return layers
