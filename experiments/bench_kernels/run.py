"""The measurements behind small decisions in the code: each an alternative against what is used, taking turns.

python experiments/bench_kernels/run.py          # a minute; writes results.json
"""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import known, make_parser, record
from jax import Array

from jevomerge.methods.field import uniform_field
from jevomerge.methods.method import weighted_sum
from jevomerge.models.layers import attend

SIZE = 4_000_000
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


def compare(used: Callable[[], Any], alternative: Callable[[], Any], rounds: int = 9) -> dict[str, float]:
    """Median seconds of processor time of both, in turns, and how many times longer the alternative takes."""
    times: dict[str, list[float]] = {"used": [], "alternative": []}
    for turn in range(rounds + 1):
        for name, work in (("used", used), ("alternative", alternative)):
            began = time.process_time()
            jax.block_until_ready(work())
            if turn:  # the first one compiles
                times[name].append(time.process_time() - began)
    medians = {name: round(statistics.median(taken), 5) for name, taken in times.items()}
    return {**medians, "ratio": round(medians["alternative"] / max(medians["used"], 1e-5), 2)}


def random_field() -> dict[str, float]:
    """A keyed hash of a counter, against `jax.random.uniform`: 4 M numbers."""
    ours = jax.jit(functools.partial(uniform_field, shape=(SIZE,)))
    theirs = jax.jit(functools.partial(jax.random.uniform, shape=(SIZE,)))
    words, key = jnp.asarray([1, 2], jnp.uint32), jax.random.key(0)
    return compare(lambda: ours(words), lambda: theirs(key))


def sorting() -> dict[str, float]:
    """NumPy's sort, against XLA's on a CPU: 4 M float32."""
    x = normal(SIZE)
    sort = jax.jit(jnp.sort)
    return compare(lambda: np.sort(np.asarray(x)), lambda: sort(x), rounds=3)


def sums() -> dict[str, float]:
    """Unrolled multiply-adds, against an einsum over a stacked axis: three sources of 4 M."""
    sources, weights = [normal(SIZE) for _ in range(3)], normal(3)
    stacked = jnp.stack(sources)
    unrolled = jax.jit(lambda w, xs: weighted_sum(list(w), xs))
    einsum = jax.jit(lambda w, x: jnp.einsum("n,nd->d", w, x))
    return compare(lambda: unrolled(weights, sources), lambda: einsum(weights, stacked))


def attention() -> dict[str, float]:
    """Our attention, against `jax.nn.dot_product_attention`: 16 x 128 tokens, 9 heads, 3 of keys."""
    q, k, v = normal(16, 128, 9, 64), normal(16, 128, 3, 64), normal(16, 128, 3, 64)
    mask = jnp.tril(jnp.ones((1, 128, 128), bool))
    ours = jax.jit(attend)
    theirs = jax.jit(lambda q, k, v, m: jax.nn.dot_product_attention(q, k, v, mask=m[:, None], scale=1.0))
    return compare(lambda: ours(q, k, v, mask), lambda: theirs(q, k, v, mask))


def orientation() -> dict[str, float]:
    """Weights (out, in) as in checkpoints, against (in, out): 2,048 x 576 by 1,536."""
    x, weight = normal(2048, 576), normal(1536, 576)
    transposed = jnp.asarray(np.ascontiguousarray(np.asarray(weight).T))
    ours = jax.jit(lambda x, w: jnp.einsum("bi,oi->bo", x, w))
    theirs = jax.jit(lambda x, w: x @ w)
    return compare(lambda: ours(x, weight), lambda: theirs(x, transposed))


PARTS = {part.__name__: part for part in (random_field, sorting, sums, attention, orientation)}


def main() -> None:
    args = make_parser(__doc__, __file__, parts=PARTS).parse_args()
    if known(args.output) is None:
        for name, value in {"jax": jax.__version__, "numpy": np.__version__, "cores": os.cpu_count()}.items():
            record(args.output, value, name)
    for name in args.parts:
        if known(args.output, name) is None:
            record(args.output, {"what": (PARTS[name].__doc__ or "").strip(), **PARTS[name]()}, name)
        print(name, known(args.output, name), flush=True)


if __name__ == "__main__":
    main()
