"""How fast texts are written, against transformers, and what each part of the engine brings.

python experiments/bench_engine/run.py --smollm2 FOLDER --gsm8k FILE     # writes results.json, part by part

Without FOLDER random weights of SmolLM2-135M's shapes are measured, and no few-shot prompts, whose texts would not end.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import population
import torch
from arguments import known, make_parser, record
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import jevomerge as jm
from jevomerge.devices.mesh import make_mesh
from jevomerge.fitness.batches import Example, Layout
from jevomerge.fitness.members import run_members
from jevomerge.fitness.rollouts import generation
from jevomerge.fitness.rollouts.generation import Generation, Prompts, count_written
from jevomerge.models import layers
from jevomerge.models.families import read_model
from jevomerge.models.specs import unflatten
from jevomerge.problems.problem import Instance, Whole
from jevomerge.tokenizers.load import load_tokenizer

PROMPT, NEW, BATCHES = 64, 128, (1, 8, 32)
SHOTS, QUESTIONS, LIMIT, AT_ONCE, THEIR_BATCH = 4, 64, 256, 16, 32
PARTS = ("batches", "few_shot", "apart", "reaches", "bfloat16", "sources", "adapters")
WIDTHS, DEPTH, STEPS = (64, 128, 192, 256, 384, 576), 8, 64


def in_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of each by the clock and of processors, and what it came to; before that a turn of all that compile."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    made = {}
    for turn in range(rounds + 1):
        for name, run in work.items():
            if turn or not name.startswith(("PyTorch", "transformers")):
                began = time.perf_counter(), time.process_time()
                made[name] = jax.block_until_ready(run())
                took = time.perf_counter() - began[0], time.process_time() - began[1]
                times[name] += [took] if turn else []
    return {name: {"seconds": times[name], "made": made[name]} for name in work}


def compared(found: dict[str, Any], ours: str, other: str) -> dict[str, Any]:
    """How many times as fast the first is, turn by turn: median, lowest, highest; by the clock and by processors."""
    ratios = np.divide(found[other]["seconds"], found[ours]["seconds"])
    rows = ([round(float(f(r)), 3) for f in (np.median, np.min, np.max)] for r in ratios.T)
    return dict(zip(("wall", "processor"), rows, strict=True))


def medians(found: dict[str, Any]) -> dict[str, float]:
    """Seconds by the clock."""
    return {name: round(statistics.median(s for s, _ in row["seconds"]), 3) for name, row in found.items()}


def random_model(folder: Path) -> Path:
    """Random weights of SmolLM2-135M's shapes, as transformers makes and writes them."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        shapes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        config = LlamaConfig(vocab_size=49152, num_key_value_heads=3, tie_word_embeddings=True, **shapes)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def batches(folder: Path, rounds: int) -> dict[str, Any]:
    """Prompts of 64 tokens, 128 new ones, nobody stops: tokens and times of both."""
    checkpoint, theirs = jm.Checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    params, rows = checkpoint.load(), {}
    run = jax.jit(lambda params, batch: generation.generate(Instance(params), checkpoint.model, batch, NEW))
    for size in BATCHES:
        tokens = np.random.default_rng(size).integers(5, checkpoint.model.vocab_size, (size, PROMPT), np.int32)
        mine = Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jnp.int32(NEW), jnp.asarray([-1], jnp.int32))
        given = torch.tensor(tokens, dtype=torch.long)

        def transformers(given: Any = given) -> Any:
            options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
            with torch.no_grad():
                return theirs.generate(given, attention_mask=torch.ones_like(given), **options)[:, PROMPT:].numpy()

        began = time.perf_counter()
        compiled = run.lower(params, mine).compile()
        compiling = round(time.perf_counter() - began, 1)
        found = in_turns({"ours": lambda c=compiled, m=mine: c(params, m), "transformers": transformers}, rounds)
        same = np.mean(np.all(np.asarray(found["ours"]["made"]) == found["transformers"]["made"], axis=1))
        rows[str(size)] = {
            "seconds": medians(found),
            "times_as_fast": compared(found, "ours", "transformers"),
            "same_texts": float(same),
            "compile_seconds": compiling,
        }
        print(f"  batch {size}: {rows[str(size)]}", flush=True)
    return rows


