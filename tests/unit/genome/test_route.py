"""The encoding of paths, against a plain-Python decoder and the laws it must obey."""

import math
import re

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jevomerge.errors import InputError
from jevomerge.genome.route import Hop, PathSpace, active, describe, distinct, encode, express_path, hops_of, slices_of
from jevomerge.strategies.paths import make_path_strategy

SCALINGS = ("none", "per_hop", "matrix", "network")
SPACES = [
    PathSpace(models, depths, repeats, scaling, scale_range, hidden=3)
    for scaling in SCALINGS
    for models, depths, repeats, scale_range in [
        (("a", "b"), (3, 2), 2, (0.5, 1.5)),
        (("a",), (1,), 2, (0.4, 1.5)),
        (("a", "b", "c"), (2, 1, 4), 3, (-1.5, 1.25)),
    ]
]
jitted = {space: jax.jit(lambda genome, space=space: express_path(space, genome)) for space in SPACES}
IDS = [f"{s.scaling}-{s.num_layers}x{s.repeats}" for s in SPACES]
each_space = pytest.mark.parametrize("space", SPACES, ids=IDS)


def genomes(space: PathSpace) -> st.SearchStrategy[np.ndarray]:
    numbers = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0])
    return hnp.arrays(np.float32, space.num_genes, elements=numbers)


def reference(space: PathSpace, genome: list[float]) -> list[tuple[int, float]]:
    """(layer, scale) of every hop, in plain Python and float64."""
    total, count, depth = sum(space.depths) * space.repeats, sum(space.depths), space.depths[0]
    slots, genes = genome[:total], genome[total:]
    low, high = space.scale_range
    hops = [(t % count, t) for t in range(total) if t == 0 or slots[t] > 0.5]
    if hops[-1][0] != depth - 1:
        hops.append((depth - 1, total))
    path, before = [], None
    for layer, slot in hops:
        scale = 1.0
        if space.scaling == "per_hop":
            scale = low + (high - low) * genes[slot]
        elif space.scaling == "matrix" and before is not None:
            scale = low + (high - low) * genes[before * count + layer]
        elif space.scaling == "network" and before is not None:
            scale = network(space, genes, before, layer, 2 * slot / total - 1)
        path.append((layer, scale))
        before = layer
    return path


def network(space: PathSpace, genes: list[float], before: int, layer: int, time: float) -> float:
    inputs: list[float] = []
    for index in (before, layer):
        model = 0
        while index >= space.depths[model]:
            index -= space.depths[model]
            model += 1
        inputs.append(2 * index / (space.depths[model] - 1) - 1 if space.depths[model] > 1 else 0)
        inputs += [float(m == model) for m in range(len(space.models))]
    inputs.append(time)
    theta = iter([3 * (2 * g - 1) for g in genes])
    first = [[next(theta) for _ in range(space.hidden)] for _ in inputs]
    bias = [next(theta) for _ in range(space.hidden)]
    second = [next(theta) for _ in range(space.hidden)]
    output = next(theta)
    for h in range(space.hidden):
        unit = sum(x * w[h] for x, w in zip(inputs, first, strict=True)) / math.sqrt(len(inputs)) + bias[h]
        output += second[h] * math.tanh(unit) / math.sqrt(space.hidden)
    low, high = space.scale_range
    return low + (high - low) / (1 + (high - 1) / (1 - low) * math.exp(-output))


@each_space
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_vector_is_the_path_of_the_plain_decoder(space, data):
    genome = data.draw(genomes(space))
    path = jitted[space](genome)
    expected = reference(space, [float(g) for g in genome])
    length = int(path.length)
    assert path.layers[:length].tolist() == [layer for layer, _ in expected]
    np.testing.assert_allclose(path.scales[:length], [scale for _, scale in expected], atol=2e-6)
    assert not np.any(path.layers[length:])
    assert np.all(path.scales[length:] == 1)
    chex.assert_shape([path.layers, path.scales], (space.num_slots + 1,))
    chex.assert_type([path.layers, path.scales, path.length], [jnp.int32, jnp.float32, jnp.int32])
    assert path.layers[0] == 0
    assert path.layers[length - 1] == space.depths[0] - 1


@each_space
def test_vmap_and_jit_change_nothing(space):
    batch = np.random.default_rng(0).random((7, space.num_genes)).astype(np.float32)
    plain = [express_path(space, jnp.asarray(genome)) for genome in batch]
    together = jax.jit(jax.vmap(lambda genome: express_path(space, genome)))(batch)
    for k, path in enumerate(plain):
        chex.assert_trees_all_close(path, jax.tree.map(lambda x, k=k: x[k], together), rtol=1e-6)
        chex.assert_trees_all_equal(path.layers, together.layers[k])


