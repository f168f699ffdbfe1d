"""PEFT's ways to make one adapter of several, against torch, written from what its documentation says they are.

Random masks are PEFT's own; ours are handed to the reference.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.genome.schema import Gene
from jevomerge.methods.factors import OTHER
from jevomerge.methods.field import merge_keys, uniform_field
from jevomerge.models.specs import flatten
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.run.merge import merge_folder
from tests.unit.checkpoint.test_lora import DOWN2, K0, LLAMA, Q0, pair, write_adapter
from tests.unit.devices.test_mesh import mesh_of
from tests.unit.recipe.test_to_adapter import recipe

WEIGHTS, DENSITY = {"one": 0.7, "two": -0.4, "three": 1.1}, 0.6
TYPES = {"linear": "task_arithmetic", **{n: n for n in ("ties", "dare_linear", "dare_ties", "magnitude_prune")}}
ALPHAS = {"one": 6, "two": 2, "three": 4}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Three of rank 4, of other scales; `two` has no K0."""
    folder = tmp_path_factory.mktemp("adapters")
    for shift, (name, alpha) in enumerate(ALPHAS.items()):
        tensors = {}
        for module in (Q0, DOWN2) if name == "two" else (Q0, K0, DOWN2):
            tensors |= {k: np.roll(v, 7 * shift) for k, v in pair(module).items()}
        write_adapter(folder / name, tensors, lora_alpha=alpha)
    return folder


def combined(kind, tensors, weights, fields):
    """One tensor of PEFT's `add_weighted_adapter`; `fields`: uniform numbers in place of its draws."""
    if kind == "linear":
        kept = tensors
    elif kind.startswith("dare"):
        kept = [t * (torch.tensor(f) < DENSITY) / DENSITY for t, f in zip(tensors, fields, strict=True)]
    else:
        kept = []
        for t in tensors:
            flat, mask = t.abs().flatten(), torch.zeros(t.numel())
            mask[flat.topk(int(DENSITY * t.numel())).indices] = 1
            kept.append(t * mask.reshape(t.shape))
    kept, weights = torch.stack(kept), torch.tensor(weights)[:, None, None]
    if not kind.endswith("ties"):
        return (weights * kept).sum(0)
    majority = kept.sign() == torch.where(kept.sum(0) >= 0, 1, -1)
    return (weights * kept * majority).sum(0) / majority.sum(0).clamp(min=1)


def by_hand(adapters, kind, module):
    """A and B of the result for a module, which some adapters may not have."""
    sides = []
    for half, sign in (("A", True), ("B", False)):
        tensors, given, fields = [], [], []
        for name, weight in WEIGHTS.items():
            found = load_file(adapters / name / "adapter_model.safetensors")
            key = f"base_model.model.{module}.lora_{half}.weight"
            if key not in found:
                continue
            scaled = weight * ALPHAS[name] / 4
            given.append(np.sqrt(abs(scaled)) * (np.sign(scaled) if sign else 1))
            tensors.append(torch.tensor(found[key], dtype=torch.float64))
            own = merge_keys(0, f"a+{name}", f"{module}.weight") ^ np.uint32(0 if sign else OTHER)
            fields.append(np.asarray(uniform_field(jnp.asarray(own), found[key].shape)))
        sides.append(combined(kind, tensors, np.array(given), fields).numpy())
    return sides


@pytest.mark.parametrize("kind", TYPES)
def test_factors_are_merged_each_by_itself(kind, adapters, tmp_path):
    more = {} if kind == "linear" else {"parameters": {"density": DENSITY}}
    given = recipe(adapters, TYPES[kind], semantics="peft", adapter="factors", **more)
    merge_folder(given, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 4)
    for module in (Q0, K0, DOWN2):
        for half, expected in zip("AB", by_hand(adapters, kind, module), strict=True):
            key = f"base_model.model.{module}.lora_{half}.weight"
            np.testing.assert_allclose(found[key], expected, atol=1e-5, err_msg=key)
            assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("kind", ["ties", "dare_ties", "magnitude_prune"])
def test_types_that_end_in_svd_merge_what_adapters_add(kind, adapters, tmp_path):
    merge_folder(
        recipe(adapters, TYPES[kind], semantics="peft", adapter=3, parameters={"density": DENSITY}), tmp_path / "out"
    )
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for module in (Q0, DOWN2):
        deltas, fields = [], []
        for name, alpha in ALPHAS.items():
            a, b = (pair_of(adapters / name, module, half) for half in "AB")
            deltas.append(alpha / 4 * b @ a)
            key = jnp.asarray(merge_keys(0, f"a+{name}", f"{module}.weight"))
            fields.append(np.asarray(uniform_field(key, deltas[-1].shape)))
        whole = combined(kind, deltas, np.array([*WEIGHTS.values()]), fields)
        u, s, vt = torch.linalg.svd(whole)
        a, b = (found[f"base_model.model.{module}.lora_{half}.weight"].astype(np.float64) for half in "AB")
        np.testing.assert_allclose(b @ a, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)


def pair_of(folder, module, half):
    tensors = load_file(folder / "adapter_model.safetensors")
    return torch.tensor(tensors[f"base_model.model.{module}.lora_{half}.weight"], dtype=torch.float64)


@pytest.mark.parametrize(
    "method", ["ties", *(pytest.param(m, marks=pytest.mark.slow) for m in ("task_arithmetic", "dare_ties"))]
)
def test_a_search_scores_factors_as_they_are_exported(method, adapters, tmp_path):
    given = recipe(adapters, method, semantics="peft", adapter="factors", parameters={"lambda": 0.8})
    problem = WeightProblem(Recipe.model_validate(given), {"weight": Gene(range=(-1, 1), layers_per_group=2)})
    genome = np.random.default_rng(0).uniform(size=len(problem.names))
    problem.export(genome, tmp_path / "out")
    exported = flatten(problem.reopen(tmp_path / "out").load())
    candidates = problem.load()
    made = flatten(jax.jit(lambda c, g: c.make(g))(candidates, jnp.asarray(genome, jnp.float32)))
    plain = flatten(Checkpoint(LLAMA).load())
    for path, leaf in exported.items():
        np.testing.assert_allclose(made[path], leaf, atol=1e-5, err_msg=path)
    changed = {path for path in plain if np.abs(np.asarray(plain[path]) - made[path]).max() > 0.1}
    assert changed == {f"layers.{m}.weight" for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")}
    mesh, abstract = mesh_of(1, 1), problem.load(mesh_of(1, 1), abstract=True)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), c.held()) for c in (abstract, problem.load(mesh))]
    assert shapes[0] == shapes[1]
    assert "merged each by itself" in problem.shared or method != "task_arithmetic"


def test_what_has_no_factors_is_refused(adapters, tmp_path):
    write_adapter(tmp_path / "small", pair(Q0, 2), r=2)
    for given, message in (
        (recipe(adapters, "sce"), "sce merges no `factors`"),
        (recipe(adapters, "ties", semantics="paper"), "ties merges no `factors`"),
        (recipe(adapters), "these have 2 and 4; give a rank"),
    ):
        if "2 and 4" in message:
            given["models"].append({"model": f"{LLAMA}+{tmp_path / 'small'}", "parameters": {"weight": 1}})
        with pytest.raises(InputError, match=message):
            Sources(Recipe.model_validate(given | {"adapter": "factors"}))
    with pytest.raises(InputError, match="magnitude_prune` is not known"):
        Sources(Recipe.model_validate(recipe(adapters, "magnitude_prune")))
