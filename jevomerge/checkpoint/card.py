"""The model card of a merged model: where it comes from, under which licence, how it scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from jevomerge.checkpoint.source import Source

# How much a licence forbids: a merge is bound by the most restrictive of its sources' licences.
# 0 nearly nothing, 1 share alike, 2 its own terms of use, 3 no commercial use.
RESTRICTION = {
    **dict.fromkeys(("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0", "cc-by-4.0"), 0),
    **dict.fromkeys(("cc-by-sa-4.0", "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0", "fair-ai-public-license-1.0-sd"), 1),
    **dict.fromkeys(("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"), 2),
    **dict.fromkeys(("openrail", "openrail++", "creativeml-openrail-m", "stabilityai-ai-community"), 2),
    **dict.fromkeys(("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"), 3),
    **dict.fromkeys(("sai-nc-community", "flux-1-dev-non-commercial-license"), 3),
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


def verbatim(text: str) -> str:
    """A name as Markdown that shows it as it is: in backticks unless it is of letters, digits and a few marks."""
    text = " ".join(text.split())
    if re.fullmatch(r"(?!www)\w+([ ./+-]{1,3}\w+)*", text) and not re.search(r"(^|[ ./+-])_|_([ ./+-]|$)|www\.", text):
        return text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def escaped(text: str) -> str:
    """A sentence as Markdown that shows it as it is, whatever names are in it."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", text)


def row(*cells: str) -> str:
    """A line of a table; a bar would end a cell even in backticks."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


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
    library: str = "transformers",
) -> str:
    """The text of README.md: front matter, scores and notes, sources with their licences, and the recipe as YAML."""
    # A model that occurs with several adapters is listed once.
    origins = list(dict.fromkeys(origin for source in sources for origin in source.origins()))
    front: dict[str, Any] = {
        "license": merged_licence([licence for _, licence in origins]),
        "base_model": [origin for origin, _ in origins],
        "library_name": library,
        "tags": ["merge", "jevomerge"],
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {verbatim(title)}", ""]
    lines += ["Merged with jevomerge.", ""]
    if scores:
        columns = list(next(iter(scores.values())))
        lines += [row("model", *map(verbatim, columns)), "|---" * (len(columns) + 1) + "|"]
        lines += [row(verbatim(name), *(f"{values[c]:.4f}" for c in columns)) for name, values in scores.items()]
        lines += [""]
    lines += [line for note in notes for line in (escaped(note), "")]
    lines += ["| source | licence |", "|---|---|"]
    lines += [row(verbatim(origin), verbatim(licence or "not stated")) for origin, licence in origins]
    if front["license"] == "other":
        lines += ["", "The sources' licences differ or are not all known: all of them apply, read each."]
    lines += ["", "Recipe (`jevomerge merge recipe.yaml OUT` makes the same weights):", ""]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
    return "\n".join([*lines, f"{fence}yaml", recipe.strip(), fence, ""])
