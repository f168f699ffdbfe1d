"""Evolutionary model merging as pure JAX.

    import jevomerge as jm

    sources = jm.Sources(jm.read_recipe("recipe.yaml"))       # opened and checked, no weight read
    merge = jm.Merge(sources.method, sources.dtype)
    bank = jm.make_bank(merge, sources.specs, *sources.load(), sources.keys())
    params = jax.jit(jm.build, static_argnums=0)(merge, bank, sources.numbers)
    hidden, _ = jm.apply(params, sources.config, tokens, valid)

Names are imported when they are first used, so that `jevomerge --help` does not wait for JAX.
"""

import importlib
from typing import Any

_HOME = {
    "jevomerge.checkpoint": ("Checkpoint",),
    "jevomerge.config": ("read_run",),
    "jevomerge.errors": ("InputError",),
    "jevomerge.evolve.run": ("evolve",),
    "jevomerge.fitness.judge": ("Judge",),
    "jevomerge.fitness.schema": ("read_task",),
    "jevomerge.genome": ("Space", "express", "make_space"),
    "jevomerge.merge": ("Bank", "Merge", "build", "in_scan", "make_bank"),
    "jevomerge.merge.method": ("MergeMethod", "Parameter"),
    "jevomerge.merge.registry": ("get_method", "register"),
    "jevomerge.models": ("apply", "unembed"),
    "jevomerge.recipe": ("Sources", "read_recipe", "write_recipe"),
    "jevomerge.stream": ("merge_to_folder",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """The public name, from the module it lives in."""
    if name not in _MODULE:
        raise AttributeError(f"module 'jevomerge' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)
