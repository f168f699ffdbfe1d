"""How fast 16 candidates write, each the same 8 texts: not merged, one by one, and as PyTorch does it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jevomerge.devices.mesh import make_mesh
from jevomerge.fitness.batches import Layout
from jevomerge.fitness.members import make_members, run_members
from jevomerge.fitness.rollouts.generation import Generation, Prompts
from jevomerge.genome.schema import Gene
from jevomerge.problems.problem import Whole
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.schema import Recipe

CANDIDATES, ROWS, PROMPT, NEW = 16, 8, 64, 64
SOURCES, ADAPTERS, RANK = 3, 8, 16
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Loop = Callable[[Any, Sequence[float]], None]  # makes a transformers model a candidate


def fine_tuned(folder: Path, work: Path) -> list[Path]:
    """The model and two others beside it: noise of a tenth of each tensor's spread."""
    found = [folder]
    for seed in range(1, SOURCES):
        to = work / f"source_{seed}"
        if not (to / "config.json").exists():
            to.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(seed)
            tensors = load_file(folder / "model.safetensors")
            noisy = {k: v + 0.1 * v.std() * torch.randn_like(v) for k, v in tensors.items()}
            save_file(noisy, to / "model.safetensors", metadata={"format": "pt"})
            (to / "config.json").write_text((folder / "config.json").read_text())
        found.append(to)
    return found


def adapters(folder: Path, work: Path) -> list[Path]:
    """Random ones of all linear maps, as PEFT writes them."""
    found = []
    for seed in range(ADAPTERS):
        to = work / f"adapter_{seed}"
        if not (to / "adapter_config.json").exists():
            to.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(seed)
            pairs = {}
            for name, weight in load_file(folder / "model.safetensors").items():
                if name.split(".")[-2] in MAPS:
                    stem = f"base_model.model.{name.removesuffix('.weight')}"
                    pairs[f"{stem}.lora_A.weight"] = torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5
                    pairs[f"{stem}.lora_B.weight"] = 0.3 * weight.std() * torch.randn(weight.shape[0], RANK)
            save_file(pairs, to / "adapter_model.safetensors", metadata={"format": "pt"})
            settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(MAPS)}
            (to / "adapter_config.json").write_text(json.dumps(settings))
        found.append(to)
    return found


def ours(folder: Path, models: Sequence[str], method: str, weights: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Not merged, merged one by one, and one plain model on as many rows; (candidates, rows, new) tokens."""
    recipe = {"merge_method": method, "models": [{"model": m} for m in models], "dtype": "float32"}
    recipe |= {"base_model": str(folder)} if method == "task_arithmetic" else {}
    problem, mesh = (
        WeightProblem(Recipe.model_validate(recipe), {"weight": Gene()}),
        make_mesh(devices=jax.devices()[:1]),
    )
    assert len(problem.names) == len(models)  # a gene for the weight of each, from 0 to 1
    tokens = prompts(problem.model.vocab_size)
    nobody = jnp.asarray([-1], jnp.int32)
    rollout = Generation(SimpleNamespace(eos_token_id=0), NEW)  # nothing is decoded here

    def batch(rows: np.ndarray) -> Prompts:
        return Prompts(jnp.asarray(rows), jnp.ones(rows.shape, bool), jnp.int32(NEW), nobody)

    def run(candidates: Any, genomes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        members = jnp.asarray(genomes, jnp.float32)
        made = make_members(candidates, members, mesh=mesh) if genomes.size else None
        static = {"mesh": mesh, "slots": None, "model": problem.model, "rollout": rollout, "dtype": "float32"}
        layout = Layout(len(rows), PROMPT, NEW)
        return np.asarray(run_members(candidates, made, members, batch(rows), layout=layout, **static))

    shared = problem.load(mesh, together=True)
    merged = problem.load(mesh)
    plain = Whole(problem.checkpoints[0].load(mesh))

    def one_by_one() -> np.ndarray:
        return np.concatenate([run(merged, weights[i : i + 1], tokens) for i in range(CANDIDATES)])

    return {
        "together": lambda: run(shared, weights, tokens),
        "one by one": one_by_one,
        "plain model": lambda: run(plain, np.zeros((1, 0)), np.tile(tokens, (CANDIDATES, 1))),
    }


def prompts(vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, vocab, (ROWS, PROMPT), np.int32)


def theirs(folder: Path, prepare: Callable[[Any], Loop], weights: np.ndarray) -> Callable[[], np.ndarray]:
    """A loop over candidates; each is set in one live model, which then generates."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    become, given = prepare(model), torch.tensor(prompts(model.config.vocab_size), dtype=torch.long)

    def run() -> np.ndarray:
        found = []
        with torch.no_grad():
            for row in weights.tolist():
                become(model, row)
                options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
                found.append(
                    model.generate(given, attention_mask=torch.ones_like(given), **options)[:, PROMPT:].numpy()
                )
        return np.stack(found).astype(np.int32)

    return run


def merging(sources: Sequence[Path]) -> Callable[[Any], Loop]:
    """In place: sum_i w_i x_i / sum_i w_i."""

    def prepare(model: Any) -> Loop:
        parameters = dict(model.named_parameters())
        trees = [load_file(source / "model.safetensors") for source in sources]

        def become(model: Any, weights: Sequence[float]) -> None:
            for name, parameter in parameters.items():
                torch.mul(trees[0][name], weights[0] / sum(weights), out=parameter)
                for tree, weight in zip(trees[1:], weights[1:], strict=True):
                    parameter.add_(tree[name], alpha=weight / sum(weights))

        return become

    return prepare


class Adapted(torch.nn.Module):
    """A linear map with several active adapters, as `Linear.forward` of PEFT 0.21 computes it."""

    def __init__(self, base: torch.nn.Module, pairs: list[tuple[torch.Tensor, torch.Tensor]]):
        super().__init__()
        self.base, self.pairs, self.scaling = base, pairs, [1.0] * len(pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        for (a, b), scaling in zip(self.pairs, self.scaling, strict=True):
            result = result + torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * scaling
        return result


def adapting(folders: Sequence[Path]) -> Callable[[Any], Loop]:
    """All adapters active, their weights set; nothing is folded in."""

    def prepare(model: Any) -> Loop:
        trees, maps = [load_file(folder / "adapter_model.safetensors") for folder in folders], []
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in MAPS:
                keys = [f"base_model.model.{name}.lora_{half}.weight" for half in "AB"]
                maps.append(Adapted(module, [(tree[keys[0]], tree[keys[1]]) for tree in trees]))
                setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], maps[-1])

        def become(model: Any, weights: Sequence[float]) -> None:
            for one in maps:
                one.scaling = list(weights)

        return become

    return prepare


