"""LoRA adapters of one model that are merged: which are, what they add to a tensor, whether an adapter can come out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from jevomerge.checkpoint.lora import Adapter, LowRank
from jevomerge.checkpoint.safetensors_file import all_finite
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.methods.factors import has_factors
from jevomerge.methods.method import MergeMethod
from jevomerge.recipe.parts import Part
from jevomerge.recipe.resolve import Coefficients
from jevomerge.recipe.schema import Recipe
from jevomerge.schema import Problems

OF_THE_MODEL = ("tokenizer_source", "tokenizer", "chat_template", "compute_as", "carry")  # keys on what no adapter has
REMEDY = "leave `adapter` out to write a model"


def is_pool(part: Part) -> bool:
    """Whether the models of a slice and its base are one model, one at least with an adapter, and the base without."""
    models = (*part.checkpoints, *([] if part.base is None else [part.base]))
    return (
        all(isinstance(c, Checkpoint) for c in models)
        and len({c.folder for c in models}) == 1
        and any(adapter_of(c) is not None for c in part.checkpoints)
        and (part.base is None or adapter_of(part.base) is None)
    )


def adapter_of(checkpoint: Any) -> Adapter | None:
    """The adapter of a source, if it has one."""
    found: Adapter | None = getattr(checkpoint, "adapter", None)
    return found


def low_rank_of(checkpoint: Any, name: str) -> LowRank | None:
    """What the adapter of a source adds to a tensor."""
    adapter = adapter_of(checkpoint)
    return None if adapter is None else adapter.low_rank.get(name)


def read_pair(low: LowRank, name: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """(rank, in) A and (out, rank) B without its scale, of what the adapter of `reference` adds to `name`; float32.

    Raises:
        InputError: for NaN or infinity in them.
    """
    halves = [half.read() for half in (low.a, low.b)]
    if not all(map(all_finite, halves)):
        raise InputError(f"{reference}: the adapter of {name} contains NaN or infinity; it is broken, leave it out")
    a, b = (half.astype(np.float32).reshape(half.shape[0], -1) for half in halves)
    return a, b


def check_adapter(
    recipe: Recipe,
    method: MergeMethod,
    pool: Part | None,
    coefficients: Coefficients,
    searched: Collection[str],
    problems: Problems,
) -> None:
    """Whether the merge of a recipe is its base and an adapter, which `adapter` asks for; why not goes to `problems`.

    `pool`: as `Sources.pool`; `searched`: parameters that are genes.
    """
    where = ("adapter",)
    for key in OF_THE_MODEL:
        if getattr(recipe, key) is not None:
            problems.add((key,), f"an adapter has no such thing, its model has; leave it out, or {REMEDY}")
    if pool is None:
        text = "only of LoRA adapters of one model, listed as MODEL+ADAPTER, is there one more; its base_model is MODEL"
        problems.add(where, f"{text}; {REMEDY}")
        return
    model = pool.checkpoints[0]
    if model.frame is not None:
        problems.add(where, f"{model.name} has parts beside its language model; {REMEDY}")
    for checkpoint in pool.checkpoints:
        if (adapter := adapter_of(checkpoint)) is None:
            continue
        odd = {name for name, low in adapter.low_rank.items() if low.transposed or len(low.a.shape) != 2}
        if found := odd | adapter.replaced.keys():
            what = f"has more for {min(found)} than two matrices beside a linear map"
            problems.add(where, f"{checkpoint.name} {what}; {REMEDY}")
    names = [p.name for p in method.parameters]
    averages = method.linear and "normalize" in names and "normalize" not in searched
    if method.base != "required" and not (averages and all(np.all(c["normalize"] > 0) for c in coefficients.values())):
        text = f"{method.name} changes the model itself here; merge what is added to it, by task_arithmetic, ties, ..."
        problems.add(("merge_method",), f"{text}, or {REMEDY}")
    elif recipe.adapter == "factors":
        _check_factors(method, pool, problems)
    elif recipe.adapter == "sum" and not method.linear:
        problems.add(where, f"what {method.name} makes is no sum of low ranks; give a rank, `adapter: 16`, or {REMEDY}")
    stored, dtype = model.dtype(), recipe.out_dtype or recipe.dtype
    if dtype not in (None, stored):
        key = "dtype" if recipe.out_dtype is None else "out_dtype"
        problems.add((key,), f"an adapter leaves its model in {stored}; leave `{key}` out, or {REMEDY}")


def _check_factors(method: MergeMethod, pool: Part, problems: Problems) -> None:
    """Whether a method can merge A and B of the adapters each by itself."""
    where = ("adapter",)
    if not has_factors(method):
        text = f"{method.name} merges no `factors`: task_arithmetic, ties, dare_linear and others like them do"
        problems.add(where, f"{text}; give a rank, or {REMEDY}")
    found = {low.rank for a in filter(None, map(adapter_of, pool.checkpoints)) for low in a.low_rank.values()}
    if len(found) > 1:
        told = " and ".join(map(str, sorted(found)))
        problems.add(where, f"`factors` are of adapters of one rank, these have {told}; give a rank, or {REMEDY}")
