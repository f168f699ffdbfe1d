"""The model card of a merged model: where it comes from, under which licence, how it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from jevomerge.checkpoint.source import Source

# How much a licence forbids: a merge is bound by the most restrictive of its sources' licences.
# 0 nearly nothing, 1 share alike, 2 its own terms of use, 3 no commercial use.
RESTRICTION = {
    **dict.fromkeys(("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0", "cc-by-4.0"), 0),
    **dict.fromkeys(("cc-by-sa-4.0", "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0"), 1),
    **dict.fromkeys(("openrail", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"), 2),
    **dict.fromkeys(("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"), 3),
}
PERMISSIVE = ("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "apache-2.0")


def merged_licence(licences: Sequence[str | None]) -> str:
    """The licence of a merge: the most restrictive one, "other" if that is unknown or not a single one."""
    known = [licence for licence in licences if licence in RESTRICTION]
    if len(known) < len(licences):
        return "other"
    level = max(RESTRICTION[licence] for licence in known)
    strictest = {licence for licence in known if RESTRICTION[licence] == level}
    if level == 0:  # all can be combined; name the one with the most conditions
        return max(strictest, key=PERMISSIVE.index)
    return strictest.pop() if len(strictest) == 1 else "other"


class Scoring(NamedTuple):
    """What a card says of how good a model is."""

    scores: Mapping[str, Mapping[str, float]]  # {model: {column: score}}
    notes: Sequence[str] = ()  # sentences


def model_card(
    title: str,
    recipe: str,
    sources: Sequence[Source],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md: front matter, scores and notes, sources with their licences, and the recipe as YAML."""
    # A model that occurs with several adapters is listed once.
    origins = list(dict.fromkeys(origin for source in sources for origin in source.origins()))
    front: dict[str, Any] = {
        "license": merged_licence([licence for _, licence in origins]),
        "base_model": [origin for origin, _ in origins],
        "library_name": "transformers",
        "tags": ["merge", "jevomerge"],
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines += ["Merged with jevomerge.", ""]
    if scores:
        columns = list(next(iter(scores.values())))
        lines += ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(f"{row[c]:.4f}" for c in columns) + " |" for name, row in scores.items()]
        lines += [""]
    lines += [line for note in notes for line in (note, "")]
    lines += ["| source | licence |", "|---|---|"]
    lines += [f"| {origin} | {licence or 'not stated'} |" for origin, licence in origins]
    if front["license"] == "other":
        lines += ["", "The sources' licences differ or are not all known: all of them apply, read each."]
    lines += ["", "Recipe (`jevomerge merge recipe.yaml OUT` makes the same weights):", "", "```yaml"]
    return "\n".join([*lines, recipe.strip(), "```", ""])
