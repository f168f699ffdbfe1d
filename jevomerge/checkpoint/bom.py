"""The bill of materials of a merged model for programs: CycloneDX 1.6 (an ML-BOM; ECMA-424)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from jevomerge.checkpoint.licences import merged_licence
from jevomerge.checkpoint.lineage import Origin
from jevomerge.checkpoint.scoring import THIS, Score, Scoring

BOM = "bom.cdx.json"
CARD = "jevomerge:README.md"  # property: the digest of the card that was written with it
SPDX = {  # the hub's names of licences -> SPDX's, where these are others
    "mit": "MIT", "apache-2.0": "Apache-2.0", "cc0-1.0": "CC0-1.0", "unlicense": "Unlicense",
    "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "mpl-2.0": "MPL-2.0",
    "lgpl-3.0": "LGPL-3.0-only", "gpl-3.0": "GPL-3.0-only", "agpl-3.0": "AGPL-3.0-only",
    "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0", "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
}  # fmt: skip


def bill_of_materials(title: str, origins: Sequence[Origin], scoring: Scoring, card: str) -> dict[str, Any]:
    """The model, what it was made of, what judged it and what it scores; `card`: the text of its README.md."""
    sha = hashlib.sha256(card.encode()).hexdigest()
    data = [
        {
            "type": "data",
            "bom-ref": f"data:{judge.name}",
            "name": judge.name,
            "data": [
                {"type": "dataset", "name": judge.name, **({"classification": "private"} if judge.private else {})}
            ],
            "description": str(judge),
        }
        for judge in scoring.judges
    ]
    own = scoring.scores.get(THIS, {})
    metrics = [
        {
            "type": "fitness",
            "value": f"{score.value:.6g}",
            "slice": column,
            **({} if score.low is None else {"confidenceInterval": _bounds(score)}),
        }
        for column, score in own.items()
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{title}",
        "name": title,
        "licenses": _licences(merged_licence([origin.licence for origin in origins])),
        "pedigree": {"ancestors": [_component(origin) for origin in origins], "notes": "merged without training"},
        "modelCard": {
            "modelParameters": {"datasets": [{"ref": part["bom-ref"]} for part in data]},
            **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        },
        "properties": [{"name": CARD, "value": sha}],
    }
    tool = {"type": "application", "name": "jevomerge", "version": version("jevomerge")}
    refs = [f"source:{origin.name}" for origin in origins]
    sources = [_component(origin) | {"bom-ref": ref} for origin, ref in zip(origins, refs, strict=True)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(sha[:32], version=4)}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": model},
        "components": [*sources, *data],
        "dependencies": [{"ref": f"model:{title}", "dependsOn": [*refs, *(part["bom-ref"] for part in data)]}],
    }


def licences_of(materials: Any) -> dict[str, str | None]:
    """{source: its licence} of a bill that was written here."""
    models = [c for c in materials["components"] if c["type"] == "machine-learning-model"]
    return {c["name"]: next((_called(entry["license"]) for entry in c.get("licenses", ())), None) for c in models}


def _bounds(score: Score) -> dict[str, str]:
    return {"lowerBound": f"{score.low:.6g}", "upperBound": f"{score.high:.6g}"}


def _component(origin: Origin) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "machine-learning-model", "name": origin.name}
    if origin.licence is not None:
        found["licenses"] = _licences(origin.licence)
    if origin.parents:
        found["pedigree"] = {"ancestors": [_component(parent) for parent in origin.parents]}
    return found


def _licences(name: str) -> list[dict[str, Any]]:
    return [{"license": {"id": SPDX[name]} if name in SPDX else {"name": name}}]


def _called(licence: Any) -> str:
    """The hub's name."""
    back = {spdx: name for name, spdx in SPDX.items()}
    found: str = back[licence["id"]] if "id" in licence else licence["name"]
    return found
