"""Coefficients -> a recipe in mergekit's YAML, and -> a table to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from jevomerge.methods.method import Parameter
from jevomerge.methods.registry import MERGEKIT
from jevomerge.models.diffusion.places import write_mbw
from jevomerge.recipe.parts import Part, Tensor
from jevomerge.recipe.resolve import Coefficients
from jevomerge.recipe.schema import EYES, TEXT, rename_models
from jevomerge.recipe.sources import Sources


def write_recipe(sources: Sources, coefficients: Coefficients, called: Callable[[str], str] = str) -> str:
    """The YAML that reads back as exactly these coefficients; its first line says what mergekit makes of it.

    `called`: what it calls a model, such as `schema.seen_from(folder)`; by default as the recipe did.
    """
    recipe, method = sources.recipe, sources.method
    out: dict[str, Any] = {"merge_method": method.name}
    if sources.plain:
        part = sources.parts[0]
        out["models"] = _models(sources, part, coefficients, whole=True)
        shared = _shared(sources, part, coefficients)
    else:
        out["slices"] = []
        for part in sources.parts:
            models = _models(sources, part, coefficients, whole=False)
            for model, start in zip(models, (*part.first, part.base_first), strict=False):
                model["layer_range"] = [start, start + part.length]
            first = part.inputs[0].model if method.base == "first" else None
            reference = first if part.base is None else part.base.reference
            base = {} if reference is None else {"base_model": reference}
            parameters = _shared(sources, part, coefficients)
            out["slices"].append({"sources": models, **base, **({"parameters": parameters} if parameters else {})})
        shared = {}
    if method.base == "first" and sources.plain:
        out["base_model"] = sources.parts[0].inputs[0].model
    elif recipe.base_model is not None:
        out["base_model"] = recipe.base_model
    out |= {"parameters": shared} if shared else {}
    if sources.eyes:
        modules = {TEXT: {key: out.pop(key) for key in ("models", "slices", "parameters") if key in out}}
        named = {name: sources.eyes[part] for name, part in EYES.items() if part in sources.eyes}
        out["modules"] = modules | {name: _module(sources, part, coefficients) for name, part in named.items()}
    out |= {"dtype": "float32", "out_dtype": sources.dtype}
    given = recipe.model_dump(mode="json", include={"tokenizer_source", "tokenizer", "chat_template", "compute_as"})
    out |= {key: value for key, value in given.items() if value is not None}
    out |= {"carry": sources.carrier.reference} if sources.carrier is not None else {}
    if sources.assembly is not None:
        out |= {"parts": list(recipe.parts), "take": {n: m.reference for n, m in sources.assembly.lenders.items()}}
        out |= {key: value for key in ("pooled_from", "variant") if (value := getattr(recipe, key)) is not None}
    out |= {} if recipe.adapter is None else {"adapter": recipe.adapter}
    out |= {"semantics": recipe.semantics, "seed": recipe.seed}
    out = rename_models(out, lambda _, name: called(name))
    text = yaml.safe_dump(out, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return f"# {_in_mergekit(sources)}\n{text}"


def _in_mergekit(sources: Sources) -> str:
    method = sources.method
    if sources.assembly is not None:
        return "mergekit reads no image pipelines."
    if sources.carrier is not None:
        return "mergekit knows no `carry`: it merges no language model with one that has other parts as well."
    if sources.recipe.adapter is not None:
        return "mergekit writes no adapters: it makes the model of this that is its base with the adapter."
    if MERGEKIT.get(method.name) is None:
        return f"mergekit has no method {method.name}."
    if method is not MERGEKIT[method.name]:
        return f"mergekit has {method.name} only in its own semantics: it makes another model of this."
    inputs = {m.model for p in sources.parts for m in p.inputs}
    if method.base == "none" and sources.recipe.base_model not in {None, *inputs}:
        return "mergekit merges the base model too: it makes another model of this."
    if method.stochastic:
        return "mergekit draws other random masks: it makes a sibling of this model."
    return "mergekit makes the same model of this."


def _module(sources: Sources, part: Part, coefficients: Coefficients) -> dict[str, Any]:
    """What is merged beside the language model."""
    base = part.inputs[0].model if sources.method.base == "first" else part.base.reference if part.base else None
    shared = _shared(sources, part, coefficients)
    return {
        "models": _models(sources, part, coefficients, whole=True),
        **({"base_model": base} if base is not None else {}),
        **({"parameters": shared} if shared else {}),
    }


def _models(sources: Sources, part: Part, coefficients: Coefficients, *, whole: bool) -> list[dict[str, Any]]:
    """The `models` (or a slice's `sources`) with their own parameters; a slice's base model comes last."""
    models = []
    for i, source in enumerate(part.inputs):
        own = {
            p.name: _setting(part, [(t, _number(_at(coefficients, t, p)[i], p)) for t in _tensors(sources, part)])
            for p in sources.method.parameters
            if p.per_model
        }
        models.append({"model": source.model, **({"parameters": own} if own else {})})
    if part.base is not None and not whole:
        models.append({"model": part.base.reference})
    return models


def _shared(sources: Sources, part: Part, coefficients: Coefficients) -> dict[str, Any]:
    return {
        p.name: _setting(part, [(t, _number(_at(coefficients, t, p), p)) for t in _tensors(sources, part)])
        for p in sources.method.parameters
        if not p.per_model
    }


def _tensors(sources: Sources, part: Part) -> list[Tensor]:
    return [t for t in sources.tensors if t.part is part]


def _at(coefficients: Coefficients, tensor: Tensor, parameter: Parameter) -> Any:
    values = coefficients[tensor.spec.path][parameter.name]
    return values[tensor.at] if tensor.at else values


def _number(value: Any, parameter: Parameter) -> bool | int | float:
    """A plain number, the shortest decimals that read back exactly."""
    if parameter.kind != "float":
        return bool(value) if parameter.kind == "bool" else int(value)
    return float(str(np.float32(value)))


def _setting(part: Part, values: list[tuple[Tensor, bool | int | float]]) -> Any:
    """The shortest setting with these values: a number, else filters by tensor name with gradients."""
    if len({v for _, v in values}) == 1:
        return values[0][1]
    if values[0][0].spec.place:
        return _by_place(values)
    leaves: dict[str, dict[int, Any]] = {}
    for tensor, value in values:
        # What filters match on is the same in every layer of every model.
        before = tensor.spec.template.partition("{layer}.")[0]
        name = (
            tensor.name if tensor.layer is None else tensor.spec.name_in(0, tensor.at[1:]).removeprefix(f"{before}0.")
        )
        leaves.setdefault(name, {})[tensor.row] = value
    cases = [{"filter": name, "value": _gradient(part, rows)} for name, rows in leaves.items()]
    common = max((c["value"] for c in cases), key=lambda v: sum(c["value"] == v for c in cases))
    # The most frequent value goes last and without a filter; layer norms' names contain "norm.weight".
    rest = sorted((c for c in cases if c["value"] != common), key=lambda c: -len(c["filter"]))
    return [*rest, {"value": common}]


def _gradient(part: Part, rows: Mapping[int, Any]) -> Any:
    """One value, or one for each layer of the part; a layer without such a tensor has that of one beside it."""
    if len(set(rows.values())) == 1:
        return next(iter(rows.values()))
    found = [rows[min(rows)]]
    for row in range(part.length):
        found.append(rows.get(row, found[-1]))
    return found[1:]


def _by_place(values: list[tuple[Tensor, bool | int | float]]) -> Any:
    """The same for a model whose blocks have names: by block, by component or by both, else by tensor."""
    for words in (("block",), ("component",), ("block", "component")):
        found: dict[tuple[str, ...], set[Any]] = {}
        for tensor, value in values:
            told = {"block": tensor.spec.place, "component": tensor.spec.component}
            found.setdefault(tuple(told[word] for word in words), set()).add(value)
        if all(len(own) == 1 for own in found.values()):
            numbers = {key: own.pop() for key, own in found.items()}
            if words == ("block",) and (text := write_mbw({block: x for (block,), x in numbers.items()})) is not None:
                return {"mbw": text}
            cases = [dict(zip(words, key, strict=True)) | {"value": x} for key, x in numbers.items()]
            break
    else:
        cases = [{"filter": tensor.name, "value": value} for tensor, value in values]
    common = max((c["value"] for c in cases), key=lambda v: sum(c["value"] == v for c in cases))
    return [*(c for c in cases if c["value"] != common), {"value": common}]


def explain(sources: Sources) -> Iterator[str]:
    """What `jevomerge merge` would do, line by line, without reading a weight."""
    recipe, method = sources.recipe, sources.method
    count, layers = sum(int(np.prod(t.spec.shape)) for t in sources.tensors), len(sources.model.kinds)
    depth = f"{layers} layers, " if layers else ""
    yield f"{method.name} ({recipe.semantics} semantics), {depth}{count:,} parameters, {sources.dtype}"
    whole = sources.assembly
    for name, lender in whole.lenders.items() if whole is not None else ():
        yield f"  {name}: as in {lender.name}"
    for checkpoint in sources.checkpoints:
        roles = ["base" if any(p.base is checkpoint for p in sources.parts) else ""]
        lent = {"config.json": sources.like, "all that is not merged": sources.carrier}
        lent |= {"tokenizer": sources.lender} if whole is None else {}
        lent_here = " and ".join(what for what, lender in lent.items() if lender is checkpoint)
        roles += [f"lends {lent_here}" if lent_here else ""]
        yield f"  {checkpoint.name}: {checkpoint.reference}" + "".join(f" ({r})" for r in roles if r)
    if sources.alignment is not None:
        yield from (f"  {line}" for line in sources.alignment.explain())
    for tensor in sources.tensors:
        own = [p for p in method.parameters if p.per_model]
        inputs = []
        for i, checkpoint in enumerate(tensor.part.checkpoints):
            layer = f":{tensor.part.first[i] + tensor.row}" if tensor.layer is not None else ""
            values = [f"{p.name}={_number(_at(sources.coefficients, tensor, p)[i], p):g}" for p in own]
            inputs.append(f"{checkpoint.name}{layer}" + (f"({', '.join(values)})" if values else ""))
        if tensor.part.base is not None:
            layer = f":{tensor.part.base_first + tensor.row}" if tensor.layer is not None else ""
            inputs.append(f"on {tensor.part.base.name}{layer}")
        shared = [p for p in method.parameters if not p.per_model]
        inputs += [f"{p.name}={_number(_at(sources.coefficients, tensor, p), p):g}" for p in shared]
        yield f"{tensor.name} {list(tensor.spec.shape)} = " + " ".join(inputs)
