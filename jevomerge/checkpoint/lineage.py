"""What was made of what: a source, its licence, and what its model card says that it was made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Origin(NamedTuple):
    """A model or an adapter, as a reader on another machine may know it."""

    name: str
    licence: str | None  # None: not stated
    parents: tuple[Origin, ...] = ()  # what it was made of, as far as cards that are on this machine say

    def all(self) -> Iterator[Origin]:
        """It, and what stands behind it."""
        yield self
        for parent in self.parents:
            yield from parent.all()


def front_matter(folder: Path) -> dict[str, Any]:
    """What a model card says above its text; {} if there is none that can be read."""
    card = folder / "README.md"
    if not card.exists():
        return {}
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:  # the card of somebody else: no reason to stop
        return {}
    return values if isinstance(values, dict) else {}


def parents_of(card: Mapping[str, Any], seen: tuple[str, ...] = ()) -> tuple[Origin, ...]:
    """What a model was made of by its card's front matter, and so on by the cards of the hub's cache; no network."""
    listed = card.get("base_model") or []
    names = [name for name in (listed if isinstance(listed, list) else [listed]) if isinstance(name, str)]
    found = []
    for name in dict.fromkeys(names):
        if name not in seen:  # cards may name each other
            own = _cached_card(name)
            found.append(Origin(name, licence_of(own), parents_of(own, (*seen, name))))
    return tuple(found)


def licence_of(card: Mapping[str, Any]) -> str | None:
    """The licence that a card's front matter names."""
    found = card.get("license")
    if found == "other":  # one that the hub does not list
        found = card.get("license_name") or found
    names = [str(name).strip().lower() for name in (found if isinstance(found, list) else [found]) if name]
    return ", ".join(names) or None


def _cached_card(name: str) -> Mapping[str, Any]:
    """The front matter of a hub model's card, if somebody has downloaded it."""
    from huggingface_hub import try_to_load_from_cache  # imported late: few cards name a hub model
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "README.md")
    except HFValidationError:  # the name of a folder
        return {}
    return front_matter(Path(path).parent) if isinstance(path, str) else {}


def drawing(title: str, origins: Sequence[Origin], judges: Sequence[str] = ()) -> str:
    """The lineage of a model as a picture of text.

    >>> print(drawing("ours", [Origin("a", "mit", (Origin("base", None),)), Origin("b", None)], ["gsm8k: 10 examples"]))
    ours
    ├─ made of a (mit)
    │  └─ made of base (licence not stated)
    ├─ made of b (licence not stated)
    └─ judged by gsm8k: 10 examples
    """

    def branches(origins: Sequence[Origin], judges: Sequence[str], before: str) -> Iterator[str]:
        told = [f"made of {_line(o.name)} ({_line(o.licence or 'licence not stated')})" for o in origins]
        told += [f"judged by {_line(judge)}" for judge in judges]
        for i, text in enumerate(told):
            last = i == len(told) - 1
            yield f"{before}{'└─' if last else '├─'} {text}"
            if i < len(origins):
                yield from branches(origins[i].parents, (), f"{before}{'   ' if last else '│  '}")

    return "\n".join([_line(title), *branches(origins, judges, "")])


def _line(text: str) -> str:
    return " ".join(text.split())