def folding(folders: Sequence[Path]) -> Callable[[Any], Loop]:
    """Each candidate's adapters are folded into the weights, in place."""

    def prepare(model: Any) -> Loop:
        trees = [load_file(folder / "adapter_model.safetensors") for folder in folders]
        parameters = {n: (p, p.clone()) for n, p in model.named_parameters() if n.split(".")[-2] in MAPS}

        def become(model: Any, weights: Sequence[float]) -> None:
            for name, (parameter, base) in parameters.items():
                a, b = (f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight" for half in "AB")
                scaled = torch.cat([tree[b] * w for tree, w in zip(trees, weights, strict=True)], dim=1)
                torch.addmm(base, scaled, torch.cat([tree[a] for tree in trees]), out=parameter)

        return become

    return prepare


def sources_part(folder: Path, work: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Linear of three full sources."""
    models = fine_tuned(folder, work)
    weights = np.random.default_rng(1).uniform(0.1, 1, (CANDIDATES, SOURCES)).astype(np.float32)
    found = ours(folder, [str(m) for m in models], "linear", weights)
    return found | {"PyTorch, merging in place": theirs(folder, merging(models), weights)}


def adapters_part(folder: Path, work: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Eight adapters of rank 16."""
    folders = adapters(folder, work)
    weights = np.random.default_rng(1).uniform(0, 0.5, (CANDIDATES, ADAPTERS)).astype(np.float32)
    found = ours(folder, [f"{folder}+{f}" for f in folders], "task_arithmetic", weights)
    rivals = {"PyTorch, setting weights": adapting(folders), "PyTorch, folding in place": folding(folders)}
    return found | {name: theirs(folder, prepare, weights) for name, prepare in rivals.items()}


def table(found: dict[str, Any], compared: Callable[..., Any], medians: Callable[..., Any]) -> dict[str, Any]:
    """Seconds, how many times as fast as the others, tokens per second, and the share of texts that are the same."""
    seconds, count = medians(found), CANDIDATES * ROWS * NEW
    others = [name for name in found if name not in ("together", "plain model")]
    mine = found["together"]["made"]
    return {
        "seconds": seconds,
        "times_as_fast": {name: compared(found, "together", name) for name in others},
        "tokens_per_second": {name: round(count / s, 1) for name, s in seconds.items()},
        "of_a_plain_model": compared(found, "together", "plain model"),
        "same_texts": {n: float(np.mean(np.all(mine == found[n]["made"], axis=-1))) for n in others},
    }
