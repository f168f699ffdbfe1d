"""Recipes of several documents: the result of each is a model for those that follow.

Before a weight is read every stage is rehearsed: models of the right shape whose files are holes stand in for
the results of earlier stages, so that the last stage's mistakes are found before the first one's work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jevomerge.checkpoint.export import refuse_existing, scratch_folder
from jevomerge.console import Terminal
from jevomerge.recipe import Recipe, Sources, explain, write_recipe
from jevomerge.stream import merge_to_folder, write_hollow


def merge_stages(stages: Sequence[Recipe], out: str | Path, terminal: Terminal) -> None:
    """Merge by each recipe in turn; only the last one's result is kept, as the folder `out`."""
    out = Path(out)
    refuse_existing(out)
    for sources in rehearse(stages):
        for note in sources.notes:
            terminal.note(note)
    if len(stages) == 1:
        merge_to_folder(sources, sources.numbers, out, progress=terminal.tensors("merged"))
        return
    with scratch_folder(out) as work:
        text = ""
        for stage in stages:
            sources = Sources(stage.with_models(_paths(stages, work)))
            text += "---\n" if text else ""
            text += (f"name: {stage.name}\n" if stage.name else "") + write_recipe(sources, sources.numbers)
            for name, path in _paths(stages, work).items():
                text = text.replace(path, name)
            last = stage is stages[-1]
            target = out if last else work / str(stage.name)
            label = stage.name or out.name
            progress = terminal.tensors(f"{label}: merged")
            merge_to_folder(sources, sources.numbers, target, recipe=text, title=label, progress=progress)


def explain_stages(stages: Sequence[Recipe]) -> Iterator[str]:
    """What `merge_stages` would do, without reading a weight."""
    for stage, sources in zip(stages, rehearse(stages), strict=True):
        if len(stages) > 1:
            yield f"--- {stage.name or 'result'}"
        yield from (f"note: {note}" for note in sources.notes)
        yield from explain(sources)


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
