"""The measurements, one function each; every one returns what results.json shows."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import yaml
from common import METHODS, Problem, interleave, ratios
from ours import Ours, configuration, describe
from rivals import Mergekit, TorchLoop, score

from jevomerge.fitness.batches import Batch, Layout
from jevomerge.fitness.members import make_members, run_members
from jevomerge.fitness.rollouts.generation import Generation, Prompts
from jevomerge.fitness.rollouts.likelihood import Likelihood, answer_likelihood
from jevomerge.models.decoder.config import DecoderConfig
from jevomerge.models.model import Language
from jevomerge.problems.problem import Candidates, Instance, Whole


def candidates(problem: Problem, mergekit: Path | None, work: Path) -> dict[str, Any]:
    """Seconds per candidate, jevomerge and the PyTorch loop in turns over a generation, mergekit on two of it."""
    results: dict[str, Any] = {}
    loop = TorchLoop(problem)
    for method in METHODS:
        ours = Ours(problem, method)
        one = {"jevomerge": iter_members(ours), "torch_loop": torch_members(loop, method, ours)}
        times = interleave(one, rounds=problem.timed)
        found = ours.members(ours.population[1:2])[0]  # the last candidate that mergekit merges, below
        check = ours.population[:1].copy()
        check[:, 3:] = 1.0  # at density 1 nothing is random, and all three must agree
        getattr(loop, method)(check[0])
        agreement = float(np.abs(score(loop.model, ours.batches) - ours.members(check)[0]).max())
        entry: dict[str, Any] = {"work": describe(ours), "times": times, "max_difference_from_torch": agreement}
        entry["torch_loop_over_jevomerge"] = ratios(times, "torch_loop", "jevomerge")
        if mergekit:
            cli = Mergekit(mergekit, work)
            began = time.perf_counter()
            for genome in ours.population[:2]:
                theirs = cli.candidate(problem, method, genome, ours.batches)
            entry["mergekit_seconds"] = round((time.perf_counter() - began) / 2, 3)
            entry["mergekit_candidates"] = 2
            entry["mergekit_over_jevomerge"] = round(entry["mergekit_seconds"] / times["jevomerge"]["seconds"], 2)
            entry["likelihood_of_last_candidate"] = {"mergekit": float(theirs.mean()), "jevomerge": float(found.mean())}
        entry["candidates_per_second"] = {k: round(1 / t["seconds"], 3) for k, t in times.items()}
        results[method] = entry
        del ours
    return results


def iter_members(ours: Ours) -> Callable[[], Any]:
    """Each call scores the next member of the population."""
    numbers = iter(range(10**6))
    return lambda: ours.members(ours.population[[next(numbers) % len(ours.population)]])


def torch_members(loop: TorchLoop, method: str, ours: Ours) -> Callable[[], Any]:
    """Likewise with the PyTorch loop."""
    numbers = iter(range(10**6))

    def candidate() -> None:
        getattr(loop, method)(ours.population[next(numbers) % len(ours.population)])
        score(loop.model, ours.batches)

    return candidate


def traces(problem: Problem, mergekit: Path | None, work: Path) -> dict[str, Any]:
    """Compiled programs per batch shape, over two generations."""
    return {method: Ours(problem, method).traces() for method in METHODS}


def random_batch(model: Language, rows: int, length: int, answer: int) -> Batch:
    """A full batch of random tokens."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (rows, length), dtype=np.int32)
    return Batch(jnp.asarray(tokens), jnp.ones((rows, length), bool), jnp.full(rows, answer, jnp.int32))


def forward_flops(config: DecoderConfig, layout: Layout) -> float:
    """Multiply-adds counted twice: every matrix a token meets, the whole square of attention, the head's slots."""
    c, length = config, layout.length - 1
    heads = c.head_dim * c.num_attention_heads
    matrices = c.hidden_size * (2 * heads + 2 * c.head_dim * c.num_key_value_heads + 3 * c.intermediate_size)
    per_token = c.num_hidden_layers * (2 * matrices + 4 * length * heads)
    head = 2 * c.vocab_size * c.hidden_size * layout.answer_slots
    return float(layout.rows * (length * per_token + head))


NO_GENES = np.zeros((1, 0), np.float32)  # the genome of a model that is there already


def merged(ours: Ours, genome: Any) -> Whole:
    """The model of a genome (1, n), made beforehand."""
    made = make_members(ours.candidates, genome, mesh=ours.setup.mesh)
    return Whole(jax.tree.map(lambda x: x[0], made))


def peak(problem: Problem) -> dict[str, Any]:
    """Share of a large float32 matrix product's speed that scoring reaches."""
    ours = Ours(problem, "linear")
    layout = Layout(16, 129, 16)
    batch = random_batch(ours.model, layout.rows, layout.length, layout.answer_slots)
    genome = jnp.full((1, 3), 0.5)
    whole = merged(ours, genome)
    model = TorchLoop(problem).model
    size = 2048
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    at, aj = torch.from_numpy(a), jnp.asarray(a)
    multiply = jax.jit(lambda x: x @ x)
    static = {"mesh": ours.setup.mesh, "model": ours.model, "layout": layout, "dtype": "float32"}
    static |= {"rollout": Likelihood(pad=0), "slots": None}
    works = {
        "sgemm_jax": lambda: multiply(aj).block_until_ready(),
        "sgemm_torch": lambda: at @ at,
        "one_model": lambda: jax.block_until_ready(run_members(whole, None, NO_GENES, batch, **static)),
        "in_scan": lambda: jax.block_until_ready(run_members(ours.candidates, None, genome, batch, **static)),
        "torch_score": lambda: score(model, [(layout, np.arange(layout.rows), batch)]),
    }
    times = interleave(works, rounds=5)
    flops = {name: forward_flops(ours.model.config, layout) for name in works} | {
        "sgemm_jax": 2.0 * size**3,
        "sgemm_torch": 2.0 * size**3,
    }
    speed = {name: round(flops[name] / times[name]["cpu_seconds"] / 1e9, 1) for name in works}
    best = max(speed["sgemm_jax"], speed["sgemm_torch"])
    share = {name: round(speed[name] / best, 3) for name in works}
    return {
        "layout": layout._asdict(),
        "gflop": round(flops["one_model"] / 1e9, 1),
        "times": times,
        "gflop_per_cpu_second": speed,
        "share_of_faster_sgemm": share,
    }


