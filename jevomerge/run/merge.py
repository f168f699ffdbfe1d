"""`jevomerge merge`: merge models by a fixed recipe.

Of a recipe of several documents the result of each is a model for those that follow. Before a weight is read every
document is rehearsed: models of the right shape whose files are holes stand in for the results of earlier ones, so that
the last one's mistakes are found before the first one's work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.export import refuse_existing, scratch_folder
from jevomerge.checkpoint.files import expanded
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.recipe.schema import Recipe, read_stages, seen_from
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_adapter import WRITTEN
from jevomerge.recipe.to_folder import merge_to_folder, write_hollow
from jevomerge.recipe.write import explain as explain_sources
from jevomerge.recipe.write import write_recipe
from jevomerge.schema import Given


def merge_folder(
    recipe: Given | Sequence[Mapping[str, Any]] | Recipe,
    out: str | Path,
    *,
    seed: int | None = None,
    shard_bytes: int | None = None,
    observer: Observer = SILENT,
) -> Path:
    """Merge by a recipe, one tensor in memory at a time; of several documents only the last one's result is kept.

    Args:
        recipe: mergekit's YAML, or what it holds: a mapping, or of several documents a list of them.
        out: the folder to write; it must not exist.
        seed: of random masks, instead of the recipe's.
        shard_bytes: how large a file of weights may be, unless one tensor is larger; None: 5 GB.
        observer: is told notes and how far the merge is.

    Returns:
        the folder.

    Raises:
        InputError: for whatever is wrong with the recipe or its models, before anything is written.
    """
    stages, out = read_stages(recipe), expanded(out)
    refuse_existing(out)
    if seed is not None:
        stages = [stage.model_copy(update={"seed": seed}) for stage in stages]
    for sources in rehearse(stages):
        for note in sources.notes:
            observer.note(note)
    if len(stages) == 1:
        progress = observer.counter("merged")
        merge_to_folder(sources, sources.coefficients, out, shard_bytes=shard_bytes, progress=progress)
        _told(sources, observer)
        return out
    with scratch_folder(out) as work:
        text = ""
        for stage in stages:
            sources = Sources(stage.with_models(_paths(stages, work)))
            text += "---\n" if text else ""
            called = seen_from(out, {path: name for name, path in _paths(stages, work).items()})
            text += (f"name: {stage.name}\n" if stage.name else "") + write_recipe(
                sources, sources.coefficients, called
            )
            last = stage is stages[-1]
            target = out if last else work / str(stage.name)
            label = stage.name or out.name
            options: dict[str, Any] = {"recipe": text, "title": label, "shard_bytes": shard_bytes}
            progress = observer.counter(f"{label}: merged")
            merge_to_folder(sources, sources.coefficients, target, **options, progress=progress)
            _told(sources, observer)
    return out


def _told(sources: Sources, observer: Observer) -> None:
    """What is known of an adapter when it is written."""
    for note in sources.notes:
        if note.startswith(WRITTEN):
            observer.note(note)


def explain(recipe: Given | Sequence[Mapping[str, Any]] | Recipe) -> list[str]:
    """Which inputs and coefficients `merge_folder` would make each tensor of, without reading a weight."""
    lines, stages = list[str](), read_stages(recipe)
    for stage, sources in zip(stages, rehearse(stages), strict=True):
        lines += [f"--- {stage.name or 'result'}"] if len(stages) > 1 else []
        lines += [f"note: {note}" for note in sources.notes]
        lines += explain_sources(sources)
    return lines


def rehearse(stages: Sequence[Recipe]) -> Iterator[Sources]:
    """The stages' sources, opened and checked; of earlier stages' results there are only headers."""
    with tempfile.TemporaryDirectory(prefix="jevomerge-") as work:
        paths = _paths(stages, Path(work))
        for stage in stages:
            sources = Sources(stage.with_models(paths))
            if stage is not stages[-1]:
                write_hollow(Path(paths[str(stage.name)]), sources)
            yield sources


def _paths(stages: Sequence[Recipe], folder: Path) -> dict[str, str]:
    return {s.name: str(folder / s.name) for s in stages if s.name is not None}
