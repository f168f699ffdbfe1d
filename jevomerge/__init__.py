"""Evolutionary model merging as pure JAX.

    import jevomerge as jm

    sources = jm.Sources(jm.read_recipe("recipe.yaml"))       # opened and checked, no weight read
    merge = jm.Merge(sources.method, sources.dtype)
    bank = jm.make_bank(merge, sources.specs, *sources.load(), sources.keys())
    params = jax.jit(jm.build, static_argnums=0)(merge, bank, sources.coefficients)
    hidden, _ = jm.apply(params, sources.model, tokens, valid)

Each command is a function: `jm.plan("run.yaml")` returns what `jevomerge plan run.yaml` prints. Recipes and runs may
also be given as the mappings that their files would hold.

Names are imported when they are first used, so that `jevomerge --help` does not wait for JAX; editors and type checkers
read `__init__.pyi`.
"""

import importlib
from typing import Any

_HOME = {
    "jevomerge.checkpoint.source": ("Checkpoint",),
    "jevomerge.config": ("read_config", "read_run"),
    "jevomerge.errors": ("InputError",),
    "jevomerge.fitness.judge": ("Judge", "make_judge"),
    "jevomerge.fitness.ready": ("make_ready",),
    "jevomerge.fitness.tasks": ("read_tasks",),
    "jevomerge.genome.space": ("Space", "express", "make_space"),
    "jevomerge.methods.bank": ("Bank", "Merge", "build", "in_scan", "make_bank"),
    "jevomerge.methods.method": ("MergeMethod", "Parameter"),
    "jevomerge.methods.registry": ("get_method", "register"),
    "jevomerge.methods.trees": ("merge",),
    "jevomerge.models.model": ("apply", "unembed"),
    "jevomerge.models.own": ("own_model",),
    "jevomerge.observers.terminal": ("Terminal",),
    "jevomerge.recipe.schema": ("read_recipe",),
    "jevomerge.recipe.sources": ("Sources",),
    "jevomerge.recipe.to_folder": ("merge_to_folder",),
    "jevomerge.recipe.write": ("write_recipe",),
    "jevomerge.run.card": ("card",),
    "jevomerge.run.compare": ("compare",),
    "jevomerge.run.evaluate": ("evaluate",),
    "jevomerge.run.evolve": ("evolve",),
    "jevomerge.run.result": ("Result",),
    "jevomerge.run.export": ("export",),
    "jevomerge.run.generate": ("generate",),
    "jevomerge.run.init": ("init",),
    "jevomerge.run.merge": ("explain", "merge_folder"),
    "jevomerge.run.plan": ("plan",),
    "jevomerge.run.push": ("push",),
    "jevomerge.run.report": ("report", "watch"),
    "jevomerge.run.translate": ("translate",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """The public name, from the module it lives in."""
    if name not in _MODULE:
        raise AttributeError(f"module 'jevomerge' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
