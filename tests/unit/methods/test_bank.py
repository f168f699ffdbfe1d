"""A merge in memory, inside the layer scan, leaf by leaf to disk and after export: one and the same model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.genome.schema import Gene
from jevomerge.genome.space import express, make_space
from jevomerge.methods.bank import Merge, build, in_scan, make_bank
from jevomerge.methods.registry import MERGEKIT, PAPER, get_method
from jevomerge.models.model import apply, as_stored, unembed
from jevomerge.models.specs import flatten
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder

MODELS = Path(__file__).parents[2] / "data" / "parity" / "models"
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 12)), jnp.int32)
VALID = jnp.ones((2, 12), bool)
METHODS = [(name, "mergekit") for name in MERGEKIT] + [(n, "paper") for n, m in PAPER.items() if m is not MERGEKIT[n]]
# Of all_ways_agree: the same code as others', with other numbers.
SLOW = [(n, "paper", "float32") for n in PAPER] + [(n, "mergekit", "bfloat16") for n in MERGEKIT]
SLOW += [
    (n, "mergekit", "float32")
    for n in ("breadcrumbs_ties", "breadcrumbs", "della_linear", "della", "dare_linear", "nuslerp")
]


def setup(name, semantics, dtype):
    """A recipe of which every parameter is a gene, and a genome."""
    method = get_method(name, semantics)
    models = ("a", "b", "c")[: method.num_sources[1] or 3]
    recipe = Recipe.model_validate(
        {
            "merge_method": name,
            "models": [{"model": str(MODELS / m)} for m in models],
            "base_model": str(MODELS / "base") if method.base in ("optional", "required") else None,
            "semantics": semantics,
            "out_dtype": dtype,
            "seed": 3,
        }
    )
    genome = {}
    for i, p in enumerate(method.parameters):
        low, high = (0, 1) if p.kind == "bool" else (1, 8) if p.kind == "int" else (0.2, 1)
        genome[p.name] = Gene(range=(low, high), layers_per_group=2 if i == 0 else None, by="component")
    sources = Sources(recipe, searched=tuple(genome))
    space = make_space(sources, genome)
    merge = Merge(sources.method, dtype)
    bank = make_bank(merge, sources.specs, *sources.load(), sources.keys())
    genome_vector = jnp.asarray(np.random.default_rng(1).uniform(size=len(space.names)), jnp.float32)
    return sources, merge, bank, express(space, genome_vector)


@pytest.mark.parametrize(
    ("method", "semantics", "dtype"),
    [
        pytest.param(name, semantics, dtype, marks=[pytest.mark.slow] if (name, semantics, dtype) in SLOW else [])
        for name, semantics, dtype in [(*m, "float32") for m in METHODS]
        + [(n, "mergekit", "bfloat16") for n in ("linear", "karcher", "dare_ties")]
    ],
)
def test_all_ways_agree(method, semantics, dtype, tmp_path):
    sources, merge, bank, coefficients = setup(method, semantics, dtype)
    config = sources.like.model
    merged = jax.jit(build, static_argnums=0)(merge, bank, coefficients)

    merge_to_folder(sources, jax.tree.map(np.asarray, coefficients), tmp_path / "out")
    exported = Checkpoint(tmp_path / "out").load()
    # Compilers may contract a * b + c differently in different programs: one unit in the last place.
    ulp = 2**-22 if dtype == "float32" else 2**-7
    for path, leaf in flatten(merged).items():
        assert leaf.dtype.name == dtype
        np.testing.assert_allclose(
            np.asarray(flatten(exported)[path], np.float64),
            np.asarray(leaf, np.float64),
            rtol=ulp,
            atol=1e-6,
            err_msg=path,
        )

    def forward(params, layer=as_stored):
        return unembed(params, config, apply(params, config, TOKENS, VALID, layer=layer)[0])

    whole = jax.jit(forward)(merged)
    scanned = jax.jit(lambda bank, c: forward(*in_scan(merge, bank, c)))(bank, coefficients)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(scanned, whole, atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(forward)(exported), whole, atol=tolerance, rtol=1e-4)


def test_merging_in_the_scan_needs_one_layer_of_memory():
    """The temporaries of a scored candidate do not grow with the depth of the model."""
    sources, merge, bank, coefficients = setup("dare_ties", "paper", "float32")
    config = sources.like.model

    def temporaries(function):
        return jax.jit(function).lower(bank, coefficients).compile().memory_analysis().temp_size_in_bytes

    lazy = temporaries(lambda b, c: apply(*(x := in_scan(merge, b, c))[:1], config, TOKENS, VALID, layer=x[1])[0])
    eager = temporaries(lambda b, c: apply(build(merge, b, c), config, TOKENS, VALID)[0])
    blocks = sum(x.nbytes for path, x in bank.sources[0].items() if path.startswith("layers."))
    assert eager - lazy > 0.5 * blocks
