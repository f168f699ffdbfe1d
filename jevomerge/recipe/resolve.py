"""A recipe's settings -> coefficients: {leaf path: {parameter: ([L,][N,]) float32}}.

The rules are mergekit's: a list is a gradient over the layers of a slice, `filter` is a substring of the
tensor's name, the first filter that matches wins, a source's value beats the slice's, the module's, the
recipe's and the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from jevomerge.methods.method import MergeMethod
from jevomerge.methods.registry import MERGEKIT
from jevomerge.models.specs import ParamSpec
from jevomerge.recipe.parts import Tensor, by_leaf
from jevomerge.recipe.schema import Conditional, Parameters, Recipe, Setting, Value
from jevomerge.schema import Location, Notes, Problems

Coefficients = dict[str, dict[str, np.ndarray]]  # {leaf path: {parameter: (..., [N]) float32}}
# Without effect on mergekit's result either: the first only ever changed a dtype inside, the second is gone.
IGNORED = ("int8_mask", "embed_slerp")


def resolve(
    recipe: Recipe, method: MergeMethod, tensors: Sequence[Tensor], searched: Sequence[str], problems: Problems
) -> Coefficients:
    """The coefficients of every tensor; what is wrong goes to `problems`."""
    _check_filters(recipe, tensors, problems)
    missing: dict[tuple[Location, str], list[str]] = {}
    coefficients: Coefficients = {}
    for spec, rows in by_leaf(tensors).items():
        coefficients[spec.path] = {}
        width = max(len(t.part.inputs) for t in rows)
        for parameter in method.parameters:
            table = np.zeros((len(rows), width if parameter.per_model else 1), np.float32)
            for values, tensor in zip(table, rows, strict=True):
                part = tensor.part
                for i in range(len(part.inputs) if parameter.per_model else 1):
                    own = [part.inputs[i].parameters] if parameter.per_model else []
                    name = tensor.input_name(i) if parameter.per_model else tensor.name
                    scopes = [*own, *(scope for _, scope in part.scopes)]
                    settings = (scope.get(parameter.name) for scope in scopes)
                    found = (_lookup(s, name, tensor, parameter.kind) for s in settings)
                    value = next((v for v in found if v is not None), parameter.default)
                    if value is None and parameter.name not in searched:
                        where = part.where[i] if parameter.per_model else ("parameters",)
                        missing.setdefault((where, parameter.name), []).append(tensor.name)
                    values[i] = 0.0 if value is None else value
            shape = (*spec.leading, *([width] if parameter.per_model else []))
            coefficients[spec.path][parameter.name] = table.reshape(shape)
    for (where, name), names in missing.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        problems.add(where, f"`{name}` is missing for tensor {names[0]}{more}")
    return coefficients


def check_sums(method: MergeMethod, tensors: Sequence[Tensor], coefficients: Coefficients, notes: Notes) -> None:
    """Weights that add up to 0 where models are averaged: what they make is no mixture of them."""
    if method.base == "required" or "weight" not in [p.name for p in method.parameters]:
        return
    empty = []
    for tensor in tensors:
        table = coefficients[tensor.spec.path]["weight"]
        weights = (table[tensor.at] if tensor.at else table)[: len(tensor.part.inputs)]
        if abs(weights.sum()) <= 1e-6 * np.abs(weights).sum():
            empty.append(tensor.name)
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        notes.add(
            f"the weights of {empty[0]}{more} add up to 0: {method.name} makes no mixture of the models there; "
            "mind gradients, whose first value the embeddings, the last norm and the head have"
        )


def check_names(recipe: Recipe, method: MergeMethod, searched: Sequence[str], problems: Problems, notes: Notes) -> None:
    """Parameters that the method does not have: those of other methods to `notes`, unheard-of ones to `problems`."""
    known = [p.name for p in method.parameters]
    elsewhere = {p.name for m in MERGEKIT.values() for p in m.parameters}
    for name in searched:
        if name not in known:
            problems.add(None, f"genome: {method.name} has no parameter `{name}`; it has {', '.join(known) or 'none'}")
    parameters = {p.name: p for p in method.parameters}
    for where, settings, of_model in _scopes(recipe):
        for name, setting in settings.items():
            if name in parameters:
                _check_kind(setting, parameters[name].kind, (*where, name), problems)
                if of_model and not parameters[name].per_model:
                    notes.add(recipe.origin.at(*where, name) + "is shared by all models and has no effect under one")
            elif name in elsewhere or name in IGNORED:
                if name not in IGNORED:
                    notes.add(recipe.origin.at(*where, name) + f"{method.name} does not use it")
            else:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"it has {', '.join(known) or 'none'}"
                problems.add((*where, name), f"{method.name} has no such parameter; {hint}")


def _check_kind(setting: Setting, kind: str, where: Location, problems: Problems) -> None:
    """Switches are on or off, whole numbers whole."""
    for value in [c.value for c in _cases(setting)] or [cast(Value, setting)]:
        for x in value if isinstance(value, tuple) else (value,):
            if kind == "bool" and x not in (0, 1):
                problems.add(where, f"is on or off, not {x}")
            elif kind == "int" and (isinstance(x, bool) or x % 1):
                problems.add(where, f"is a whole number, not {x}")


def _scopes(recipe: Recipe) -> Iterator[tuple[Location, Parameters, bool]]:
    """All settings: where they stand, and whether that is under a model."""
    for layered in (*recipe.stack, *recipe.eyes.values()):
        yield from (((*layered.where, i, "parameters"), m.parameters, True) for i, m in enumerate(layered.sources))
        yield from ((where, parameters, False) for where, parameters in layered.scopes)


def _check_filters(recipe: Recipe, tensors: Sequence[Tensor], problems: Problems) -> None:
    """Filters that match no tensor of the recipe (in one slice they may: a setting can be meant for several)."""
    names = {t.name for t in tensors}
    blocks, components = {t.spec.place for t in tensors}, {t.spec.component for t in tensors}
    names |= {t.input_name(i) for t in tensors for i in range(len(t.part.inputs))}
    for where, parameters, _ in _scopes(recipe):
        for name, setting in parameters.items():
            values = [case.value for case in _cases(setting)] or [setting]
            if blocks != {""} and any(isinstance(value, tuple) for value in values):
                what = "is a list over layers, which U-Nets do not have; give numbers for blocks (`block: IN04`, `mbw`)"
                problems.add((*where, name), what)
            for i, case in enumerate(_cases(setting)):
                if case.filter not in (None, "*") and not any(case.filter in t for t in names):
                    problems.add(
                        (*where, name, i),
                        f"filter `{case.filter}` matches no tensor, such as {tensors[0].name}",
                    )
                for word, wanted, known in (("block", case.block, blocks), ("component", case.component, components)):
                    if wanted is not None and wanted not in known:
                        have = ", ".join(sorted(known - {""})) or "none"
                        problems.add((*where, name), f"these models have no {word} `{wanted}`; they have {have}")


def _cases(setting: Setting) -> list[Conditional]:
    return [c for c in setting if isinstance(c, Conditional)] if isinstance(setting, tuple) else []


def _lookup(setting: Setting | None, name: str, tensor: Tensor, kind: str = "float") -> float | None:
    """A setting's value for a tensor that one of its models calls `name`, None if it has none."""
    if setting is None:
        return None
    if not (cases := _cases(setting)):
        return _at(cast(Value, setting), tensor.position, kind)
    return next((_at(c.value, tensor.position, kind) for c in cases if _applies(c, name, tensor.spec)), None)


def _applies(case: Conditional, name: str, spec: ParamSpec) -> bool:
    return (
        (case.filter in (None, "*") or case.filter in name)
        and case.block in (None, spec.place)
        and case.component in (None, spec.component)
    )


def _at(value: Value, position: float, kind: str = "float") -> float:
    """A scalar, or the point `position` of a gradient; switches and whole numbers are not interpolated."""
    if not isinstance(value, tuple):
        return float(value)
    exact = round(position * (len(value) - 1), 9)  # 7 / 25 * 25 is not 7
    low = int(exact)
    if kind != "float":
        return float(value[low])
    high = min(len(value) - 1, low + 1)
    return (1 - (exact - low)) * float(value[low]) + (exact - low) * float(value[high])
