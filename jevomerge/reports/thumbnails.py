"""Pictures as a page shows them: small, in heldout.json at the examples that the page lists."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jevomerge.fitness.task import Material
from jevomerge.fitness.tasks import AnyTask
from jevomerge.models.vision.pictures import as_small_jpeg, open_picture
from jevomerge.reports.heldout import wins_and_losses

MOST = 4  # pictures of an example


def with_thumbnails(
    heldout: Mapping[str, Any], tasks: Sequence[AnyTask], material: Mapping[str, Material]
) -> dict[str, Any]:
    """heldout.json with `pictures` at the examples that are won and lost, each a JPEG in base64.

    `material`: of the held-out split.
    """
    examples = {name: [dict(row) for row in rows] for name, rows in heldout["examples"].items()}
    for task in tasks:
        documents = material[task.name].documents
        cases = wins_and_losses(heldout, task) if any(d.pictures for d in documents) else None
        for case in (*cases.won, *cases.lost) if cases else ():
            pictures = documents[case.number].pictures
            if small := [base64.b64encode(thumbnail(p.content, p.name)).decode() for p in pictures[:MOST]]:
                examples[task.name][case.number]["pictures"] = small
    return {**heldout, "examples": examples}


def thumbnail(content: bytes, name: str) -> bytes:
    """A picture as a small JPEG."""
    return as_small_jpeg(open_picture(content, name))
