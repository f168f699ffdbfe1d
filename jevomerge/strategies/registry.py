"""Search strategies for a fitness: by name, those of evosax, those of installed packages, a user's own.

    make_strategy("cma_es", num_genes=6)           # tuned and tested one by one: evosax.METHODS
    make_strategy("MA_ES", num_genes=6)            # any other algorithm that evosax ships, by its class's name
    make_strategy("module:Class", num_genes=6)     # from the Python path, or the name of an entry point
    make_strategy(Class, num_genes=6)              # in Python also the thing itself

What the last three stand for is a class of evosax; an object with ask and tell, see `jevomerge.strategies.own`; or a
class or function that makes either from (num_genes, population_size or None, mean (n,), sigma, seed).
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from evosax.algorithms.base import EvolutionaryAlgorithm
from numpy.typing import ArrayLike

from jevomerge.strategies.evosax import MAX_GENES_FLOAT64, METHODS, SHIPPED, TUNED, Method, make_evosax, method_of
from jevomerge.strategies.own import copies_of, make_own
from jevomerge.strategies.strategy import PARETO, Strategy, checked_settings, on_host

ENTRY_POINTS = "jevomerge.strategies"
_registered: dict[str, Any] = {}


def register(strategy: Any) -> str:
    """Make a class, a function or an object known for as long as this process lives; the name to give in a config.

    A package makes its strategies known for good with an entry point in the group "jevomerge.strategies".
    """
    named = strategy if hasattr(strategy, "__qualname__") else type(strategy)
    name = f"{named.__module__}:{named.__qualname__}"
    _registered[name] = strategy
    return name


def make_strategy(
    strategy: Any,
    num_genes: int,
    population_size: int | None = None,
    mean: ArrayLike = 0.5,
    sigma: float = 1 / 6,
    seed: int = 0,
    *,
    others: Sequence[str] = (),
) -> Strategy:
    """A search strategy over the unit box of `num_genes` dimensions.

    The defaults are the paper's settings (arXiv:2403.13187, Methods) and Optuna's, made for CMA-ES; give DE and PSO 20
    candidates or more, with few they stall.

    Args:
        strategy: a name or the thing itself, see the module.
        num_genes: n.
        population_size: None: 4 + floor(3 ln n), rounded up to even for what draws pairs, or what the user's own wants.
        mean: a number or (n,).
        sigma: with `mean` it gives the first generation, N(mean, sigma^2 I) cut to the box; `random` ignores both.
        seed: for a user's own; all others draw from the keys that they are given.
        others: names that the caller knows, too, for the message about one that nobody knows.

    Raises:
        ValueError: with the remedy, for what cannot work.
    """
    name, found = _found(strategy, others) if isinstance(strategy, str) else (_name_of(strategy), strategy)
    settings = (num_genes, population_size, mean, sigma)
    if isinstance(found, Method):
        return make_evosax(name, found, *settings)
    if isinstance(found, type) and issubclass(found, EvolutionaryAlgorithm):
        name = TUNED.get(found, found.__name__)
        return make_evosax(name, METHODS[name] if found in TUNED else method_of(found), *settings)
    if isinstance(found, EvolutionaryAlgorithm):
        raise ValueError(f"{name}: give evosax's class, or a function that makes one, instead of one that is made")
    if hasattr(found, "ask") and not isinstance(found, type):
        return make_own(name, copies_of(found), num_genes, population_size)
    if not callable(found):
        raise ValueError(f"{name} is no strategy: it has no `ask`, and it cannot be called to make one that does")
    _, center, sigma = checked_settings(name, 1, *settings)

    def make(size: int | None) -> Any:
        try:
            with on_host(x64=num_genes <= MAX_GENES_FLOAT64):
                return found(num_genes, size, center.copy(), sigma, seed)
        except Exception as error:  # of the user's code
            raise ValueError(f"{name} cannot be made: {type(error).__name__}: {error}") from error

    if isinstance(make(population_size), EvolutionaryAlgorithm):
        return make_evosax(name, Method(lambda size, *_: make(size), fewest=2, memory=None), *settings)
    return make_own(name, functools.partial(make, population_size), num_genes, population_size)


def _name_of(strategy: Any) -> str:
    return getattr(strategy, "__name__", type(strategy).__name__)


def _found(name: str, others: Sequence[str]) -> tuple[str, Any]:
    """What a name stands for, and what messages call it. Raises ValueError if it is not known."""
    known: dict[str, Any] = METHODS | SHIPPED | _registered
    if name in known:
        return name, known[name]
    if ":" in name:
        return name, _imported(name)
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return name, entry.load()
    choices = [*others, *METHODS]
    spelt = {k.lower(): k for k in [*SHIPPED, *choices, PARETO]}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), spelt, n=1, cutoff=0.4)
    hint = f"did you mean {spelt[close[0]]!r}? " if close else ""
    what = "strategies over paths" if others else "strategies"
    raise ValueError(
        f"unknown strategy {name!r}: {hint}the {what} are {', '.join(choices)}, and {PARETO} for several goals; any "
        "other class of evosax.algorithms; and your own as module:Class"
    )


def _imported(name: str) -> Any:
    """What `module:name` stands for. Raises ValueError if there is no such thing."""
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except Exception as error:  # of the user's code
        raise ValueError(f"strategy {name!r} cannot be imported: {error}; is its folder on the PYTHONPATH?") from error
