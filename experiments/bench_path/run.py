"""What a path through a model's blocks costs, and how exactly it folds into an ordinary model.

python experiments/bench_path/run.py --smollm2 FOLDER     # about four minutes; writes results.json
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import known, make_parser, record
from transformers import AutoTokenizer

import jevomerge as jm
from jevomerge.models.decoder.decoder import Decoder
from jevomerge.models.model import Language
from jevomerge.models.route import Route
from jevomerge.models.specs import flatten, unflatten
from jevomerge.problems.stack import Stack

HERE = Path(__file__).parent
MINIATURES = HERE.parent / "japanese_math_mini" / "models"
HOPS, SLOTS = (20, 40, 80, 160), 160
SCALES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, -0.5, 0.9, 1.1, 2.0, 10.0, 100.0)


def taking_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of processor time of each: the machine may have other work."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            began = time.process_time()
            jax.block_until_ready(run())
            if turn:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(t) for name, t in times.items()}


def cost(stack: Stack, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds and temporary memory of a forward pass by the number of hops, without and with spare slots."""
    params, blocks = stack.load(), len(stack.model.kinds)
    tokens = np.random.default_rng(0).integers(3, stack.model.vocab_size, shape, dtype=np.int32)
    valid = np.ones(shape, bool)
    routes: dict[str, Route | None] = {str(n): Route.of([t % blocks for t in range(n)]) for n in (*HOPS, blocks)}
    routes[f"{HOPS[0]} in {SLOTS} slots"] = Route.of([t % blocks for t in range(HOPS[0])], slots=SLOTS)
    routes[f"plain, {blocks} layers"] = None
    work, temporaries = {}, {}
    for name, route in routes.items():
        run = jax.jit(lambda params, route: jm.apply(params, stack.model, tokens, valid, route=route)[0])
        compiled = run.lower(params, route).compile()
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        work[name] = lambda compiled=compiled, route=route: compiled(params, route)
    seconds = taking_turns(work, rounds)
    return {name: {"seconds": seconds[name], "temporaries_mb": temporaries[name]} for name in routes}


def folding_error(stack: Stack, shape: tuple[int, int]) -> dict[str, Any]:
    """How far the model that a path folds into is from the path, in standard deviations of the logits.

    The largest error by the one scale that is not 1 (early, in the middle, late), all in float32.  Then with every
    scale drawn: root mean square, largest error and share of equal greedy tokens, for the folded weights in float32
    and bfloat16, and, to compare with, for the path itself computed in bfloat16.
    """
    leaves = flatten(stack.load())
    first = stack.blocks[0][0]
    depth = len(first.model.kinds)
    text = (HERE.parents[1] / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(first.folder, model_max_length=10**6)
    tokens = np.asarray(tokenizer(text)["input_ids"][: shape[0] * shape[1]], np.int32).reshape(shape)
    run = jax.jit(jm.apply, static_argnums=1, static_argnames="dtype")

    def logits(params: Any, model: Language, route: Route | None = None, dtype: Any = jnp.float32) -> np.ndarray:
        hidden, _ = run(params, model, tokens, np.ones(shape, bool), route=route, dtype=dtype)
        return np.asarray(jm.unembed(params, model, hidden))

    def folded(route: Route, dtype: Any = jnp.float32) -> np.ndarray:
        folding = stack.model.fold(route)

        def leaf(p: str, x: Any) -> Any:
            if not p.startswith("layers."):
                return folding.tensor(p, None, x)
            return np.stack([folding.tensor(p, t, x[block]) for t, block in enumerate(folding.blocks)])

        params = {p: jnp.asarray(leaf(p, x)).astype(dtype) for p, x in leaves.items()}
        return logits(unflatten(params), Decoder(folding.config))

    params, single = unflatten(leaves), {}
    for scale in SCALES:
        single[str(scale)] = row = []
        for hop in (1, depth // 2, depth - 1):
            route = Route.of(range(depth), [scale if t == hop else 1.0 for t in range(depth)])
            expected = logits(params, stack.model, route)
            row.append(float(np.abs(folded(route) - expected).max() / expected.std()))
        print("  scale", scale, [f"{e:.1e}" for e in row], flush=True)
    rng, drawn = np.random.default_rng(0), []
    for low, high in [(1.0, 1.0), (0.9, 1.1), (0.9, 1.1), (0.5, 1.5), (0.5, 1.5), (0.5, 1.5)]:
        route = Route.of(range(depth), rng.uniform(low, high, depth).tolist())
        expected = logits(params, stack.model, route)
        others = {
            "folded": folded(route),
            "folded, bfloat16 weights": folded(route, jnp.bfloat16),
            "path in bfloat16": logits(params, stack.model, route, jnp.bfloat16),
        }
        row = {"scales": [low, high]}
        for name, found in others.items():
            difference, same = (found - expected) / expected.std(), found.argmax(-1) == expected.argmax(-1)
            sizes = np.sqrt(np.mean(difference**2)), np.abs(difference).max(), same.mean()
            row[name] = dict(zip(("rms", "max", "same_token"), map(float, sizes), strict=True))
        print(" ", row, flush=True)
        drawn.append(row)
    return {"one_scale": single, "all_scales": drawn}


def main() -> None:
    parser = make_parser(__doc__, __file__)
    parser.add_argument(
        "--smollm2", type=Path, metavar="FOLDER", help="folder of SmolLM2-135M; without it: only the miniature"
    )
    args = parser.parse_args()
    stacks = {
        "miniature": Stack([jm.Checkpoint(MINIATURES / n) for n in ("addition", "japanese", "mathematics")]),
        **({"SmolLM2-135M": Stack([jm.Checkpoint(args.smollm2)])} if args.smollm2 else {}),
    }
    if known(args.output) is None:
        for name, value in {"jax": jax.__version__, "cores": os.cpu_count()}.items():
            record(args.output, value, name)
    for name, stack in stacks.items():
        if known(args.output, name, "cost") is None:
            shape, rounds = ((32, 64), 9) if name == "miniature" else ((2, 64), 3)
            record(args.output, {"tokens": shape, "cost": cost(stack, shape, rounds)}, name)
        print(name, flush=True)
        for key, row in known(args.output, name, "cost").items():
            print(f"  {key}: {row['seconds']:.3f} s, {row['temporaries_mb']:.1f} MB", flush=True)
        if known(args.output, name, "folding_error") is None:
            record(args.output, folding_error(stack, (4, 64)), name, "folding_error")


if __name__ == "__main__":
    main()
