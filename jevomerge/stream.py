"""Merging from files to a folder, one tensor at a time.

The memory needed is that of one tensor from every source and one result, whatever the size of the models.
The numbers are those of a merge in memory: the same `merge_tensor` runs on the same values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.checkpoint import ExportFolder, write_model
from jevomerge.checkpoint.card import model_card
from jevomerge.checkpoint.specs import tensor_names
from jevomerge.merge import Merge, merge_tensor
from jevomerge.merge.bank import tensor_keys
from jevomerge.recipe import Numbers, Sources, write_recipe


def merge_to_folder(
    sources: Sources,
    numbers: Numbers,
    out: str | Path,
    *,
    title: str | None = None,
    score: Callable[[Path], Mapping[str, Mapping[str, float]]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the merge of `sources` with coefficients `numbers` as a Hugging Face folder `out`.

    Args:
        sources: of the recipe, opened.
        numbers: the coefficients, {path: {parameter: ([L,][N,])}}.
        out: a folder that does not exist yet.
        title: of the model card, by default the folder's name.
        score: called with the folder when its weights are written, gives {model: {column: score}} for the card.
        progress: called with (tensors written, tensors in all).
    """
    target = ExportFolder(out)  # refuses an existing folder before anything is read
    merge = Merge(sources.method, sources.dtype)
    specs = sources.like.specs
    tensors = list(tensor_names(specs))
    keys = {spec.path: tensor_keys(spec, sources.names, sources.recipe.seed) for spec in specs}

    def read(name: str) -> tuple[list[Any], Any]:
        arrays = [jnp.asarray(c.tensor(name)) for c in sources.checkpoints]
        return arrays, None if sources.base is None else jnp.asarray(sources.base.tensor(name))

    pooled: dict[str, Any] = {}
    if sources.method.pool is not None:  # a first pass over all tensors
        rows = [(sources.method.prepare(*read(name)), int(np.prod(spec.shape))) for name, spec, _ in tensors]
        pooled = dict(zip((name for name, *_ in tensors), sources.method.pool(rows), strict=True))

    kernel = jax.jit(functools.partial(merge_tensor, merge))
    done = 0

    def tensor(name: str, path: str, layer: int | None) -> np.ndarray:
        nonlocal done
        arrays, base = read(name)
        prepared = pooled[name] if pooled else sources.method.prepare(arrays, base)
        here = (lambda x: x) if layer is None else (lambda x: x[layer])
        coefficients = {k: jnp.asarray(here(v)) for k, v in numbers[path].items()}
        merged = np.asarray(kernel(arrays, base, coefficients, prepared, jnp.asarray(here(keys[path]))))
        done += 1
        progress(done, len(tensors))
        return merged

    recipe = write_recipe(sources, numbers)
    with target as folder:
        write_model(folder, sources.like, sources.dtype, tensor)
        (folder / "recipe.yaml").write_text(recipe)
        card = model_card(title or Path(out).name, recipe, sources.all, score(folder) if score else None)
        (folder / "README.md").write_text(card)
