"""Merging from files to a folder, one tensor at a time.

The memory needed is that of one tensor from every source and one result, whatever the size of the models.
The numbers are those of a merge in memory: the same `merge_tensor` runs on the same values.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jevomerge.checkpoint.card import write_card
from jevomerge.checkpoint.export import (
    copy_processor,
    copy_tokenizer,
    export_file,
    export_folder,
    refuse_existing,
    write_model,
)
from jevomerge.checkpoint.files import SUFFIX, expanded, read_json
from jevomerge.checkpoint.orbax_tree import OrbaxTree
from jevomerge.checkpoint.scoring import Scoring
from jevomerge.checkpoint.source import Source
from jevomerge.methods.bank import Merge, merge_tensor
from jevomerge.models.specs import ParamSpec
from jevomerge.recipe.parts import Tensor, by_leaf
from jevomerge.recipe.resolve import Coefficients
from jevomerge.recipe.schema import seen_from
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_adapter import merge_adapter
from jevomerge.recipe.write import write_recipe
from jevomerge.tokenizers.chat import write_chat_templates
from jevomerge.tokenizers.vocabulary import write_tokenizer


def merge_to_folder(
    sources: Sources,
    coefficients: Coefficients,
    out: str | Path,
    *,
    title: str | None = None,
    recipe: str | None = None,
    shard_bytes: int | None = None,
    score: Callable[[Path], Scoring] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the merge of `sources` with `coefficients` as a Hugging Face folder `out`.

    Args:
        sources: of the recipe, opened.
        coefficients: {path: {parameter: (..., [N])}}.
        out: a folder that does not exist yet.
        title: of the model card, by default the folder's name.
        recipe: the text to keep as recipe.yaml, by default `write_recipe`'s.
        shard_bytes: as for `write_model`.
        score: called with the folder when its weights are written, gives what the card says of how good it is.
        progress: called with (tensors written, tensors in all).
    """
    out, whole = expanded(out), sources.assembly
    refuse_existing(out)
    if whole is not None:
        whole.check(out)
    for checkpoint in sources.checkpoints:
        checkpoint.check_head()
    merged = merging(sources, coefficients)
    results = enumerate(ahead(merged, sources.tensors, [int(np.prod(t.spec.shape)) for t in sources.tensors]))
    waiting: dict[str, np.ndarray] = {}  # files are written in this order, but for what is one tensor in a single file

    def following(name: str, *_: Any) -> np.ndarray:
        while name not in waiting:
            i, array = next(results)
            waiting[sources.tensors[i].name] = array
            progress(i + 1, len(sources.tensors))
        return waiting.pop(name)

    called = seen_from(out)
    text, said = recipe or write_recipe(sources, coefficients, called), list(sources.carried)
    if whole is not None and out.suffix == SUFFIX:
        with export_file(out) as file:
            whole.write(file, sources.dtype, following, text, title=title)
            if score:
                score(file)
        return
    with export_folder(out) as folder:
        if whole is not None:
            whole.write(folder, sources.dtype, following, text, shard_bytes=shard_bytes)
        elif isinstance(sources.like, OrbaxTree):
            sources.like.write(folder, sources.dtype, following)
        elif sources.recipe.adapter is not None:
            said.append(merge_adapter(folder, sources, coefficients, merged, called, progress))
            sources.notes.add(said[-1])
        else:
            write_model(folder, sources.files, sources.specs, sources.dtype, following, shard_bytes, sources.frame)
            write_beside_weights(folder, sources)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        told = score(folder) if score else None
        write_card(folder, title or out.name, text, *credited(sources), told, said)


def credited(sources: Sources) -> tuple[Sequence[Source], str]:
    """All that something of is in the result, and the library that opens it."""
    if (whole := sources.assembly) is not None:
        return whole.sources, "diffusers"
    if sources.recipe.adapter is not None:
        return sources.checkpoints, "peft"
    return sources.checkpoints, "orbax" if isinstance(sources.like, OrbaxTree) else "transformers"


