"""Genomes: the map from a vector in the unit box to coefficients, and back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jevomerge.errors import InputError
from jevomerge.genome.schema import Gene
from jevomerge.genome.space import express, make_space, start_of, starts
from jevomerge.methods.bank import Merge, build, make_bank
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.write import write_recipe

MODELS = Path(__file__).parents[2] / "data" / "parity" / "models"


def sources(searched=(), **changes):
    recipe = {
        "merge_method": "ties",
        "base_model": str(MODELS / "base"),
        "models": [{"model": str(MODELS / m), "parameters": {"weight": 1.0}} for m in "ab"],
    }
    return Sources(Recipe.model_validate(recipe | changes), searched)


GENES = {
    "whole": ({"weight": [0, 2]}, 2),
    "layers": ({"weight": {"range": [0, 2], "layers_per_group": 3}}, 2 * (1 + 2 + 1)),
    "components": ({"weight": {"range": [0, 2], "by": "component"}}, 2 * (1 + 3 + 1)),
    "both": ({"weight": {"range": [0, 2], "layers_per_group": 2, "by": "component"}}, 2 * (1 + 2 * 3 + 1)),
    "smooth": ({"weight": {"range": [0, 2], "smooth": 3, "by": "component"}}, 2 * (1 + 3 * 3 + 1)),
    "two": ({"weight": [0, 2], "density": {"range": [0.1, 1], "layers_per_group": 4}, "lambda": [0, 1]}, 2 + 2 * 3 + 1),
}


def space_of(name):
    genes = {k: Gene.model_validate(v) for k, v in GENES[name][0].items()}
    s = sources(tuple(genes), parameters={"density": 0.7})
    return s, make_space(s, genes)


@pytest.mark.parametrize("name", GENES)
def test_every_gene_is_named_ranged_and_used(name):
    _, space = space_of(name)
    assert len(space.names) == len(set(space.names)) == GENES[name][1]
    flat = jax.jit(jax.jacobian(lambda g: jnp.concatenate([x.ravel() for x in jax.tree.leaves(express(space, g))])))
    gradient = flat(jnp.full(len(space.names), 0.5))
    assert (np.abs(gradient).sum(0) > 0).all()  # every gene moves something
    most = 2 if name == "smooth" else 1
    assert ((np.asarray(gradient) != 0).sum(1) <= most).all()  # and every coefficient has at most one gene, or two ends


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
    again = Sources(Recipe.model_validate(yaml.safe_load(write_recipe(s, numbers)))).coefficients
    jax.tree.map(np.testing.assert_array_equal, again, numbers)


@pytest.mark.parametrize(
    ("genes", "expected"),
    [
        ({"wieght": [0, 1]}, "has no parameter `wieght`"),
        ({"normalize": [0, 2]}, "on or off"),
        ({"density": [0, 1.5]}, "must be in"),
    ],
)
def test_impossible_genes(genes, expected):
    with pytest.raises(InputError, match=expected):
        make_space(sources(tuple(genes)), {k: Gene(range=v) for k, v in genes.items()})


def test_switches_and_whole_numbers_are_genes_too():
    s = sources(merge_method="karcher", models=[{"model": str(MODELS / m)} for m in "ab"])
    space = make_space(s, {"max_iter": Gene(range=(2, 5)), "tol": Gene(range=(0, 1))})
    found = [
        float(express(space, jnp.float32([x, 0.5]))["norm.weight"]["max_iter"]) for x in (0, 0.24, 0.26, 0.6, 0.99, 1)
    ]
    assert found == [2, 2, 3, 4, 5, 5]
    space = make_space(sources(), {"normalize": Gene(range=(0, 1)), "weight": Gene(range=(0, 1))})
    for value, expected in ((0.0, 0), (0.49, 0), (0.5, 1), (1.0, 1)):
        genome = jnp.full(len(space.names), value)
        assert float(express(space, genome)["norm.weight"]["normalize"]) == expected
        assert space.values(np.asarray(genome))["model/normalize"] == expected


def test_groups_by_filter_go_to_the_first_that_matches():
    s = sources(("weight",))
    space = make_space(s, {"weight": Gene(range=(0, 1), by=("q_proj", "self_attn", "lm_head"))})
    assert {n.split("/")[0] for n in space.names} == {"q_proj", "self_attn", "lm_head", "rest"}
    genome = np.zeros(len(space.names))
    genome[space.names.index("self_attn/a/weight")] = 1
    found = express(space, jnp.asarray(genome, jnp.float32))
    on = {path for path, values in found.items() if np.asarray(values["weight"])[..., 0].any()}
    assert on == {f"layers.self_attn.{x}_proj.weight" for x in "kvo"}


@pytest.mark.parametrize("name", [n for n in GENES if n != "two"])
def test_the_recipe_as_a_genome(name):
    """Where the groups can tell a recipe's numbers apart, expressing its genome gives the recipe back."""
    genes = {k: Gene.model_validate(v) for k, v in GENES[name][0].items()}
    value = {"layers": [{"filter": "embed", "value": 0.1}, {"value": 0.7}]}.get(name, 0.3)
    s = sources(models=[{"model": str(MODELS / m), "parameters": {"weight": value}} for m in "ab"])
    space = make_space(s, genes)
    again = express(space, jnp.asarray(start_of(space, s.coefficients), jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, s.coefficients)


def test_a_start_outside_the_range_is_refused():
    s = sources()  # weights are 1
    with pytest.raises(InputError, match=r"start_from: the recipe has 1 for model/a/weight, outside"):
        start_of(make_space(s, {"weight": Gene(range=(0, 0.5))}), s.coefficients)


def at(space, genome, parameter):
    """What a genome says of a parameter, {gene: value}."""
    return {n: v for n, v in space.values(genome).items() if n.endswith(f"/{parameter}")}


def test_sources_and_their_average_as_genomes():
    """A source has all of the weight, at full density; the average 1/N; other genes are the recipe's."""
    s, space = space_of("two")
    a, b, average, thin_a, _ = starts(space, s, ("sources", "average", "sparsified"))
    assert at(space, a, "weight") == {"model/a/weight": 1, "model/b/weight": 0}
    assert at(space, b, "weight") == {"model/a/weight": 0, "model/b/weight": 1}
    assert set(at(space, average, "weight").values()) == {0.5}
    for genome in (a, b, average):
        assert set(at(space, genome, "density").values()) == set(at(space, genome, "lambda").values()) == {1}
    np.testing.assert_allclose(list(at(space, thin_a, "density").values()), 0.1, atol=1e-6)
    assert at(space, thin_a, "weight") == at(space, a, "weight")


@pytest.mark.parametrize("name", ["whole", "both", "two"])
def test_a_source_as_a_genome_merges_into_the_source(name):
    """TIES of all of one task vector: its tensors, to the rounding of base + (x - base)."""
    genes = {k: Gene.model_validate(v) for k, v in GENES[name][0].items()}
    s = sources(tuple(genes))
    space = make_space(s, genes)
    tree, base = s.load()
    bank = make_bank(Merge(s.method, "float32"), s.specs, tree, base, s.keys())
    for genome, expected in zip(starts(space, s, ("sources",)), tree, strict=True):
        made = build(Merge(s.method, "float32"), bank, express(space, jnp.asarray(genome, jnp.float32)))
        for found, leaf in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, np.asarray(leaf, np.float32), atol=1e-6)


