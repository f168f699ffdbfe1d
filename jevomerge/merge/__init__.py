"""Merging as pure functions: sources and coefficients in, one model out."""

from jevomerge.merge.bank import Bank, Merge, abstract_bank, build, in_scan, make_bank, merge_tensor
from jevomerge.merge.method import MergeMethod, Parameter
from jevomerge.merge.registry import get_method, register

__all__ = [
    "Bank",
    "Merge",
    "MergeMethod",
    "Parameter",
    "abstract_bank",
    "build",
    "get_method",
    "in_scan",
    "make_bank",
    "merge_tensor",
    "register",
]
