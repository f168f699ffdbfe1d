"""What scores pictures: small classifiers, of real ones or drawings of these, and a distance between their features.

python experiments/japanese_diffusion_mini/judge.py       # trains those that are not there, into models/
"""

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import clothes
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from arguments import make_parser
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

MODELS = Path(__file__).parent / "models"
FILES = {drawn: MODELS / f"classifier{suffix}.safetensors" for drawn, suffix in clothes.SUFFIX.items()}
FEATURES, ROWS, EPOCHS, RATE = 64, 128, 6, 2e-3


class Classifier(nn.Module):
    """(B, SIZE, SIZE, 1) from -1 to 1 -> (B, CLASSES) log-probabilities, and the (B, FEATURES) they are made of."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for channels in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        features = nn.relu(nn.Dense(FEATURES)(x.reshape(len(x), -1)))
        return nn.log_softmax(nn.Dense(clothes.CLASSES)(features)), features


judge = jax.jit(Classifier().apply)


def train(drawn: bool, seed: int = 0) -> Any:
    """On the training split, mirrored at random; prints the accuracy on the other as it goes."""
    pixels, labels = clothes.pictures("train", drawn)
    params = Classifier().init(jax.random.key(seed), pixels[:1])["params"]
    steps, rng = EPOCHS * len(pixels) // ROWS, np.random.default_rng(seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    state, start = optimizer.init(params), time.monotonic()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            said, _ = Classifier().apply({"params": params}, x)
            return -jnp.mean(jnp.take_along_axis(said, y[:, None], axis=1))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        chosen = rng.integers(len(pixels), size=ROWS)
        x = np.where(rng.random((ROWS, 1, 1, 1)) < 0.5, pixels[chosen], pixels[chosen, :, ::-1])
        params, state = step(params, state, x, labels[chosen])
        if (i + 1) % (steps // EPOCHS) == 0:
            share, spent = accuracy(params, drawn), time.monotonic() - start
            print(f"classifier {i + 1}/{steps}: {share:.4f}, {spent:.0f} s", flush=True)
    return params


def accuracy(params: Any, drawn: bool) -> float:
    """On the test split."""
    pixels, labels = clothes.pictures("t10k", drawn)
    said, _ = judge({"params": params}, pixels)
    return float(np.mean(np.argmax(said, axis=1) == labels))


@cache
def trained(drawn: bool) -> Any:
    """A classifier's parameters, from its file."""
    return unflatten_dict({tuple(name.split(".")): jnp.asarray(x) for name, x in load_file(FILES[drawn]).items()})


def log_probabilities(pixels: Any, drawn: bool) -> tuple[jax.Array, jax.Array]:
    """What a classifier says of pictures from -1 to 1, and its features."""
    found: tuple[jax.Array, jax.Array] = judge({"params": trained(drawn)}, pixels)
    return found


def right(pictures: np.ndarray, rows: Sequence[Mapping[str, Any]], drawn: bool = False) -> np.ndarray:
    """The fitness of a search: how probable the classifier finds what was asked for, as logarithms.

    Args:
        pictures: (N, SIZE, SIZE, 3) from 0 to 255.
        rows: of each its prompt's, with the `class` that it names.
        drawn: whether by the classifier of drawings.
    """
    said, _ = log_probabilities(pictures[..., :1] / np.float32(127.5) - 1, drawn)
    return np.asarray(said)[np.arange(len(rows)), [row["class"] for row in rows]]


def right_drawn(pictures: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The same by the classifier of drawings."""
    return right(pictures, rows, drawn=True)


@cache
def real(drawn: bool) -> np.ndarray:
    """(N, FEATURES) of the test split."""
    return np.asarray(log_probabilities(clothes.pictures("t10k", drawn).pixels, drawn)[1])


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of Heusel et al. (2017) between normal distributions with the means and covariances of features."""
    one, other = one.astype(float), other.astype(float)
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    between = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return float(((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * between)


def main() -> None:
    make_parser(__doc__, __file__, output=None).parse_args()
    MODELS.mkdir(parents=True, exist_ok=True)
    for drawn, file in FILES.items():
        if not file.exists():
            save_file({".".join(path): np.asarray(x) for path, x in flatten_dict(train(drawn)).items()}, file)


if __name__ == "__main__":
    main()
