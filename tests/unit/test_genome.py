"""Recipes and genomes: mergekit's rules for values, and the map from a vector to coefficients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jevomerge.config import Gene, Recipe
from jevomerge.errors import InputError
from jevomerge.genome import express, make_space
from jevomerge.recipe import Sources, resolve, write_recipe

MODELS = Path(__file__).parents[1] / "data" / "parity" / "models"


def sources(**changes):
    recipe = {
        "merge_method": "ties",
        "base_model": str(MODELS / "base"),
        "models": [{"model": str(MODELS / m), "parameters": {"weight": 1.0}} for m in "ab"],
    }
    return Sources(Recipe.model_validate(recipe | changes))


def weights(*settings):
    """Resolve `weight` settings of sources a and b: {path: ([L,] 2)}."""
    models = [{"model": str(MODELS / m), "parameters": {"weight": s}} for m, s in zip("ab", settings, strict=True)]
    return {path: n["weight"] for path, n in resolve(sources(models=models)).items()}


def test_gradient_over_four_layers():
    found = weights([0, 1], 0.5)
    np.testing.assert_allclose(found["layers.mlp.up_proj.weight"][:, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-7)
    # mergekit plans embeddings, final norm and head at the first layer's position
    for path in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        assert found[path].tolist() == [0, 0.5]


def test_documented_gradient():
    """mergekit's own example: [0, .5, .3, .7, 1] over 40 layers at layers 0, 10, 20, 30, 39."""
    from jevomerge.recipe import _at

    values = [_at((0, 0.5, 0.3, 0.7, 1), i / 39) for i in (0, 10, 20, 30, 39)]
    one_hot = [_at(tuple(float(j == 8) for j in range(26)), i / 25) for i in range(26)]
    assert one_hot == [float(i == 8) for i in range(26)]  # a gradient of one value per layer is exactly that
    np.testing.assert_allclose(values, [0, 0.4949, 0.3205, 0.7231, 1], atol=5e-5)


def test_first_matching_filter_wins_and_no_match_falls_through():
    found = weights([{"filter": "q_proj", "value": 0.1}, {"filter": "self_attn", "value": 0.2}, {"value": 1}], 1.0)
    assert found["layers.self_attn.q_proj.weight"][0, 0] == np.float32(0.1)
    assert found["layers.self_attn.k_proj.weight"][0, 0] == np.float32(0.2)
    with_scope = resolve(
        sources(
            models=[
                {"model": str(MODELS / "a"), "parameters": {"density": [{"filter": "mlp", "value": 0.3}], "weight": 1}},
                {"model": str(MODELS / "b"), "parameters": {"weight": 1}},
            ],
            parameters={"density": 0.6},
        )
    )
    assert with_scope["layers.mlp.up_proj.weight"]["density"][0].tolist() == [np.float32(0.3), np.float32(0.6)]
    assert with_scope["norm.weight"]["density"].tolist() == [np.float32(0.6)] * 2


def test_missing_weight_names_the_tensor():
    with pytest.raises(InputError, match=r"`weight` of .*b is missing for tensor"):
        resolve(
            sources(models=[{"model": str(MODELS / "a"), "parameters": {"weight": 1}}, {"model": str(MODELS / "b")}])
        )


def test_unknown_parameter():
    with pytest.raises(InputError, match="ties has no `wieght`"):
        resolve(sources(parameters={"wieght": 1}))


GENES = {
    "whole": ({"weight": [0, 2]}, 2),
    "layers": ({"weight": {"range": [0, 2], "layers_per_group": 3}}, 2 * (1 + 2 + 1)),
    "components": ({"weight": {"range": [0, 2], "components": True}}, 2 * (1 + 3 + 1)),
    "both": ({"weight": {"range": [0, 2], "layers_per_group": 2, "components": True}}, 2 * (1 + 2 * 3 + 1)),
    "two": ({"weight": [0, 2], "density": {"range": [0.1, 1], "layers_per_group": 4}, "lambda": [0, 1]}, 2 + 2 * 3 + 1),
}


def space_of(name):
    genes = {k: Gene.model_validate(v) for k, v in GENES[name][0].items()}
    s = sources(parameters={"density": 0.7})
    return s, make_space(s.method, s.like.specs, s.names, genes, resolve(s, searched=tuple(genes)))


@pytest.mark.parametrize("name", GENES)
def test_every_gene_is_named_ranged_and_used(name):
    _, space = space_of(name)
    assert len(space.names) == len(set(space.names)) == GENES[name][1]
    gradient = jax.jacobian(lambda g: jnp.concatenate([x.ravel() for x in jax.tree.leaves(express(space, g))]))(
        jnp.full(len(space.names), 0.5)
    )
    assert (np.abs(gradient).sum(0) > 0).all()  # every gene moves something
    assert ((np.asarray(gradient) != 0).sum(1) <= 1).all()  # and every coefficient has at most one gene


def test_a_genome_reaches_the_right_coefficients():
    _, space = space_of("both")
    genome = np.zeros(len(space.names))
    genome[space.names.index("layers 2-3 mlp/b/weight")] = 0.75
    found = express(space, jnp.asarray(genome, jnp.float32))
    assert np.asarray(found["layers.mlp.gate_proj.weight"]["weight"]).tolist() == [[0, 0], [0, 0], [0, 1.5], [0, 1.5]]
    assert not np.asarray(found["layers.self_attn.o_proj.weight"]["weight"]).any()
    assert np.asarray(found["norm.weight"]["density"]).tolist() == [np.float32(0.7)] * 2  # fixed by the recipe
    assert space.values(genome)["layers 2-3 mlp/b/weight"] == 1.5


@pytest.mark.parametrize("name", GENES)
def test_a_genome_as_a_recipe_is_the_same_coefficients(name):
    s, space = space_of(name)
    genome = jnp.asarray(np.random.default_rng(0).uniform(size=len(space.names)), jnp.float32)
    numbers = jax.tree.map(np.asarray, express(space, genome))
    again = resolve(Sources(Recipe.model_validate(yaml.safe_load(write_recipe(s, numbers)))))
    jax.tree.map(np.testing.assert_array_equal, again, numbers)


@pytest.mark.parametrize(
    ("genes", "expected"),
    [
        ({"wieght": [0, 1]}, "has no parameter `wieght`"),
        ({"normalize": [0, 1]}, "on or off"),
        ({"density": [0, 1.5]}, "must be in"),
    ],
)
def test_impossible_genes(genes, expected):
    s = sources()
    with pytest.raises(InputError, match=expected):
        make_space(
            s.method, s.like.specs, s.names, {k: Gene(range=v) for k, v in genes.items()}, resolve(s, tuple(genes))
        )
