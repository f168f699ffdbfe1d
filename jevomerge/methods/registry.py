"""Merge methods by name: the built-in ones, those of installed packages, those registered by hand."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from jevomerge.errors import InputError
from jevomerge.methods.fusion import ARCEE_FUSION, NEARSWAP
from jevomerge.methods.linear import LINEAR, PASSTHROUGH
from jevomerge.methods.method import MergeMethod
from jevomerge.methods.model_stock import MODEL_STOCK
from jevomerge.methods.ram import RAM, RAMPLUS_TL
from jevomerge.methods.sce import SCE, SCE_PAPER
from jevomerge.methods.schema import SEMANTICS
from jevomerge.methods.spherical import KARCHER, MULTISLERP, NUSLERP, SLERP
from jevomerge.methods.task_arithmetic import (
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DARE_LINEAR,
    DARE_LINEAR_PAPER,
    DARE_TIES,
    DARE_TIES_PAPER,
    DARE_TIES_PEFT,
    DELLA,
    DELLA_LINEAR,
    DELLA_LINEAR_PAPER,
    DELLA_PAPER,
    MAGNITUDE_PRUNE,
    TASK_ARITHMETIC,
    TIES,
    TIES_PAPER,
    TIES_PEFT,
)

_MERGEKIT = (
    *(
        LINEAR,
        SLERP,
        NUSLERP,
        MULTISLERP,
        KARCHER,
        PASSTHROUGH,
        MODEL_STOCK,
        ARCEE_FUSION,
        NEARSWAP,
        SCE,
        RAM,
        RAMPLUS_TL,
    ),
    *(TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES, BREADCRUMBS, BREADCRUMBS_TIES, DELLA, DELLA_LINEAR),
)
_PAPER = (TIES_PAPER, DARE_LINEAR_PAPER, DARE_TIES_PAPER, DELLA_PAPER, DELLA_LINEAR_PAPER, SCE_PAPER)
MERGEKIT = {m.name: m for m in _MERGEKIT}
PAPER = MERGEKIT | {m.name: m for m in _PAPER}
PEFT = MERGEKIT | {m.name: m for m in (TIES_PEFT, DARE_LINEAR_PAPER, DARE_TIES_PEFT, MAGNITUDE_PRUNE)}
TABLES = dict(zip(SEMANTICS, (MERGEKIT, PAPER, PEFT), strict=True))

ENTRY_POINTS = "jevomerge.merge_methods"
_registered: dict[str, MergeMethod] = {}


def register(method: MergeMethod) -> MergeMethod:
    """Make `method` known to recipes by its name, for as long as this process lives, and return it.

    A package makes its methods known for good with an entry point in the group "jevomerge.merge_methods" whose
    name is the method's.

    Raises:
        ValueError: if another method has that name.
    """
    if (PEFT | MERGEKIT | _registered).get(method.name, method) is not method:
        raise ValueError(f"there is a merge method {method.name!r} already")
    _registered[method.name] = method
    return method


def get_method(name: str, semantics: str = "mergekit") -> MergeMethod:
    """The merge method `name`, where mergekit, papers and PEFT differ as `semantics` says."""
    if semantics not in SEMANTICS:
        raise InputError(f"semantics: `{semantics}` is not one of {', '.join(SEMANTICS)}")
    methods = TABLES[semantics] | _registered
    if name not in methods:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            return register(entry.load())
        close = difflib.get_close_matches(name, methods, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(methods)}"
        raise InputError(f"`{name}` is not known; {hint}")
    return methods[name]
