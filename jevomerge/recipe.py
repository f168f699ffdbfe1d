"""mergekit's YAML <-> coefficients: {leaf path: {parameter: ([L,][N,]) float32}}.

The rules are mergekit's: a list is a gradient over the layers, `filter` is a substring of the tensor's name,
the first filter that matches wins, a source's value beats the slice's, the recipe's and the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import yaml

from jevomerge.checkpoint import Checkpoint, ParamSpec
from jevomerge.checkpoint.export import DTYPES
from jevomerge.config import Conditional, Recipe, Setting, Value
from jevomerge.errors import InputError
from jevomerge.merge import get_method

Numbers = dict[str, dict[str, np.ndarray]]
IGNORED = ("int8_mask",)  # has no effect on mergekit's result either


class Sources:
    """The checkpoints of a recipe, opened and checked against each other; no weight has been read.

    Raises:
        InputError: for sources that cannot be merged with each other or with this method.
    """

    def __init__(self, recipe: Recipe):
        """Open every model of the recipe."""
        self.recipe = recipe
        self.method = get_method(recipe.merge_method, recipe.semantics)
        inputs = list(recipe.inputs)
        self.base: Checkpoint | None = None
        if self.method.base == "required" and recipe.base_model is None:
            raise InputError(f"merge_method: {self.method.name} needs `base_model`")
        if self.method.base in ("required", "optional") and recipe.base_model is not None:
            self.base = Checkpoint(recipe.base_model)
            inputs = [m for m in inputs if m.model != recipe.base_model]
        elif self.method.base == "first":  # slerp's t = 0
            inputs.sort(key=lambda m: m.model != recipe.base_model)
            if recipe.base_model not in (None, inputs[0].model):
                raise InputError(f"base_model: slerp starts from one of its two models, not {recipe.base_model}")
        fewest, most = self.method.num_sources
        if not fewest <= len(inputs) <= (most or len(inputs)):
            wanted = fewest if most == fewest else f"at least {fewest}"
            raise InputError(f"models: {self.method.name} needs {wanted}, not {len(inputs)}")
        self.inputs = inputs
        self.checkpoints = [Checkpoint(m.model) for m in inputs]
        self.names = [c.name for c in self.checkpoints]
        if len(set(self.names)) < len(self.names):
            raise InputError(f"models: two of {self.names} have the same name; rename a folder")
        # The donor of everything that is not merged: config.json, tokenizer, generation config.
        self.like = self.base or self.checkpoints[0]
        self._check_alike()
        for model in inputs:
            layers = (0, self.like.config.num_hidden_layers)
            if model.layer_range not in (None, layers):
                raise InputError(f"layer_range: {model.model} must take part with all layers, {list(layers)}")

    @property
    def all(self) -> list[Checkpoint]:
        """The base model, if any, and the sources."""
        return [*([self.base] if self.base else []), *self.checkpoints]

    @property
    def dtype(self) -> str:
        """The dtype of the merged model: the recipe's, else that of the base or first source."""
        if given := self.recipe.out_dtype or self.recipe.dtype:
            return given
        stored = {code: name for name, code in DTYPES.items()}
        if (code := self.like.dtype()) not in stored:
            raise InputError(f"{self.like.folder} is stored as {code}; say which `dtype` to write: {', '.join(DTYPES)}")
        return stored[code]

    def _check_alike(self) -> None:
        like = self.like
        for other in self.all:
            if other.config.tie_word_embeddings != like.config.tie_word_embeddings:
                tied, untied = (other, like) if other.config.tie_word_embeddings else (like, other)
                raise InputError(
                    f"{tied.folder} ties its head to its embeddings, {untied.folder} does not; "
                    "save the tied one with an lm_head of its own (tie_word_embeddings: false)"
                )
            for a, b in zip(like.specs, other.specs, strict=False):
                if a != b:
                    raise InputError(
                        f"{b.template} is {list(b.shape)} x {b.num_layers or 1} in {other.folder}, but "
                        f"{a.template} {list(a.shape)} x {a.num_layers or 1} in {like.folder}; "
                        "only models of one shape can be merged"
                    )
            if other.config != like.config:
                differing = [k for k, v in vars(other.config).items() if v != getattr(like.config, k)]
                raise InputError(
                    f"{other.folder} and {like.folder} compute different functions of their weights "
                    f"({', '.join(differing)} differ in config.json); merging them means nothing"
                )
        vocabularies = [(c, v) for c in self.all if (v := c.vocabulary()) is not None]
        for other, vocabulary in vocabularies[1:]:
            first, expected = vocabularies[0]
            if vocabulary != expected:
                token = min(k for k in vocabulary.keys() | expected.keys() if vocabulary.get(k) != expected.get(k))
                raise InputError(
                    f"the tokenizers of {first.folder} and {other.folder} differ (token {token!r} is "
                    f"{expected.get(token)} and {vocabulary.get(token)}); only models with one vocabulary can be merged"
                )


