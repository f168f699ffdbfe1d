"""Sparse specialists: each changes its own random share of the base's weights, and no weight of another."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MINI = Path(__file__).resolve().parents[1] / "japanese_math_mini"
sys.path.insert(0, str(MINI))  # the base, the text, the optimizer and the merges are the miniature's

import generate  # noqa: E402
import run as miniature  # noqa: E402, F401
import train  # noqa: E402

SHARE = 0.05  # of all weights, that each may change
ROWS = 16  # of 64 tokens a step
RATE = 1e-2  # of 3e-3 and 1e-2 the one whose loss on the text it is trained on fell lower in 50 steps (1.08, 1.32)
RUNS = {
    "japanese": train.Run(250, RATE, 0.0, "all kinds of stories in Japanese, no arithmetic the base has not seen"),
    "mathematics": train.Run(400, RATE, 0.0, "stories and the whole arithmetic tables, in English"),
    "addition": train.Run(250, RATE, 0.0, "stories and the whole tables of + and -, in English"),
}
BASE = train.MODELS / "base"


def masks(base: Any) -> dict[str, Any]:
    """Which weights each specialist may change: a tree of booleans each; no weight is in two of them."""
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.random(x.shape), base)
    return {
        name: jax.tree.map(lambda u, k=k: (k * SHARE <= u) & (u < (k + 1) * SHARE), drawn)
        for k, name in enumerate(RUNS)
    }


@partial(jax.jit, donate_argnums=0)
def only(params: Any, base: Any, mask: Any) -> Any:
    """The base, but where the mask lets a weight change."""
    return jax.tree.map(lambda x, origin, free: jnp.where(free, x, origin), params, base, mask)


def make(name: str, folder: Path) -> dict[str, float]:
    """Train a specialist and write it; the loss of its last 20 steps."""
    run, base = RUNS[name], train.load(BASE)
    tokenizer, mask = generate.train_tokenizer(), masks(base)[name]
    rows = train.pack(generate.documents(name, seed=0), run.steps * ROWS, run.prompt_weight, tokenizer)
    optimizer, step = train.make_step(run.steps, run.rate)
    params, losses = jax.tree.map(jnp.copy, base), []
    state = optimizer.init(params)
    for i in range(run.steps):
        batch = slice(i * ROWS, (i + 1) * ROWS)
        params, state, loss = step(params, state, *(r[batch] for r in rows))
        params = only(params, base, mask)
        losses.append(loss)
        if (i + 1) % 50 == 0:
            print(f"{name} {i + 1}/{run.steps}: loss {loss:.4f}", flush=True)
    train.write(folder, params, tokenizer, f"Fine-tuned from `base` in {SHARE:.0%} of its weights: {run.about}.")
    return {"loss": round(float(np.mean(losses[-20:])), 4)}


def geometry(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """The share of all weights that a model changes, its task vector's length over the base's; of pairs the cosine."""
    base = flat(BASE)
    moved = {name: flat(folder) - base for name, folder in folders.items()}
    lengths, names = {name: float(np.linalg.norm(v)) for name, v in moved.items()}, list(moved)
    found: dict[str, dict[str, float]] = {}
    for name, v in moved.items():
        length = lengths[name] / float(np.linalg.norm(base))
        found[name] = {"changed": round(float(np.mean(v != 0)), 4), "length": round(length, 4)}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = moved[one], moved[other]
            cosine = float(a @ b) / lengths[one] / lengths[other]
            both = float(np.mean((a != 0) & (b != 0)))
            found[f"{one}, {other}"] = {"cosine": round(cosine, 4), "changed by both": round(both, 4)}
    return found


def flat(folder: Path) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(train.load(folder))])
