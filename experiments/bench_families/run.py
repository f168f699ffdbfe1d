"""How fast are mixtures of experts and gated delta nets, and how soon is a deep hybrid compiled?

python experiments/bench_families/run.py     # results.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from arguments import known, make_parser, record

OURS, THEIRS = "jevomerge", "transformers"
MIXTURE = {  # of 16 layers and 0.9 B parameters
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2048, "moe_intermediate_size": 512,
    "num_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "norm_topk_prob": True, "max_position_embeddings": 4096,
}  # fmt: skip
DELTA = {  # of one layer
    "vocab_size": 256, "hidden_size": 1024, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "layer_types": ["linear_attention"], "max_position_embeddings": 8192,
}  # fmt: skip
HYBRID = {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}  # 48 layers: the rest are defaults
FORWARD = {"mixture": ("qwen3_moe", MIXTURE, 256), "delta": ("qwen3_5_text", DELTA, 4096)}  # and how many tokens
PRODUCT = (32, 32, 1024, 512)  # of 32 rows by a matrix, as many times as a layer of the mixture has experts
PARTS = (*FORWARD, "product")
COMPILED = {"rows": 8, "prompt": 128, "new": 64}


# --- forward passes -----------------------------------------------------------------------------------------


def ways(part: str) -> dict[str, Callable[[], np.ndarray]]:
    """The same forward pass of one random model, in float32: both give its logits.

    Of the mixture our blocks lie apart, as those of transformers do, and not in one array through which a scan leads.
    """
    import jax
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from jevomerge.checkpoint.source import Checkpoint
    from jevomerge.models.model import apply, unembed

    model_type, config, length = FORWARD[part]
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config), dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        source = Checkpoint(folder)
        model, params = source.model, source.load()
    if part == "mixture":
        model, params = model.taken_apart(params)
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], (1, length), dtype=np.int32)
    given = torch.from_numpy(tokens).long()

    @jax.jit
    def forward(params: Any, tokens: Any) -> Any:
        hidden, _ = apply(params, model, tokens, np.ones(tokens.shape, bool))
        return unembed(params, model, hidden)

    def torch_forward() -> np.ndarray:
        with torch.inference_mode():
            return theirs(given, use_cache=False).logits.numpy()

    return {OURS: lambda: np.asarray(forward(params, tokens)), THEIRS: torch_forward}


def products() -> dict[str, Callable[[], np.ndarray]]:
    """The matrix products that one layer of the mixture is made of, without all that is around them."""
    import jax
    import jax.numpy as jnp
    import torch

    experts, rows, inner, size = PRODUCT
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=(experts, n, inner)).astype(np.float32) for n in (rows, size))
    ours, theirs = jax.device_put((x, weights)), (torch.from_numpy(x), torch.from_numpy(weights).transpose(1, 2))
    product = jax.jit(lambda x, weights: jnp.einsum("eti,eoi->eto", x, weights))
    return {OURS: lambda: np.asarray(product(*ours)), THEIRS: lambda: torch.bmm(*theirs).numpy()}


def turn(forward: dict[str, Callable[[], np.ndarray]], seed: int) -> dict[str, Any]:
    """Seconds of the clock and of the processor that each takes once, and how far their results lie apart."""
    seconds, found = {}, {}
    for name in forward if seed % 2 else reversed(forward):
        began = time.perf_counter(), time.process_time()
        found[name] = forward[name]()
        taken = time.perf_counter() - began[0], time.process_time() - began[1]
        seconds[name] = [round(t, 4) for t in taken]
    apart = float(np.abs(found[OURS] - found[THEIRS]).max() / found[THEIRS].std())
    return {"seconds": seconds, "apart": apart, "load": round(os.getloadavg()[0], 1)}


# --- compiling ----------------------------------------------------------------------------------------------


def compiled() -> dict[str, Any]:
    """Seconds until the program that continues texts is traced and compiled, from shapes, in a process of its own."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    printed = subprocess.check_output([sys.executable, __file__, "--compile"], text=True, env=environment)
    return json.loads(printed.strip().rsplit("\n", 1)[-1]) | {"load": round(os.getloadavg()[0], 1)}


def compile_once() -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from jevomerge.fitness.rollouts.generation import Prompts, generate
    from jevomerge.models.families import read_model
    from jevomerge.models.specs import unflatten
    from jevomerge.problems.problem import Instance

    model: Any = read_model(HYBRID)
    params = unflatten({s.path: jax.ShapeDtypeStruct(s.leaf_shape, jnp.bfloat16) for s in model.specs})
    rows, length, new = COMPILED.values()
    batch = Prompts(
        np.zeros((rows, length), np.int32), np.ones((rows, length), bool), np.int32(new), np.array([0], np.int32)
    )
    write = jax.jit(lambda params, batch: generate(Instance(params), model, batch, new, dtype=jnp.bfloat16))
    began = time.perf_counter(), time.process_time()
    lowered = write.trace(params, batch).lower()
    traced = time.perf_counter(), time.process_time()
    lowered.compile()
    done = time.perf_counter(), time.process_time()
    steps = {"trace": (began, traced), "compile": (traced, done), "all": (began, done)}
    found = {name: [round(b - a, 2) for a, b in zip(*ends, strict=True)] for name, ends in steps.items()}
    return {"layers": len(model.kinds), "seconds": found}


# --- tables -------------------------------------------------------------------------------------------------


def spread(values: Any) -> str:
    """A median, lowest to highest."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(results: dict[str, Any]) -> None:
    """README.md's tables."""
    print("| forward pass | transformers takes times as long, of the processor | of the clock |\n|---|---:|---:|")
    for part in PARTS:
        if rounds := list(results.get(part, {}).values()):
            ratios = np.array([np.divide(r["seconds"][THEIRS], r["seconds"][OURS]) for r in rounds])
            load, apart = np.median([r["load"] for r in rounds]), max(r["apart"] for r in rounds)
            told = f"{len(rounds)} rounds, load {load:.0f}, apart by {apart:.0e} standard deviations"
            print(f"| {part} ({told}) | {spread(ratios[:, 1])} | {spread(ratios[:, 0])} |")
    if rounds := list(results.get("compile", {}).values()):
        print("\n| compiled from shapes | seconds of the clock | of the processor |\n|---|---:|---:|")
        for step in rounds[0]["seconds"]:
            clock, own = zip(*(r["seconds"][step] for r in rounds), strict=True)
            print(f"| {step} | {spread(clock)} | {spread(own)} |")
        print(f"\n{len(rounds)} rounds; median load {np.median([r['load'] for r in rounds]):.1f}")


def main() -> None:
    if sys.argv[1:] == ["--compile"]:
        print(json.dumps(compile_once()))
        return
    args = make_parser(__doc__, __file__, seeds="5, to compile 3", parts=(*PARTS, "compile"), table=True).parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before XLA and PyTorch count cores
    for part in [] if args.table else args.parts:
        count = args.seeds or (3 if part == "compile" else 5)
        missing = [seed for seed in range(count) if known(args.output, part, str(seed)) is None]
        if part == "compile":
            for seed in missing:
                record(args.output, compiled(), part, str(seed))
        elif missing:
            forward = products() if part == "product" else ways(part)
            turn(forward, 0)  # compiles
            for seed in missing:
                record(args.output, turn(forward, seed), part, str(seed))
    table(known(args.output))


if __name__ == "__main__":
    main()