def few_shot(folder: Path, gsm8k: Path, rounds: int) -> dict[str, Any]:
    """64 questions behind the same four with their answers; a text ends with an empty line, or after 256 tokens."""
    checkpoint, tokenizer = jm.Checkpoint(folder), load_tokenizer(folder)
    params, mesh = checkpoint.load(), make_mesh(devices=jax.local_devices()[:1])
    lines = [json.loads(line) for line in gsm8k.read_text().splitlines()[: SHOTS + QUESTIONS]]
    asked = [f"Question: {line['question']}\nAnswer:" for line in lines]
    shots = "".join(f"{q} {line['answer']}\n\n" for q, line in zip(asked[:SHOTS], lines, strict=False))
    prompts = [shots + question for question in asked[SHOTS:]]
    examples = [Example(p, "", tokenizer(p)["input_ids"], []) for p in prompts]
    rollout = Generation(tokenizer, LIMIT, stop=("\n\n",))
    longest = max(len(e.prompt_tokens) for e in examples)
    shared = generation.beginning_of(examples)
    own = -(-(longest - shared) // 8) * 8
    everything = Layout(QUESTIONS, own, LIMIT, together=AT_ONCE, shared=shared)
    ways = {
        "ours": everything,
        "nothing shared": everything._replace(length=own + shared, shared=0),
        "rows wait for the longest": everything._replace(rows=AT_ONCE, together=None),
        "neither": everything._replace(rows=AT_ONCE, together=None, length=own + shared, shared=0),
    }

    def write(layout: Layout) -> np.ndarray:
        static = {"mesh": mesh, "slots": None, "model": checkpoint.model, "rollout": rollout, "layout": layout}
        genomes, parts = np.zeros((1, 0), np.float32), []
        for i in range(0, QUESTIONS, layout.rows):
            batch = rollout.batch(checkpoint.model, examples[i : i + layout.rows], layout)
            parts.append(run_members(Whole(params), None, genomes, batch, dtype="float32", **static))
        return np.concatenate([np.asarray(part)[0] for part in parts])

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    fast = AutoTokenizer.from_pretrained(folder, padding_side="left")
    fast.pad_token = fast.pad_token or fast.eos_token
    ends = [t for t in range(len(fast)) if "\n\n" in fast.decode([t])]

    def transformers() -> np.ndarray:
        options = {"max_new_tokens": LIMIT, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        found = np.full((QUESTIONS, LIMIT), tokenizer.eos_token_id, np.int32)
        for i in range(0, QUESTIONS, THEIR_BATCH):
            given = fast(prompts[i : i + THEIR_BATCH], return_tensors="pt", padding=True)
            with torch.no_grad():
                out = theirs.generate(**given, eos_token_id=[tokenizer.eos_token_id, *ends], **options)
            new = out[:, given["input_ids"].shape[1] :].numpy()
            found[i : i + len(new), : new.shape[1]] = new
        return found

    work: dict[str, Callable[[], Any]] = {name: lambda w=way: write(w) for name, way in ways.items()}
    found = in_turns({**work, "transformers": transformers}, rounds)
    stops = rollout.batch(checkpoint.model, examples[:1], ways["neither"]).stops
    lengths = count_written(found["ours"]["made"], np.asarray([tokenizer.eos_token_id]), stops)
    texts = {name: fast.batch_decode(row["made"], skip_special_tokens=True) for name, row in found.items()}
    cut = {name: [text.split("\n\n")[0] for text in of] for name, of in texts.items()}
    return {
        "shared_tokens": shared,
        "own_tokens": own,
        "lengths": {"mean": float(np.mean(lengths)), "lowest": int(lengths.min()), "highest": int(lengths.max())},
        "seconds": medians(found),
        "times_as_fast": {name: compared(found, "ours", name) for name in found if name != "ours"},
        "same_texts": {n: float(np.mean([a == b for a, b in zip(cut["ours"], cut[n], strict=True)])) for n in cut},
    }


def apart(rounds: int) -> dict[str, Any]:
    """What taking a model apart brings where tokens are decoded, and costs the compiler, by the numbers of a block."""
    return dict(apart_or_not(width, rounds) for width in WIDTHS)


def apart_or_not(width: int, rounds: int) -> tuple[str, dict[str, Any]]:
    """Of a model of so many dimensions: how many numbers a block has, and the row."""
    shapes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_attention_heads": width // 64}
    values = LlamaConfig(vocab_size=512, num_hidden_layers=DEPTH, tie_word_embeddings=True, **shapes).to_dict()
    model = read_model(values)
    rng = np.random.default_rng(0)
    params = unflatten({s.path: rng.normal(0, 0.02, s.leaf_shape).astype(np.float32) for s in model.specs})
    tokens = jnp.ones((8, 16), jnp.int32)
    batch = Prompts(tokens, tokens > 0, jnp.int32(STEPS), jnp.asarray([-1], jnp.int32))
    work, compiling = dict[str, Callable[[], Any]](), {}
    for name, least in {"scanned": 1 << 62, "apart": 0}.items():
        with mock.patch.object(generation, "APART", least):
            run = jax.jit(lambda params, batch: generation.generate(Instance(params), model, batch, STEPS))
            began = time.process_time()
            compiled = run.lower(params, batch).compile()
            compiling[name] = round(time.process_time() - began, 2)
        work[name] = lambda compiled=compiled: compiled(params, batch)
    ratio = compared(in_turns(work, rounds), "apart", "scanned")
    row = {"times_as_fast": ratio, "compile_seconds_of_processors": compiling}
    size = sum(int(np.prod(s.leaf_shape)) for s in model.specs if s.block) // DEPTH
    print(f"  a block of {size}: {row}", flush=True)
    return str(size), row


def reaches(folder: Path, rounds: int) -> dict[str, Any]:
    """8 prompts of 128 tokens with room for 1,024, of which 64 are written: a cache read as it is filled, or whole."""
    checkpoint, room = jm.Checkpoint(folder), 1024
    params, tokens = checkpoint.load(), jnp.ones((8, 128), jnp.int32)
    batch = Prompts(tokens, tokens > 0, jnp.int32(STEPS), jnp.asarray([-1], jnp.int32))
    work, compiling = dict[str, Callable[[], Any]](), {}
    for name, stride in {"as it is filled": layers.STRIDE, "whole": 1 << 30}.items():
        with mock.patch.object(layers, "STRIDE", stride):
            run = jax.jit(lambda params, batch: generation.generate(Instance(params), checkpoint.model, batch, room))
            began = time.process_time()
            compiled = run.lower(params, batch).compile()
            compiling[name] = round(time.process_time() - began, 2)
        work[name] = lambda compiled=compiled: compiled(params, batch)
    found = in_turns(work, rounds)
    same = np.mean(np.all(np.asarray(found["whole"]["made"]) == np.asarray(found["as it is filled"]["made"]), axis=1))
    return {
        "seconds": medians(found),
        "times_as_fast": compared(found, "as it is filled", "whole"),
        "same_texts": float(same),
        "compile_seconds_of_processors": compiling,
    }


def bfloat16(folder: Path, rounds: int) -> dict[str, Any]:
    """Prompts of 64 tokens, 64 new ones, nobody stops: activations in either type, weights in bfloat16.

    In bfloat16 once as it is and once with products whose sums XLA rounds itself.
    """
    checkpoint, rows = jm.Checkpoint(folder), {}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), checkpoint.load())

    def rounded(x: Any, weight: Any) -> Any:
        return jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype))

    ways = {"float32": ("float32", layers.product), "bfloat16": ("bfloat16", layers.product)}
    ways["bfloat16, sums too"] = ("bfloat16", rounded)
    for size in BATCHES:
        tokens = np.random.default_rng(size).integers(5, checkpoint.model.vocab_size, (size, PROMPT), np.int32)
        batch = Prompts(
            jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jnp.int32(STEPS), jnp.asarray([-1], jnp.int32)
        )
        work = dict[str, Callable[[], Any]]()
        for name, (dtype, product) in ways.items():
            with mock.patch.object(layers, "product", product):
                run = jax.jit(
                    lambda p, b, d=dtype: generation.generate(Instance(p), checkpoint.model, b, STEPS, dtype=d)
                )
                compiled = run.lower(params, batch).compile()
            work[name] = lambda compiled=compiled, batch=batch: compiled(params, batch)
        found = in_turns(work, rounds)
        made = {name: np.asarray(row["made"]) for name, row in found.items()}
        rows[str(size)] = {
            "seconds": medians(found),
            "times_as_fast_as": {name: compared(found, "bfloat16", name) for name in ways if name != "bfloat16"},
            "first_tokens_as_float32": float(np.mean(made["bfloat16"][:, 0] == made["float32"][:, 0])),
        }
        print(f"  batch {size}: {rows[str(size)]}", flush=True)
    return rows


