"""Merge methods by name."""

from __future__ import annotations

import difflib

from jevomerge.errors import InputError
from jevomerge.merge.linear import LINEAR
from jevomerge.merge.method import MergeMethod
from jevomerge.merge.slerp import SLERP
from jevomerge.merge.task_arithmetic import (
    DARE_LINEAR,
    DARE_LINEAR_PAPER,
    DARE_TIES,
    DARE_TIES_PAPER,
    TASK_ARITHMETIC,
    TIES,
    TIES_PAPER,
)

SEMANTICS = ("mergekit", "paper")
MERGEKIT = {m.name: m for m in (LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES)}
PAPER = MERGEKIT | {m.name: m for m in (TIES_PAPER, DARE_LINEAR_PAPER, DARE_TIES_PAPER)}


def get_method(name: str, semantics: str = "mergekit") -> MergeMethod:
    """The merge method `name`, where paper and mergekit differ as `semantics` says."""
    if semantics not in SEMANTICS:
        raise InputError(f"semantics: `{semantics}` is not one of {', '.join(SEMANTICS)}")
    methods = MERGEKIT if semantics == "mergekit" else PAPER
    if name not in methods:
        close = difflib.get_close_matches(name, methods, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(methods)}"
        raise InputError(f"merge_method: `{name}` is not known; {hint}")
    return methods[name]
