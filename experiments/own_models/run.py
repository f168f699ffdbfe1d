"""Image classifiers merged: is a merge of specialists as good as training on everything? See README.md.

One multilayer perceptron, trained on a few digits of scikit-learn, is fine-tuned on three subsets of the classes; what
is merged are these three. No text, no checkpoint, no task file: trees, functions, and `jevomerge.evolve`.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import known, make_parser, record
from flax import nnx
from sklearn.datasets import load_digits

import jevomerge as jm

CLASSES = {"zero to three": (0, 1, 2, 3), "four to six": (4, 5, 6), "seven to nine": (7, 8, 9)}
FEW, SEARCH, HELDOUT = 100, 300, 500  # images that the base sees, that choose a merge, that judge it; the rest trains
SCALES = tuple(np.linspace(0.1, 1.5, 15))  # of task vectors, the best of which on the search images is taken
EVALUATIONS = 300

Params = Any
Data = tuple[jax.Array, jax.Array]  # images (N, 64), digits (N,)


class Net(nnx.Module):
    """64 pixels -> 10 classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = nnx.Linear(64, 96, rngs=rngs), nnx.Linear(96, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


def likelihoods(model: Any, params: Params, data: Data) -> jax.Array:
    """(N,) log-probability of each right answer, in nats."""
    logs = jax.nn.log_softmax(model.apply(params, data[0]))
    return jnp.take_along_axis(logs, data[1][:, None], axis=1)[:, 0]


def right(model: Any, params: Params, data: Data) -> jax.Array:
    """(N,) whether each answer is right."""
    return (jnp.argmax(model.apply(params, data[0]), axis=1) == data[1]).astype(jnp.float32)


def train(model: Any, params: Params, data: Data, steps: int, seed: int) -> Params:
    """Adam on minibatches of 50."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array) -> tuple[Params, Any]:
        rows = jax.random.randint(key, (50,), 0, len(data[1]))
        batch = data[0][rows], data[1][rows]
        gradient = jax.grad(lambda p: -jnp.mean(likelihoods(model, p, batch)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state = step(params, state, key)
    return params


class Problem:
    """Base, specialists, and the images that choose and judge, of one seed."""

    def __init__(self, seed: int):
        images, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(digits))
        data = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(digits[order], jnp.int32)
        self.heldout, self.search, rest = (
            tuple(x[part] for x in data)
            for part in (slice(HELDOUT), slice(HELDOUT, HELDOUT + SEARCH), slice(HELDOUT + SEARCH, None))
        )
        net = Net(nnx.Rngs(seed))
        self.seed, self.model = seed, jm.own_model(net)
        few = tuple(x[:FEW] for x in rest)
        self.base = train(self.model, nnx.state(net, nnx.Param), few, 300, seed)
        self.joint = train(self.model, self.base, rest, 600, seed)
        self.sources = {}
        for name, classes in CLASSES.items():
            own = np.isin(np.asarray(rest[1]), classes)
            self.sources[name] = train(self.model, self.base, tuple(x[own] for x in rest), 600, seed)

    def best_of(self, merges: Iterator[Params]) -> Params:
        """The merge with the most right answers on the search images."""
        return max(merges, key=lambda p: float(jnp.mean(right(self.model, p, self.search))))


def merged(problem: Problem, method: str, **coefficients: Any) -> Params:
    """A merge of the specialists."""
    base = None if method == "linear" else problem.base
    return jm.merge(method, list(problem.sources.values()), base, **coefficients)


def task_arithmetic(problem: Problem) -> Params:
    """The best common weight."""
    return problem.best_of(merged(problem, "task_arithmetic", weight=w) for w in SCALES)


def ties(problem: Problem) -> Params:
    """Density 0.2 and a scale, as in the paper."""
    options = {"weight": 1.0, "density": 0.2}
    return problem.best_of(merged(problem, "ties", **options, **{"lambda": x}) for x in SCALES)


def evolved(problem: Problem, **gene: Any) -> Params:
    """The weights of task vectors, evolved for right answers on the search images."""
    with tempfile.TemporaryDirectory() as folder:
        result = jm.evolve(
            model=problem.model,
            models={"base": problem.base, **problem.sources},
            recipe={"merge_method": "task_arithmetic", "base_model": "base"},
            genome={"weight": {"range": (0.0, 1.5), **gene}},
            fitness=lambda model, params: right(model, params, problem.search),
            search={"evaluations": EVALUATIONS},
            seed=problem.seed,
            output=Path(folder) / "run",
        )
        return result.params


def by_gradient(problem: Problem) -> Params:
    """A weight for each specialist and leaf, along the gradient of the likelihood of the search images."""
    sources = list(problem.sources.values())

    def merge(weights: Any) -> Params:
        return jm.merge("task_arithmetic", sources, problem.base, weight=weights)

    @jax.jit
    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda w: -jnp.mean(likelihoods(problem.model, merge(w), problem.search)))(weights)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    optimizer = optax.adam(0.02)
    weights = jax.tree.map(lambda _: jnp.full(len(sources), 0.5), problem.base)
    state = optimizer.init(weights)
    for _ in range(100):
        weights, state = step(weights, state)
    return merge(weights)


ROWS: dict[str, Callable[[Problem], Params]] = {
    "base": lambda problem: problem.base,
    **{name: lambda problem, name=name: problem.sources[name] for name in CLASSES},
    "average": lambda problem: merged(problem, "linear", weight=1.0),
    "task arithmetic, best of 15": task_arithmetic,
    "TIES, best of 15": ties,
    "evolved, a weight each": evolved,
    "evolved, a weight each and leaf": lambda problem: evolved(problem, by="tensor"),
    "gradient, a weight each and leaf": by_gradient,
    "joint training": lambda problem: problem.joint,
}


def percent(scores: np.ndarray) -> str:
    """Mean and 95 % interval of (seeds, images), by bootstrap over both, in percent."""
    rng, (seeds, images) = np.random.default_rng(0), scores.shape
    means = [scores[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean() for _ in range(2000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * scores.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    """Fill in what is missing in the results, and print them."""
    args = make_parser(__doc__, __file__, seeds=5, table=True).parse_args()
    for seed in range(0 if args.table else args.seeds):
        if all(known(args.output, "right", name, str(seed)) for name in ROWS):
            continue
        problem = Problem(seed)
        for name, make in ROWS.items():
            began = time.perf_counter()
            found = right(problem.model, make(problem), problem.heldout)
            record(args.output, "".join(map(str, np.asarray(found, int))), "right", name, str(seed))
            record(args.output, round(time.perf_counter() - began, 2), "seconds", name, str(seed))
    found = known(args.output)["right"]
    scores = {name: np.array([[int(x) for x in found[name][str(seed)]] for seed in range(args.seeds)]) for name in ROWS}
    print("| | right of new images | against the average |\n|---|---:|---:|")
    for name, values in scores.items():
        against = "" if name == "average" else percent(values - scores["average"])
        print(f"| {name} | {percent(values)} | {against} |")


if __name__ == "__main__":
    main()
