"""What licences ask of whoever passes a merged model on: the duties of all its sources add up.

A reading aid, no legal advice: licences that are not in the table are said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# What a licence may ask for, as a card says it.
DUTIES = {
    "notice": "keep the copyright notices and a copy of the licence",
    "attribution": "name the authors",
    "changes": "say that it was changed",
    "terms": "pass the licence's own terms on",
    "use": "pass the restrictions of use on, and keep them",
    "llama": "begin its name with `Llama`, and say `Built with Llama`",
    "stability": "say `Powered by Stability AI`; above a yearly revenue, buy a licence",
    "share_alike": "share it under the same licence",
    "non_commercial": "no commercial use",
    "no_derivatives": "pass on no changed version, which a merge is",
}


class Licence(NamedTuple):
    """What is known of a licence."""

    restriction: int  # 0 nearly nothing, 1 share alike, 2 its own terms of use, 3 no commercial use
    duties: tuple[str, ...] = ()  # of DUTIES


_BSD, _GPL, _RAIL = Licence(0, ("notice",)), Licence(1, ("notice", "share_alike")), Licence(2, ("use",))
_LLAMA = Licence(2, ("notice", "terms", "use", "llama"))
_BY = ("attribution", "changes")
LICENCES = {
    **dict.fromkeys(("cc0-1.0", "unlicense"), Licence(0)),
    **dict.fromkeys(("mit", "bsd-2-clause", "bsd-3-clause"), _BSD),
    "cc-by-4.0": Licence(0, _BY),
    "apache-2.0": Licence(0, ("notice", "changes")),
    **dict.fromkeys(("mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0", "fair-ai-public-license-1.0-sd"), _GPL),
    "cc-by-sa-4.0": Licence(1, (*_BY, "share_alike")),
    "llama2": Licence(2, ("notice", "terms", "use")),
    **dict.fromkeys(("llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"), _LLAMA),
    "gemma": Licence(2, ("changes", "terms", "use")),
    **dict.fromkeys(("openrail", "openrail++", "creativeml-openrail-m", "bigcode-openrail-m"), _RAIL),
    "stabilityai-ai-community": Licence(2, ("notice", "terms", "use", "stability")),
    "cc-by-nc-4.0": Licence(3, (*_BY, "non_commercial")),
    "cc-by-nc-sa-4.0": Licence(3, (*_BY, "share_alike", "non_commercial")),
    "cc-by-nc-nd-4.0": Licence(3, (*_BY, "non_commercial", "no_derivatives")),
    "cc-by-nd-4.0": Licence(3, (*_BY, "no_derivatives")),
    **dict.fromkeys(("sai-nc-community", "flux-1-dev-non-commercial-license"), Licence(3, ("use", "non_commercial"))),
}


def merged_licence(licences: Sequence[str | None]) -> str:
    """The licence of a merge: the most restrictive one, "other" if that is unknown or not a single one."""
    known = [licence for licence in licences if licence in LICENCES]
    if len(known) < len(licences):
        return "other"
    level = max(LICENCES[licence].restriction for licence in known)
    strictest = {licence for licence in known if LICENCES[licence].restriction == level}
    if level == 0:  # all can be combined; name the one with the most conditions
        return max(strictest, key=list(LICENCES).index)
    return strictest.pop() if len(strictest) == 1 else "other"


def duties(licences: Iterable[str | None]) -> dict[str, list[str]]:
    """{duty: the licences that ask for it}, in the order of DUTIES."""
    known = sorted({licence for licence in licences if licence in LICENCES})
    asked = {duty: [licence for licence in known if duty in LICENCES[licence].duties] for duty in DUTIES}
    return {duty: by for duty, by in asked.items() if by}


def obstacles(licences: Mapping[str, str | None], name: str = "") -> list[str]:
    """Why a merge of these sources, {name: licence}, may not be passed on under a name; [] if nothing is known.

    >>> obstacles({"a": "cc-by-nc-nd-4.0", "b": "llama3.1"}, "my-merge")
    ['cc-by-nc-nd-4.0 (a) allows no changed version', 'llama3.1 (b) asks for a name that begins with `Llama`']
    """
    asked = duties(licences.values())

    def whose(duty: str) -> str:
        named = {licence: [n for n, own in licences.items() if own == licence] for licence in asked[duty]}
        return ", ".join(f"{licence} ({', '.join(names)})" for licence, names in named.items())

    found = []
    if "no_derivatives" in asked:
        found.append(f"{whose('no_derivatives')} allows no changed version")
    if "llama" in asked and not name.rpartition("/")[2].startswith("Llama"):
        found.append(f"{whose('llama')} asks for a name that begins with `Llama`")
    if len(asked.get("share_alike", ())) > 1:
        found.append(f"{whose('share_alike')} each ask for their own licence, and it can have but one")
    return found