def merging(sources: Sources, coefficients: Coefficients) -> Callable[[Tensor], np.ndarray]:
    """What merges a tensor from its files; a method that looks at all tensors does so now."""
    method, keys, kept = sources.method, sources.keys(), sources.kept_leaves()

    pooled: dict[str, Any] = {}
    if method.pool is not None:  # a first pass over all tensors
        rows = [(method.prepare(*_read(sources, t)), int(np.prod(t.spec.shape))) for t in sources.tensors]
        pooled = dict(zip((t.name for t in sources.tensors), method.pool(rows), strict=True))

    dtype = sources.dtype if sources.recipe.adapter is None else "float32"  # of what is cut to a lower rank
    kernel = jax.jit(functools.partial(merge_tensor, Merge(method, dtype)))

    def merged(tensor: Tensor) -> np.ndarray:
        path, at = tensor.spec.path, tensor.at
        arrays, base = _read(sources, tensor)
        prepared = pooled[tensor.name] if pooled else method.prepare(arrays, base)

        def here(values: np.ndarray, per_model: bool) -> np.ndarray:
            row = np.asarray(values[at] if at else values)
            return row[: len(arrays)] if per_model else row

        own = {p.name: here(coefficients[path][p.name], p.per_model) for p in method.parameters}
        array = np.asarray(kernel(arrays, base, own, prepared, here(keys[path], True)))
        if path not in kept:
            return array
        rows, values = kept[path]
        array = array.copy()  # JAX's own may not be written
        array[rows] = values.astype(array.dtype)
        return array

    return merged


def eyes_of(sources: Sources, eyes: Sequence[ParamSpec]) -> dict[str, np.ndarray]:
    """{path: leaf} of tower and projector as they will be in the folder: merged, or carried along."""
    found, merged = dict[str, np.ndarray](), merging(sources, sources.coefficients)
    of_leaf, carrier = by_leaf(sources.tensors), sources.carrier
    assert carrier is not None
    for spec in eyes:
        tensors = of_leaf.get(spec)
        stored = map(merged, tensors) if tensors else map(carrier.tensor, spec.names())
        found[spec.path] = np.stack([*stored]).reshape(spec.leaf_shape)
    return found


def write_beside_weights(folder: Path, sources: Sources) -> None:
    """The merged model's tokenizer, chat template and generation config."""
    if sources.alignment is None:
        copy_tokenizer(folder, sources.lender)
    else:
        write_tokenizer(folder, sources.alignment)
    if (path := folder / "generation_config.json").exists():
        values = read_json(path)
        if (told := values | sources.special_ids(values)) != values:
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    copy_processor(folder, sources.frame)
    if sources.templates is not None:
        write_chat_templates(folder, sources.templates)


def write_hollow(folder: Path, sources: Sources) -> None:
    """The merged model as a new `folder` whose weights are holes: enough to check what is to be made of it."""
    if sources.assembly is not None:
        sources.assembly.check(folder)
        if folder.suffix != SUFFIX:
            folder.mkdir()
        sources.assembly.write(folder, sources.dtype, None, "")
        return
    folder.mkdir()
    if isinstance(sources.like, OrbaxTree):
        sources.like.write(folder, sources.dtype, lambda name: None)
        return
    if sources.recipe.adapter is not None:
        merge_adapter(folder, sources)
        return
    write_model(folder, sources.files, sources.specs, sources.dtype, None, frame=sources.frame)
    write_beside_weights(folder, sources)


def ahead(
    work: Callable[[Tensor], np.ndarray], tensors: Sequence[Tensor], sizes: Sequence[int]
) -> Iterator[np.ndarray]:
    """`work` of every tensor in order, done for as many at once as are together no larger than the largest."""
    room, begun = max(sizes), 0
    running: collections.deque[concurrent.futures.Future[np.ndarray]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for size in sizes:
            while begun < len(tensors) and sizes[begun] <= room:
                running.append(pool.submit(work, tensors[begun]))
                room -= sizes[begun]
                begun += 1
            yield running.popleft().result()
            room += size


def _read(sources: Sources, tensor: Tensor) -> tuple[list[jax.Array], jax.Array | None]:
    arrays, base = sources.read(tensor)
    return [jax.device_put(a) for a in arrays], None if base is None else jax.device_put(base)
