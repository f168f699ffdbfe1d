"""mergekit, run on the recipes that we write: a genome of any method gives the same model there.

Slow, with mergekit 0.1.5 in an environment of its own: JEVOMERGE_MERGEKIT=/path/to/mergekit-yaml pytest -m slow
"""

import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jevomerge.genome.schema import Gene
from jevomerge.genome.space import express, make_space
from jevomerge.methods.registry import MERGEKIT
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder

MERGEKIT_YAML = os.environ.get("JEVOMERGE_MERGEKIT")
MODELS = Path(__file__).parents[2] / "experiments" / "japanese_math_mini" / "models"  # trained ones
FIXED = {  # mergekit's own random masks differ from ours; where everything is kept nothing is left to chance
    **{name: {"density": 1.0} for name in ("dare_linear", "dare_ties", "della", "della_linear")},
    "karcher": {"max_iter": 10, "tol": 1e-5},  # the last steps are below what float32 can tell
}
RANGES = {"density": (0.2, 1), "t": (0, 1), "select_topk": (0.1, 1), "gamma": (0, 0.2), "lambda": (0.5, 1.5)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trained models in float32, dithered: in bfloat16 many task vectors' elements have equal magnitudes, of which
    mergekit keeps those that its sort happens to put first, we all or none.
    """
    folder, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for name in ("base", "japanese", "mathematics", "addition"):
        shutil.copytree(MODELS / name, folder / name)
        weights = load_file(MODELS / name / "model.safetensors")
        dithered = {k: v.astype(np.float32) * rng.uniform(1 - 1e-3, 1 + 1e-3, v.shape) for k, v in weights.items()}
        dithered = {k: v.astype(np.float32) for k, v in dithered.items()}
        save_file(dithered, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.skipif(MERGEKIT_YAML is None, reason="needs JEVOMERGE_MERGEKIT, the path of mergekit-yaml")
@pytest.mark.parametrize("name", MERGEKIT)
def test_mergekit_makes_the_model_of_a_genome(name, trained, tmp_path):
    method = MERGEKIT[name]
    most = method.num_sources[1] or 3
    models = [str(trained / m) for m in ("japanese", "mathematics", "addition")[:most]]
    fixed = {p.name: p.default for p in method.parameters if p.default is not None} | FIXED.get(name, {})
    recipe = {
        "merge_method": name,
        "models": [{"model": m} for m in models],
        "parameters": {p.name: fixed[p.name] for p in method.parameters if p.name in fixed},
        "dtype": "float32",
    }
    if method.base in ("required", "first"):
        recipe["base_model"] = str(trained / "base") if method.base == "required" else models[0]
    genome = {
        p.name: Gene(range=RANGES.get(p.name, (0.1, 1.0)), layers_per_group=1, by="component")
        for p in method.parameters
        if p.kind == "float" and p.name not in FIXED.get(name, {}) and "eps" not in p.name
    }
    sources = Sources(Recipe.model_validate(recipe), searched=tuple(genome))
    numbers = sources.coefficients
    if genome:
        space = make_space(sources, genome)
        vector = jnp.asarray(np.random.default_rng(0).uniform(size=len(space.names)), jnp.float32)
        numbers = jax.tree.map(np.asarray, express(space, vector))
    merge_to_folder(sources, numbers, tmp_path / "ours")
    if name == "arcee_fusion":  # in float32 the noise of its divergence, a sum, decides over elements at the threshold
        path = tmp_path / "ours" / "recipe.yaml"
        path.write_text(path.read_text().replace("\ndtype: float32", "\ndtype: float64"))
    command = [str(MERGEKIT_YAML), str(tmp_path / "ours" / "recipe.yaml"), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path / "ours")  # the recipe's paths are from there
    ours, theirs = (load_file(tmp_path / x / "model.safetensors") for x in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}  # tied
    for tensor, values in ours.items():
        np.testing.assert_allclose(values, theirs[tensor], atol=1e-5, rtol=1e-5, err_msg=tensor)
