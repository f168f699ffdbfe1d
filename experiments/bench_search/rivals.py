"""How the same is done without jevomerge: a PyTorch loop in memory, and mergekit's command line."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from common import Problem, recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from jevomerge.fitness.batches import Batch, Layout


def score(model: torch.nn.Module, batches: Sequence[tuple[Layout, np.ndarray, Batch]]) -> np.ndarray:
    """Mean log-probability of every reference answer, on jevomerge's own padded batches."""
    out = np.empty(sum(int((index >= 0).sum()) for _, index, _ in batches))
    for layout, index, batch in batches:
        tokens = torch.from_numpy(np.array(batch.tokens)).long()
        valid = torch.from_numpy(np.array(batch.valid)).long()
        with torch.inference_mode():
            logits = model(
                input_ids=tokens[:, :-1],
                attention_mask=valid[:, :-1],
                position_ids=(valid.cumsum(1) - 1).clamp(min=0)[:, :-1],
                use_cache=False,
                logits_to_keep=layout.answer_slots,  # only these positions meet the vocabulary
            ).logits
            targets = tokens[:, -layout.answer_slots :]
            found = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        length = np.asarray(batch.answer_length)
        counted = np.arange(layout.answer_slots) >= layout.answer_slots - length[:, None]
        mean = np.where(counted, found.numpy(), 0).sum(1) / np.maximum(length, 1)
        out[index[index >= 0]] = mean[index >= 0]
    return out


class TorchLoop:
    """All weights in memory; each candidate is merged in place into one live transformers model."""

    def __init__(self, problem: Problem):
        """Load everything in float32."""
        self.model = AutoModelForCausalLM.from_pretrained(problem.base, dtype=torch.float32).eval()
        self.parameters = dict(self.model.named_parameters())

        def read(folder: Path) -> dict[str, torch.Tensor]:
            return {k: v.float() for k, v in load_file(folder / "model.safetensors").items() if k in self.parameters}

        self.base, self.sources = read(problem.base), [read(s) for s in problem.sources]

    @torch.no_grad()
    def linear(self, genome: np.ndarray) -> None:
        """sum_i w_i x_i / sum_i w_i, without a temporary."""
        weights = (genome / genome.sum()).tolist()
        for name, parameter in self.parameters.items():
            torch.mul(self.sources[0][name], weights[0], out=parameter)
            for source, weight in zip(self.sources[1:], weights[1:], strict=True):
                parameter.add_(source[name], alpha=weight)

    @torch.no_grad()
    def dare_ties(self, genome: np.ndarray) -> None:
        """Drop at random, rescale by 1/density, elect a sign, add what agrees."""
        weights, densities = genome[:3].tolist(), genome[3:].tolist()
        for name, parameter in self.parameters.items():
            base = self.base[name]
            deltas = []
            for source, weight, density in zip(self.sources, weights, densities, strict=True):
                mask = torch.empty_like(base).bernoulli_(density)
                deltas.append(source[name].sub(base).mul_(mask).mul_(weight / density))
            positive = (deltas[0] + deltas[1]).add_(deltas[2]) >= 0
            parameter.copy_(base)
            for delta in deltas:
                parameter.add_(delta.mul_((delta > 0) == positive))  # a zero adds nothing either way


class Mergekit:
    """What a user of mergekit does: write a recipe, run `mergekit-yaml` to disk, open the result, score it."""

    def __init__(self, command: Path, work: Path):
        """`command` is mergekit-yaml in an environment of its own."""
        self.command, self.work = command, work

    def candidate(self, problem: Problem, method: str, genome: np.ndarray, batches: Sequence) -> np.ndarray:
        """Merge and score one candidate."""
        numbers = [float(x) for x in genome]
        config, out = self.work / "candidate.yaml", self.work / "candidate"
        config.write_text(yaml.safe_dump(recipe(problem, method, numbers[:3], numbers[3:] or None)))
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([self.command, config, out], check=True, capture_output=True)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        return score(model, batches)
