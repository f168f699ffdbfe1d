"""What the check of every written tensor for NaN and infinity costs: merges to disk with it and without it, in turns.

    python experiments/bench_merge/finite.py        # writes finite.json

One process; three sources of random numbers with SmolLM2-135M's matrices in eight layers. Seconds of the CPU, and,
of the same merges, those spent in the check itself.
"""

import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from arguments import make_parser, record

from jevomerge.checkpoint import safetensors_file
from jevomerge.checkpoint.export import write_model
from jevomerge.models.families import read_model
from jevomerge.run.merge import merge_folder

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 9, "num_key_value_heads": 3,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 2048,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
real = safetensors_file.all_finite
spent = [0.0]


def timed(array: np.ndarray) -> bool:
    """The check, its seconds added up."""
    begin = time.perf_counter()
    try:
        return real(array)
    finally:
        spent[0] += time.perf_counter() - begin


def one(recipe: dict, out: Path, check: object) -> float:
    """CPU seconds of a merge; `check` is what only the writer asks."""
    safetensors_file.all_finite = check  # type: ignore[assignment]
    begin = time.process_time()
    merge_folder(recipe, out)
    return time.process_time() - begin


def make(folder: Path, dtype: str, seed: int) -> None:
    """A model of random numbers."""
    model, rng = read_model(SHAPE, "config.json"), np.random.default_rng(seed)
    shapes = {spec.path: spec.shape for spec in model.specs}
    stored = safetensors_file.NUMPY[safetensors_file.DTYPES[dtype]]
    folder.mkdir()
    write_model(
        folder, {"config.json": SHAPE}, model.specs, dtype,
        lambda name, path, at: rng.standard_normal(shapes[path], np.float32).astype(stored),
    )  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, __file__, "finite.json")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for dtype in ("float32", "bfloat16"):
        with contextlib.ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finite-")))
            listed = []
            for i in range(3):
                make(work / f"source{i}", dtype, i)
                listed.append({"model": str(work / f"source{i}"), "parameters": {"weight": 0.2 + 0.1 * i}})
            recipe = {"merge_method": "linear", "models": listed, "dtype": dtype}
            one(recipe, work / "first", real)  # compiles
            ratios, shares = [], []
            for number in range(args.rounds):
                off = one(recipe, work / f"off{number}", lambda array: True)
                spent[0] = 0.0
                on = one(recipe, work / f"on{number}", timed)
                ratios.append(on / off)
                shares.append(spent[0] / on)
        values = {
            "rounds": args.rounds, "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "cpu_ratio": round(statistics.median(ratios), 4), "cpu_ratios": [round(r, 3) for r in sorted(ratios)],
            "seconds_in_check_over_cpu_seconds": round(statistics.median(shares), 4),
        }  # fmt: skip
        record(args.output, values, f"linear, 3 sources, {dtype}")
        print(dtype, json.dumps(values))


if __name__ == "__main__":
    main()