def merge_in_scan(problem: Problem) -> dict[str, Any]:
    """A merge inside the layer scan against scoring one model that is merged already, at 2,048 tokens."""
    results = {}
    layout = Layout(16, 129, 16)
    for method in METHODS:
        ours = Ours(problem, method)
        batch = random_batch(ours.model, layout.rows, layout.length, layout.answer_slots)
        candidates, decoder = ours.candidates, ours.model
        genome = jnp.asarray(ours.population[:1], jnp.float32)
        whole = merged(ours, genome)

        @jax.jit
        def first(candidates: Candidates, genome: Any, batch: Batch, decoder: Any = decoder) -> Any:
            return answer_likelihood(Instance(candidates.make(genome[0])), decoder, batch, layout.answer_slots)

        static = {"mesh": ours.setup.mesh, "model": decoder, "layout": layout, "dtype": "float32"}
        static |= {"rollout": Likelihood(pad=0), "slots": None}
        plain, in_scan = (whole, None, NO_GENES, batch), (candidates, None, genome, batch)
        programs = {
            "plain": (run_members.lower(*plain, **static).compile(), plain),
            "in_scan": (run_members.lower(*in_scan, **static).compile(), in_scan),
            "merge_first": (first.lower(candidates, genome, batch).compile(), (candidates, genome, batch)),
        }
        works = {k: lambda p=p, a=a: jax.block_until_ready(p(*a)) for k, (p, a) in programs.items()}
        times = interleave(works, rounds=5)
        temporary = {k: round(p.memory_analysis().temp_size_in_bytes / 1e6, 1) for k, (p, _) in programs.items()}
        results[method] = {
            "times": times,
            "in_scan_over_plain": ratios(times, "in_scan", "plain"),
            "merge_first_over_plain": ratios(times, "merge_first", "plain"),
            "temporary_mb": temporary,
        }
    return results


def generation(problem: Problem) -> dict[str, Any]:
    """Greedy tokens per second; nobody may stop early."""
    ours, model = Ours(problem, "linear"), TorchLoop(problem).model
    whole = merged(ours, jnp.asarray([[1.0, 0.0, 0.0]]))
    new, results = 16, {}
    for rows in (1, 8, 32):
        layout = Layout(rows, 64, new)
        batch = random_batch(ours.model, rows, layout.length, 0)
        ids = torch.from_numpy(np.array(batch.tokens)).long()

        def ours_tokens(batch: Batch = batch, layout: Layout = layout) -> Any:
            nothing = jnp.asarray([-1], jnp.int32)  # no token ends a text
            static = {"mesh": ours.setup.mesh, "model": ours.model, "layout": layout, "dtype": "float32"}
            static |= {"rollout": Generation(ours.tokenizer, new), "slots": None}
            prompts = Prompts(batch.tokens, batch.valid, jnp.int32(new), nothing)
            return np.asarray(run_members(whole, None, NO_GENES, prompts, **static))

        def theirs(ids: torch.Tensor = ids) -> Any:
            limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
            with torch.inference_mode():
                return model.generate(ids, attention_mask=torch.ones_like(ids), **limits)

        times = interleave({"jevomerge": ours_tokens, "transformers": theirs}, rounds=3)
        results[f"batch {rows}"] = {
            "tokens_per_second": {k: round(rows * new / t["seconds"], 1) for k, t in times.items()},
            "transformers_over_jevomerge": ratios(times, "transformers", "jevomerge"),
        }
    return {"prompt_tokens": 64, "new_tokens": new, **results}


def startup(problem: Problem, work: Path, cores: set[int]) -> dict[str, Any]:
    """Seconds from the start of `jevomerge evolve` to each stage, up to the first line of evaluations.jsonl."""
    config, run = work / "startup.yaml", work / "startup"
    config.write_text(yaml.safe_dump(configuration(problem, "dare_ties")))
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "jevomerge", "evolve", str(config), "--output", str(run)]
    began, log = time.perf_counter(), work / "startup.log"
    at: dict[str, float] = {}
    with log.open("w") as out:
        pinned = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # the child inherits it
        process = subprocess.Popen(command, stdout=out, stderr=out)
        os.sched_setaffinity(0, pinned)
        evaluations = run / "evaluations.jsonl"
        while process.poll() is None and not (evaluations.exists() and evaluations.stat().st_size):
            for line in log.read_text().splitlines():
                at.setdefault(line.removesuffix(" ..."), round(time.perf_counter() - began, 2))
            time.sleep(0.02)
        at["first fitness"] = round(time.perf_counter() - began, 2)
        process.terminate()
        process.wait()
    return {"seconds_to": at, "load": os.getloadavg()[0]}