def several(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """16 candidates, 8 prompts of 64 tokens each, 64 new ones, nobody stops."""
    return population.table(in_turns(work, rounds), compared, medians)


def main() -> None:
    parser = make_parser(__doc__, __file__, work=True, parts=PARTS)
    parser.add_argument("--smollm2", type=Path, metavar="FOLDER", help="folder of SmolLM2-135M-Instruct in float32")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="questions of GSM8K, as JSON Lines")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns that are timed (default: 3)")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    folder = args.smollm2 or random_model(args.work / "random")
    work: dict[str, Callable[[], Any]] = {
        "batches": lambda: batches(folder, args.rounds),
        "few_shot": lambda: few_shot(folder, args.gsm8k, args.rounds),
        "apart": lambda: apart(args.rounds),
        "reaches": lambda: reaches(folder, args.rounds),
        "bfloat16": lambda: bfloat16(folder, args.rounds),
        "sources": lambda: several(population.sources_part(folder, args.work), args.rounds),
        "adapters": lambda: several(population.adapters_part(folder, args.work), args.rounds),
    }
    if known(args.output) is None:
        weights = "SmolLM2-135M-Instruct" if args.smollm2 else "random"
        machine = {"jax": jax.__version__, "torch": torch.__version__, "cores": os.cpu_count(), "weights": weights}
        record(args.output, machine, "machine")
    for part in args.parts:
        if part == "few_shot" and not (args.smollm2 and args.gsm8k):
            print("few_shot: left out, it needs --smollm2 and --gsm8k")
        elif known(args.output, part) is None:
            record(args.output, {"load_before": round(os.getloadavg()[0], 2), **work[part]()}, part)
        print(part, json.dumps(known(args.output, part), indent=1), flush=True)


if __name__ == "__main__":
    main()
