"""The table of jevomerge/strategies/README.md: every algorithm that evosax ships, here and in a loop of evosax alone.

    python experiments/shipped_strategies/run.py

Sphere of 6 genes about linspace(0.25, 0.75, 6), population 10, mean 0.5, sigma 1/6, 300 evaluations, 10 seeds: the
geometric mean of the least losses. Evosax's own loop is told the losses, has the same width and optimizer, and no box.
"""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import known, make_parser, record
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from scipy.stats import gmean

from jevomerge.strategies.evosax import REFUSED, SHIPPED
from jevomerge.strategies.registry import make_strategy
from jevomerge.strategies.strategy import Strategy, on_host

GENES, SIZE, SIGMA, SEEDS, GENERATIONS = 6, 10, 1 / 6, range(10), 30


def loss(x: np.ndarray) -> np.ndarray:
    return np.sum((np.asarray(x) - np.linspace(0.25, 0.75, GENES)) ** 2, axis=-1)


def ours(strategy: Strategy, seed: int) -> float:
    key, best = jax.random.key(seed), np.inf
    state = strategy.init(key)
    for generation in range(GENERATIONS):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        state = strategy.tell(keys[1], state, population, -loss(population))
        best = min(best, loss(population).min())
    return best


def evosax_alone(name: str) -> Any:
    """The algorithm, with the width and optimizer that it has here."""
    options, chosen = inspect.signature(SHIPPED[name]).parameters, {}
    if "std_schedule" in options:
        chosen["std_schedule"] = optax.constant_schedule(SIGMA)
        if "optimizer" in options:
            chosen["optimizer"] = optax.adam(SIGMA / 10)
    if "sampling_fn" in options:
        chosen["sampling_fn"] = lambda key: jax.random.uniform(key, (GENES,))
    return SHIPPED[name](SIZE, jnp.full(GENES, 0.5), **chosen)


def theirs(algorithm: Any, seed: int) -> float:
    params, losses, key = algorithm.default_params, [], jax.random.key(seed)
    params = params.replace(std_init=jnp.asarray(SIGMA)) if hasattr(params, "std_init") else params
    if isinstance(algorithm, PopulationBasedAlgorithm):
        population = 0.5 + SIGMA * jax.random.normal(key, (SIZE, GENES))
        losses.append(loss(population))
        state = algorithm.init(key, population, jnp.asarray(losses[0]), params)
    else:
        state = algorithm.init(key, jnp.full(GENES, 0.5), params)
    while len(losses) < GENERATIONS:
        keys = jax.random.split(jax.random.fold_in(key, len(losses)))
        population, state = algorithm.ask(keys[0], state, params)
        losses.append(loss(population))
        state, _ = algorithm.tell(keys[1], population, jnp.asarray(losses[-1]), state, params)
    return float(np.min(losses))


def main() -> None:
    """Fill in what is missing in the results, and print the table."""
    args = make_parser(__doc__, __file__, table=True).parse_args()
    warnings.simplefilter("ignore")
    print("| class | here | evosax alone | minibatches |\n|---|---|---|---|")
    for name in sorted({c.__name__ for c in SHIPPED.values()} - REFUSED.keys(), key=str.lower):
        strategy = make_strategy(name, GENES, SIZE, 0.5, SIGMA)
        if known(args.output, name) is None and not args.table:
            here = [ours(strategy, seed) for seed in SEEDS]
            with on_host(x64=True):
                algorithm = evosax_alone(name)
                alone = [theirs(algorithm, seed) for seed in SEEDS]
            record(args.output, {"here": np.array(here).tolist(), "evosax alone": alone}, name)
            jax.clear_caches()
        row = {way: gmean(losses) for way, losses in known(args.output, name).items()}
        called = name if strategy.name == name else f"{name} (`{strategy.name}`)"
        possible = "no" if strategy.remembers else "yes"
        print(f"| {called} | {row['here']:.1e} | {row['evosax alone']:.1e} | {possible} |", flush=True)


if __name__ == "__main__":
    main()
