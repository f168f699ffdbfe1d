"""Recipes through our merge, file to file, against the tensors that mergekit 0.1.5 wrote for them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder

PARITY = Path(__file__).parents[1] / "data" / "parity"
RECIPES = sorted(p.stem for p in (PARITY / "recipes").glob("*.yml"))


def run(recipe: str, tmp_path: Path) -> dict[str, np.ndarray]:
    """Merge a recipe in which MODELS stands for the folder of the recorded models."""
    text = recipe.replace("MODELS", str(PARITY / "models"))
    (tmp_path / "recipe.yml").write_text(text)
    sources = Sources(read_recipe(tmp_path / "recipe.yml"))
    merge_to_folder(sources, sources.coefficients, tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("name", RECIPES)
def test_equals_mergekit(name, tmp_path):
    found = run((PARITY / "recipes" / f"{name}.yml").read_text(), tmp_path)
    expected = load_file(PARITY / "expected" / f"{name}.safetensors")
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, atol=1e-5, rtol=0, err_msg=tensor)


@pytest.mark.parametrize("name", RECIPES)
def test_written_recipe_reads_back_as_the_same_merge(name, tmp_path):
    found = run((PARITY / "recipes" / f"{name}.yml").read_text(), tmp_path)
    sources = Sources(read_recipe(tmp_path / "out" / "recipe.yaml"))
    merge_to_folder(sources, sources.coefficients, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for tensor, values in found.items():
        np.testing.assert_array_equal(again[tensor], values, err_msg=tensor)


@pytest.mark.parametrize(("dare", "plain"), [("dare_linear", "task_arithmetic"), ("dare_ties", "ties")])
def test_dare_at_density_one_is_its_deterministic_counterpart(dare, plain, tmp_path):
    """mergekit's own dare outputs are random; at density 1 nothing is dropped, so nothing is left to chance."""
    recipe = (PARITY / "recipes" / "task_arithmetic.yml").read_text()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = run(recipe.replace("task_arithmetic", dare), tmp_path / "a")
    normalize = "  normalize: false\n" if plain == "ties" else ""
    expected = run(recipe.replace("task_arithmetic", plain).replace("  lambda", normalize + "  lambda"), tmp_path / "b")
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, atol=1e-6, err_msg=tensor)
