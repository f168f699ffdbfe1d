"""Every method, tensor by tensor, against what mergekit 0.1.5 wrote for the recipes in tests/data/parity."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jevomerge.methods.registry import MERGEKIT, get_method

PARITY = Path(__file__).parents[1] / "data" / "parity"
RECIPES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((PARITY / "recipes").glob("*.yml"))}


def flat(recipe):
    """Whether a recipe has the same numbers for all tensors: gradients, filters and slices are the reader's part."""
    models = recipe.get("models", [])
    values = [v for m in [recipe, *models] for v in (m.get("parameters") or {}).values()]
    return bool(models) and not any(isinstance(v, list) for v in values)


def load(name):
    return load_file(PARITY / "models" / Path(name).name / "model.safetensors")


FLAT = [name for name, recipe in RECIPES.items() if flat(recipe)]


@pytest.mark.parametrize("name", FLAT)
def test_equals_mergekit(name):
    recipe = RECIPES[name]
    method = get_method(recipe["merge_method"])
    order = [m["model"] for m in recipe["models"]]
    base = recipe.get("base_model")
    if method.base == "first":
        order.sort(key=lambda model: model != base)
    models = {model: load(model) for model in [*order, *([base] if base else [])]}
    shared = recipe.get("parameters") or {}
    given = {m["model"]: m.get("parameters") or {} for m in recipe["models"]}
    sources = [m for m in order if m != base or method.base == "first"]
    coefficients = {
        p.name: jnp.asarray(
            [given[m].get(p.name, shared.get(p.name, p.default)) for m in sources]
            if p.per_model
            else shared.get(p.name, p.default),
            jnp.float32,
        )
        for p in method.parameters
    }
    merge = jax.jit(method.merge)
    for tensor, values in load_file(PARITY / "expected" / f"{name}.safetensors").items():
        xs = [jnp.asarray(models[m][tensor]) for m in sources]
        origin = jnp.asarray(models[base][tensor]) if base and method.base in ("optional", "required") else None
        keys = jnp.zeros((len(xs), 2), jnp.uint32)
        found = merge(xs, origin, coefficients, method.prepare(xs, origin), keys)
        np.testing.assert_allclose(np.asarray(found), values, atol=1e-5, rtol=0, err_msg=tensor)


def test_every_method_is_compared():
    """Those that draw random numbers, at density one."""
    assert {RECIPES[name]["merge_method"] for name in FLAT} == set(MERGEKIT)