def test_a_recipe_that_changes_every_source_is_noted():
    genes = {"weight": Gene.model_validate([0, 2])}
    s = sources(("weight",), parameters={"density": 0.7})
    starts(make_space(s, genes), s, ("sources",))
    assert any("with the recipe's `density` no candidate is a source itself" in note for note in s.notes)


def test_the_two_ends_of_slerp_are_its_sources():
    models = [{"model": str(MODELS / m)} for m in "ab"]
    s = sources(("t",), merge_method="slerp", base_model=str(MODELS / "a"), models=models)
    space = make_space(s, {"t": Gene.model_validate([0, 1])})
    np.testing.assert_array_equal(starts(space, s, ("average", "sources")), [[0.5], [0], [1]])


@pytest.mark.parametrize(
    ("genes", "which", "message"),
    [
        ({"weight": [0.2, 2]}, "sources", r"needs 0 for model/b/weight, outside the gene's range \[0.2, 2\]"),
        ({"weight": [0, 2], "density": [0.1, 0.9]}, "sources", "needs 1 for model/a/density"),
        ({"density": [0.1, 1]}, "average", "no gene of this search with ties picks a source"),
        ({"weight": [0, 2]}, "sparsified", "needs a gene `density`"),
    ],
)
def test_starts_that_no_genome_can_be_are_refused(genes, which, message):
    genes = {k: Gene.model_validate(v) for k, v in genes.items()}
    s = sources(tuple(genes))
    with pytest.raises(InputError, match=message):
        starts(make_space(s, genes), s, (which,))


