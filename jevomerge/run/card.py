"""`jevomerge card`: write the model card of a run's result, and its bill of materials, again."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from jevomerge.checkpoint.bom import BOM, CARD
from jevomerge.checkpoint.card import write_card
from jevomerge.checkpoint.files import expanded, read_json
from jevomerge.config import read_run
from jevomerge.errors import InputError
from jevomerge.recipe.to_folder import credited
from jevomerge.reports.verdict import scoring_of
from jevomerge.search.records import read_heldout, read_outcome
from jevomerge.search.setup import set_up


def card(run: str | Path) -> Path:
    """Write README.md and bom.cdx.json of RUN/best again: for what its sources' cards say by now.

    Args:
        run: the folder of a finished run, whose models and data are still there.

    Returns:
        README.md.

    Raises:
        InputError: for a run that is not finished, and for a card that somebody has changed.
    """
    run = expanded(run)
    if not (run / "config.yaml").exists():
        raise InputError(f"{run} is not a run folder: it has no config.yaml; give one that `jevomerge evolve` wrote")
    outcome, heldout = read_outcome(run), read_heldout(run)
    if outcome is None or heldout is None:
        raise InputError(f"{run} is not finished; continue it with `jevomerge evolve --resume {run}`")
    folder = run / outcome["export"]
    refuse_changed(folder)
    config = read_run(run / "config.yaml")
    setup = set_up(config)
    examples = {name: len(material.documents) for name, material in setup.judge.material["search"].items()}
    told = scoring_of(heldout, config.tasks, examples, outcome["notes"])
    source = outcome["best"].get("source")
    title = f"{config.name}: " + (setup.problem.title if source is None else f"{source}, as no candidate was better")
    merge = setup.problem.sources if source is None else setup.problem.merge_of(source)
    made_of, library = setup.problem.checkpoints, "transformers"
    if merge is not None and not (folder / "path.txt").exists():
        made_of, library = credited(merge)
    write_card(folder, title, recipe_of(folder), made_of, library, told, () if merge is None else merge.carried)
    return folder / "README.md"


def recipe_of(folder: Path) -> str:
    """By which a model was merged, or the hops of its path."""
    if (recipe := folder / "recipe.yaml").exists():
        return recipe.read_text(encoding="utf-8")
    hops = (folder / "path.txt").read_text(encoding="utf-8")
    return f"# model:layer and the scale of its input, hop by hop\n{hops}"


def refuse_changed(folder: Path) -> None:
    """Raise InputError unless a folder's card is as it was written."""
    path = folder / "README.md"
    if path.exists() and written(folder) not in (None, sha256(path.read_bytes()).hexdigest()):
        raise InputError(f"{path} was changed since it was written, and is not overwritten; move it away first")


def written(folder: Path) -> str | None:
    """The digest of the card that was written into a folder; None: by a version that did not write it down."""
    if not (folder / BOM).exists():
        return None
    properties: list[dict[str, Any]] = read_json(folder / BOM)["metadata"]["component"]["properties"]
    return next((p["value"] for p in properties if p["name"] == CARD), None)