def resolve(sources: Sources, searched: Sequence[str] = ()) -> Numbers:
    """The recipe's coefficients for every tensor; parameters in `searched` may be missing (they are genes)."""
    recipe, method = sources.recipe, sources.method
    scopes: list[dict[str, Setting]] = [*(s.parameters for s in recipe.slices), recipe.parameters]
    known = {p.name for p in method.parameters} | set(IGNORED)
    if unknown := sorted(set(searched) - known):
        raise InputError(f"genome: {method.name} has no parameter `{unknown[0]}`; it has {', '.join(sorted(known))}")
    for where in (*scopes, *(m.parameters for m in sources.inputs)):
        if unknown := sorted(where.keys() - known):
            raise InputError(f"parameters: {method.name} has no `{unknown[0]}`; it has {', '.join(sorted(known))}")
    numbers: Numbers = {}
    for spec in sources.like.specs:
        numbers[spec.path] = {}
        for parameter in method.parameters:
            owners = sources.inputs if parameter.per_model else [None]
            table = np.zeros((len(spec.names()), len(owners)), np.float32)
            for row, name in enumerate(spec.names()):
                # Embeddings, final norm and head are planned at the position of the first layer.
                position = row / (spec.num_layers - 1) if spec.num_layers and spec.num_layers > 1 else 1.0
                position = position if spec.num_layers else 0.0
                for column, owner in enumerate(owners):
                    value = parameter.default
                    for scope in ([owner.parameters] if owner else []) + scopes:
                        if (found := _lookup(scope.get(parameter.name), name, position)) is not None:
                            value = found
                            break
                    if value is None:
                        if parameter.name not in searched:
                            who = f" of {owner.model}" if owner else ""
                            raise InputError(f"parameters: `{parameter.name}`{who} is missing for tensor {name}")
                        value = 0.0
                    table[row, column] = value
            shape = (*([spec.num_layers] if spec.num_layers else []), *([len(owners)] if parameter.per_model else []))
            numbers[spec.path][parameter.name] = table.reshape(shape)
    return numbers


def _lookup(setting: Setting | None, name: str, position: float) -> float | None:
    """A setting's value for the tensor `name` at `position` in [0, 1], None if it has none."""
    if setting is None:
        return None
    cases = [c for c in setting if isinstance(c, Conditional)] if isinstance(setting, tuple) else []
    if not cases:
        return _at(cast(Value, setting), position)
    for case in cases:
        if case.filter is None or case.filter == "*" or case.filter in name:
            return _at(case.value, position)
    return None


def _at(value: Value, position: float) -> float:
    """A scalar, or the point `position` of a gradient."""
    if not isinstance(value, tuple):
        return float(value)
    exact = round(position * (len(value) - 1), 9)  # 7 / 25 * 25 is not 7
    low = int(exact)
    high = min(len(value) - 1, low + 1)
    return (1 - (exact - low)) * float(value[low]) + (exact - low) * float(value[high])


def write_recipe(sources: Sources, numbers: Numbers) -> str:
    """The YAML that `resolve`s to exactly these coefficients."""
    method, specs = sources.method, sources.like.specs
    scalars = {
        p.name: _setting(specs, {k: v[p.name] for k, v in numbers.items()}, p.kind)
        for p in method.parameters
        if not p.per_model
    }
    models = []
    for i, source in enumerate(sources.inputs):
        own = {
            p.name: _setting(specs, {k: v[p.name][..., i] for k, v in numbers.items()}, p.kind)
            for p in method.parameters
            if p.per_model
        }
        models.append({"model": source.model, **({"parameters": own} if own else {})})
    recipe: dict[str, Any] = {"merge_method": method.name, "models": models}
    if sources.base:
        recipe["base_model"] = sources.base.reference
    elif method.base == "first":
        recipe["base_model"] = sources.inputs[0].model
    recipe |= {"parameters": scalars, "dtype": "float32", "out_dtype": sources.dtype}
    recipe |= {"semantics": sources.recipe.semantics, "seed": sources.recipe.seed}
    return yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def _setting(specs: Sequence[ParamSpec], values: dict[str, np.ndarray], kind: str) -> Any:
    """The shortest setting with these values: a number, else filters by tensor name with gradients."""

    def number(x: np.ndarray) -> Any:
        # The shortest decimals that read back exactly.
        plain = [bool(v) if kind == "bool" else float(str(np.float32(v))) for v in np.ravel(x)]
        return plain[0] if len(set(plain)) == 1 else plain

    everything = number(np.concatenate([np.ravel(v) for v in values.values()]))
    if not isinstance(everything, list):
        return everything
    cases = [
        {"filter": s.template.replace("model.layers.{layer}.", ""), "value": number(values[s.path])} for s in specs
    ]
    common = max((c["value"] for c in cases), key=lambda v: sum(c["value"] == v for c in cases))
    # The most frequent value goes last and without a filter; layer norms' names contain "norm.weight".
    rest = sorted((c for c in cases if c["value"] != common), key=lambda c: -len(c["filter"]))
    return [*rest, {"value": common}]