def smooth_space(points, layers=4, **gene):
    """A space of TIES whose weights are interpolated, over the recipe's four layers or a stack of more."""
    stack = [{"model": str(MODELS / m), "layer_range": [0, 4]} for m in "ab"]
    slices = {"models": (), "slices": [{"sources": stack} for _ in range(layers // 4)]}
    s = sources(("weight",), **(slices if layers > 4 else {}))
    return s, make_space(s, {"weight": Gene(range=(0, 2), smooth=points, **gene)})


@pytest.mark.parametrize(("points", "layers"), [(2, 4), (3, 4), (5, 12), (9, 12), (12, 12)])
def test_smooth_genes_are_interpolated_over_depth(points, layers):
    """As NumPy does it, in float64; embedding and head have genes of their own."""
    _, space = smooth_space(points, layers, by="component")
    genome = np.random.default_rng(points).uniform(size=len(space.names))
    assert len(space.names) == 2 * (2 + 3 * points)
    values, found = space.values(genome), jax.jit(express)(space, jnp.asarray(genome, jnp.float32))
    for part, path in (("mlp", "layers.mlp.up_proj.weight"), ("attention", "layers.self_attn.q_proj.weight")):
        for column, model in enumerate("ab"):
            line = [values[f"point {i + 1} of {points} {part}/{model}/weight"] for i in range(points)]
            expected = np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, points), line)
            np.testing.assert_allclose(found[path]["weight"][:, column], expected, atol=1e-6)
    assert found["lm_head.weight"]["weight"][1] == np.float32(values["head/b/weight"])


def test_a_smooth_start_is_the_recipes_gradient():
    """Lists in a recipe are the same lines, also with a kink between two layers; else the nearest line in the range."""
    s, space = smooth_space(3)
    for points in ([0.2, 1.8, 0.5], [2, 0, 2]):
        again = sources(models=[{"model": str(MODELS / m), "parameters": {"weight": points}} for m in "ab"])
        genome = jnp.asarray(start_of(space, again.coefficients), jnp.float32)
        found = jax.jit(express)(space, genome)["layers.mlp.up_proj.weight"]["weight"]
        np.testing.assert_allclose(found, again.coefficients["layers.mlp.up_proj.weight"]["weight"], atol=1e-6)
    steps = jax.tree.map(np.array, s.coefficients)
    for path, own in steps.items():
        own["weight"][:] = 2.0
        if path.startswith("layers."):
            own["weight"][0] = 0.0
    genome = start_of(space, steps)
    assert genome.min() >= 0
    assert genome.max() <= 1
    steps["layers.mlp.up_proj.weight"]["weight"][1:] = 9.0
    with pytest.raises(InputError, match="start_from: the recipe has"):
        start_of(space, steps)


def test_a_smooth_gene_has_a_gradient_and_its_sources_as_starts():
    s, space = smooth_space(2)
    slope = jax.jit(jax.grad(lambda g: express(space, g)["layers.mlp.up_proj.weight"]["weight"][1, 0]))(
        jnp.full(8, 0.5)
    )
    at = [space.names.index(f"point {i} of 2/a/weight") for i in (1, 2)]
    np.testing.assert_allclose(slope[np.array(at)], [2 * 2 / 3, 2 * 1 / 3], rtol=1e-6)
    assert np.count_nonzero(slope) == 2
    a, _ = starts(space, s, ("sources",))
    assert {n for n, v in space.values(a).items() if v == 1} == {n for n in space.names if "/a/" in n}


@pytest.mark.parametrize(
    ("name", "gene", "expected"),
    [
        ("weight", {"range": [0, 1], "smooth": 5}, "5 points are more than the 4 layers"),
        ("normalize", {"smooth": 2}, "nothing lies between on and off"),
        ("weight", {"range": [0, 1], "smooth": 3, "layers_per_group": 2}, "leave one of them out"),
        ("weight", {"range": [0, 1], "smooth": 1}, "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_smooth_is_refused(name, gene, expected):
    with pytest.raises(InputError, match=expected):
        make_space(sources((name,)), {name: gene})