@each_space
def test_no_slot_on_and_all_on(space):
    genome = np.full(space.num_genes, 0.5)
    nothing = express_path(space, jnp.asarray(genome))
    ends = [0] if space.end == 0 else [0, space.end]
    assert nothing.layers[: int(nothing.length)].tolist() == ends
    everything = express_path(space, jnp.ones(space.num_genes))
    count = space.num_slots + ((space.num_slots - 1) % space.num_layers != space.end)
    assert int(everything.length) == count
    assert everything.layers[: space.num_slots].tolist() == [t % space.num_layers for t in range(space.num_slots)]


@each_space
def test_the_start_is_model_a_itself(space):
    strategy = make_path_strategy("mixed", space)
    whole = encode(space, hops_of([("a", 0, space.depths[0])]))
    for start in (whole, strategy._start):
        path = express_path(space, jnp.asarray(start))
        assert slices_of([hop._replace(scale=round(hop.scale, 6)) for hop in describe(space, path)]) == [
            ("a", 0, space.depths[0])
        ]
        np.testing.assert_allclose(path.scales, 1, atol=3e-7)
    on = whole[: space.num_slots]
    np.testing.assert_array_equal(on, [5 / 6] * space.depths[0] + [0.5] * (space.num_slots - space.depths[0]))


@each_space
def test_at_the_centre_every_scale_is_one(space):
    """Of a range around 1; scale 1 of another range is its share, for a network always the centre."""
    space = PathSpace(space.models, space.depths, space.repeats, space.scaling, (0.5, 1.5))
    genome = np.full(space.num_genes, 0.5)
    genome[: space.num_slots] = np.random.default_rng(1).random(space.num_slots)
    np.testing.assert_array_equal(express_path(space, jnp.asarray(genome)).scales, 1)


@each_space
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_path_written_as_a_genome_is_the_same_path(space, data):
    """Any genome's path; a network's weights cannot be had back, so there all is at its centre."""
    genome = data.draw(genomes(space))
    if space.scaling == "network":
        genome[space.num_slots :] = 0.5
    hops = describe(space, jitted[space](genome))
    if space.scaling == "network":
        hops = [hop._replace(scale=round(hop.scale, 6)) for hop in hops]
    again = encode(space, hops)
    assert again.min() >= 0
    assert again.max() <= 1
    back = describe(space, jitted[space](again.astype(np.float32)))
    assert [hop[:2] for hop in back] == [hop[:2] for hop in hops]
    np.testing.assert_allclose([hop.scale for hop in back], [hop.scale for hop in hops], atol=1e-6)


@each_space
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_active_genes_are_those_whose_change_changes_the_path(space, data):
    """An inactive gene can be anything; an active gene of a scale changes some scale."""
    genome = data.draw(genomes(space))
    mask = np.asarray(active(space, jnp.asarray(genome)))
    path = jitted[space](genome)
    other = np.where(mask, genome, 1 - genome)
    chex.assert_trees_all_equal(path, jitted[space](other))
    if space.scaling in ("per_hop", "matrix"):
        for gene in space.num_slots + np.flatnonzero(mask[space.num_slots :]):
            changed = genome.copy()
            changed[gene] = 1 if genome[gene] < 0.5 else 0
            assert np.any(jitted[space](changed).scales != path.scales)


def test_genes_have_names_and_values():
    space = PathSpace(("a", "b"), (3, 2), 2, "per_hop")
    assert len(space.names) == len(set(space.names)) == space.num_genes == 10 + 11
    assert space.names[8] == "slot 8 = b:0"
    assert space.names[10 + 8] == "scale 8 = b:0"
    assert space.names[-1] == "scale end = a:2"
    matrix = PathSpace(("a", "b"), (3, 2), 2, "matrix")
    assert matrix.names[10 + 2 * 5 + 3] == "scale a:2 -> b:0"
    genome = np.zeros(space.num_genes)
    genome[[8, 18]] = 0.75
    values = space.values(genome)
    assert [name for name, value in values.items() if value == 1] == ["slot 0 = a:0", "slot 8 = b:0"]
    assert values["scale 8 = b:0"] == 1.25
    assert describe(space, express_path(space, jnp.asarray(genome)))[1] == Hop("b", 0, 1.25)


def test_the_sizes_of_the_paper():
    """arXiv:2403.13187: M = 64, r = 3, T = 192; with all of W a gene n = 4,288."""
    genes = [PathSpace(("a", "b"), (32, 32), 3, scaling).num_genes for scaling in SCALINGS]
    assert genes == [192, 385, 4288, 192 + 8 * 7 + 8 + 8 + 1]


