"""A synthetic stand-in for "the accuracy of a path through two models": a planted best path, plateaus and deception."""

import jax
import jax.numpy as jnp
import numpy as np

from jevomerge.genome.route import PathSpace, express_path, place

ITEMS = 100  # accuracy is k of so many
MISSING, EXTRA, WRONG_SCALE, TOLERANCE = 1.0, 0.5, 1.25, 0.3


def planted(space: PathSpace, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Layers and scales of the best path: stretches of A and B in turn, rising in depth, some overlapping, with gaps.

    Scales are near 1 within a stretch and 0.65 to 0.85 or 1.15 to 1.35 where the model changes.
    """
    rng = np.random.default_rng(seed)
    depth = space.depths[0]
    while True:
        layers, at, model = [0], 1, 0
        while at < depth - 1:
            stop = min(depth - 1, at + int(rng.integers(1, max(2, depth // 3) + 1)))
            layers += [sum(space.depths[:model]) + i for i in range(at, stop) if rng.random() > 0.1]
            at = stop - (int(rng.integers(1, 4)) if rng.random() < 0.3 and stop > at + 3 else 0)
            model = (model + 1) % len(space.models)
        layers.append(space.end)
        changes = np.diff([i >= depth for i in layers], prepend=False)
        if place(space, layers) is not None and changes.sum() >= 2:
            break
    scales = np.clip(rng.normal(1, 0.05, len(layers)), 0.9, 1.1)
    scales = np.where(changes, 1 + rng.uniform(0.15, 0.35, len(layers)) * rng.choice([-1, 1], len(layers)), scales)
    scales[0] = 1
    return np.array(layers, np.int32), scales.astype(np.float32)


class Landscape:
    """Genomes (P, n) -> accuracy (P,), in one jitted call.

    The loss of a path is the cost of its cheapest alignment with the planted one, by dynamic programming:
      a planted hop that is missing           1
      a hop that is not in the planted path   0.5 with scale 1, up to 1 with a wrong one (|s - 1| of 0.3 or more)
      a hop at its place, scale off by e      1.25 min(1, (e / 0.3)^2)
    The last is the deception: where the model changes, the right layer with scale 1 may be worse than none.  Item k of
    N is answered if exp(-2 loss / planted hops) > (k + 1/2) / N: far from the best path many edits change nothing.
    """

    def __init__(self, space: PathSpace, seed: int) -> None:
        self.space = space
        self.layers, self.scales = planted(space, seed)

    def __call__(self, genomes: np.ndarray) -> np.ndarray:
        padding = (0, self.space.num_slots + 1 - len(self.layers))  # one shape, so one compilation, for all seeds
        layers, scales = np.pad(self.layers, padding, constant_values=-1), np.pad(self.scales, padding)
        return np.asarray(
            accuracy(self.space, genomes.astype(np.float32), layers, scales, len(self.layers)), np.float64
        )


@jax.jit
def accuracy(space: PathSpace, genomes: jax.Array, layers: jax.Array, scales: jax.Array, count: jax.Array) -> jax.Array:
    """(P,) accuracies; of the planted `layers` and `scales` the first `count` are meant."""
    columns = jnp.arange(layers.size + 1, dtype=jnp.float32)
    difficulty = (jnp.arange(ITEMS, dtype=jnp.float32) + 0.5) / ITEMS

    def of_one(genome: jax.Array) -> jax.Array:
        path = express_path(space, genome)

        def hop(row: jax.Array, one: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            layer, scale, used = one
            wrong = WRONG_SCALE * jnp.minimum(1.0, ((scale - scales) / TOLERANCE) ** 2)
            matched = row[:-1] + jnp.where(layers == layer, wrong, jnp.inf)
            extra = row + EXTRA * (1 + jnp.minimum(1.0, jnp.abs(scale - 1) / TOLERANCE))
            best = jnp.minimum(extra, jnp.append(jnp.inf, matched))
            best = MISSING * columns + jax.lax.cummin(best - MISSING * columns)  # then any number of missing hops
            return jnp.where(used, best, row), None

        used = jnp.arange(path.layers.size) < path.length
        row, _ = jax.lax.scan(hop, MISSING * columns, (path.layers, path.scales, used))
        quality = jnp.exp(-2 * row[count] / count.astype(jnp.float32))
        return jnp.mean(quality > difficulty, dtype=jnp.float32)

    return jax.vmap(of_one)(genomes)