def test_the_network_does_not_grow_with_the_models_depth():
    sizes = {PathSpace(("a", "b"), (depth, depth), 3, "network").num_scales for depth in (2, 32)}
    assert len(sizes) == 1


def test_slices_and_hops_are_the_same_thing():
    slices = [("a", 0, 2), ("b", 1, 2), ("b", 1, 2), ("a", 1, 3)]
    hops = hops_of(slices)
    assert hops == [Hop("a", 0), Hop("a", 1), Hop("b", 1), Hop("b", 1), Hop("a", 1), Hop("a", 2)]
    assert slices_of(hops) == slices
    space = PathSpace(("a", "b"), (3, 2), 3, "none")
    assert slices_of(describe(space, express_path(space, jnp.asarray(encode(space, hops))))) == slices
    with pytest.raises(InputError, match=r"a:1 has scale 0.5: slices cannot say that"):
        slices_of([Hop("a", 0), Hop("a", 1, 0.5)])


def test_scales_have_gradients():
    space = PathSpace(("a", "b"), (3, 2), 2, "per_hop")
    genome = jnp.asarray(encode(space, hops_of([("a", 0, 3)])), jnp.float32)
    gradient = jax.grad(lambda genome: jnp.sum(express_path(space, genome).scales))(genome)
    np.testing.assert_array_equal(gradient, [0] * 10 + [1] * 3 + [0] * 8)


@pytest.mark.parametrize(
    ("hops", "scaling", "message"),
    [
        ([Hop("a", 0), Hop("c", 1), Hop("a", 2)], "none", "a path through c:1: the models are"),
        ([Hop("a", 0), Hop("a", 1)], "none", "must begin with layer 0 and end with layer 2 of a"),
        ([], "none", "must begin with layer 0"),
        ([Hop("a", 0)] * 3 + [Hop("a", 2)] * 2, "none", "backwards too often for repeats = 2"),
        ([Hop("a", 0), Hop("a", 2, 3.0)], "per_hop", "scale 3 of a:2 is outside the range"),
        ([Hop("a", 0), Hop("a", 2, 0.9)], "none", "'none' cannot give hop 1, a:2, 0.9"),
        ([Hop("a", 0, 0.9), Hop("a", 2)], "matrix", "'matrix' cannot give hop 0, a:0, 0.9"),
        ([Hop("a", 0), Hop("a", 2, 0.9)], "network", "'network' cannot give hop 1"),
        ([Hop("a", 0), Hop("a", 2, 0.9), Hop("a", 0), Hop("a", 2)], "matrix", "one scale for all hops to a:2"),
    ],
)
def test_paths_that_the_space_does_not_hold_are_refused(hops, scaling, message):
    with pytest.raises(InputError, match=re.escape(message)):
        encode(PathSpace(("a", "b"), (3, 2), 2, scaling), hops)


def test_spaces_that_cannot_be_are_refused():
    for arguments, message in [
        ({"models": ("a", "a"), "depths": (1, 1)}, "models by name"),
        ({"models": ("a",), "depths": (1, 1)}, "models by name"),
        ({"models": ("a",), "depths": (0,)}, "must be 1 or more"),
        ({"models": ("a",), "depths": (2,), "scale_range": (1.0, 1.5)}, "must have 1"),
        ({"models": ("a",), "depths": (2,), "scaling": "per hop"}, "choose one of none, per_hop"),
    ]:
        with pytest.raises(InputError, match=message):
            PathSpace(**arguments)


@pytest.mark.parametrize("scaling", ["none", "per_hop", "matrix", "network"])
def test_genomes_of_one_path_are_alike_and_others_are_not(scaling):
    space = PathSpace(("a", "b"), (3, 2), 2, scaling)
    rng = np.random.default_rng(0)
    genomes = rng.random((200, space.num_genes))
    rows = distinct(space, genomes)

    def path(genome):
        found = express_path(space, jnp.asarray(genome, jnp.float32))
        return [(int(i), float(s)) for i, s in zip(found.layers[: found.length], found.scales, strict=False)]

    for genome, row in zip(genomes[:20], rows, strict=False):
        other = genome.copy()
        other[: space.num_slots] = np.where(genome[: space.num_slots] > 0.5, 0.9, 0.1)
        other[0] = 0.0  # always on
        unused = ~np.asarray(active(space, jnp.asarray(genome, jnp.float32)))
        other[unused] = rng.random(int(unused.sum()))
        assert path(other) == path(genome)
        np.testing.assert_array_equal(distinct(space, other[None])[0], row)
    paths = {str(path(g)) for g in genomes}
    assert len({row.tobytes() for row in rows}) >= len(paths) > (5 if scaling == "none" else 150)
