"""Merging of any pytrees: a recipe's merge, bit for bit, in whatever holds the leaves and wherever it is called."""

import dataclasses
import doctest
import functools

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jevomerge.devices.mesh import make_mesh
from jevomerge.errors import InputError
from jevomerge.methods import trees as module
from jevomerge.methods.bank import Merge, build, make_bank
from jevomerge.methods.field import uniform_field
from jevomerge.methods.method import MergeMethod, Parameter
from jevomerge.methods.registry import get_method
from jevomerge.methods.trees import merge
from jevomerge.models.specs import unflatten
from jevomerge.recipe.schema import Recipe, read_recipe
from jevomerge.recipe.sources import Sources
from tests.unit.methods.cases import METHODS, SETTINGS
from tests.unit.methods.test_bank import MODELS

QUICK = [("linear", "mergekit"), ("slerp", "mergekit"), ("ties", "mergekit"), ("ties", "paper")]
QUICK += [("dare_ties", "mergekit"), ("della", "paper"), ("model_stock", "mergekit"), ("passthrough", "mergekit")]
RNG = np.random.default_rng(0)


def recipe_of(name, semantics, given):
    """A recipe for the models of tests/data/parity with one of the settings of all methods."""
    method = get_method(name, semantics)
    per_model = [p.name for p in method.parameters if p.per_model]
    models = [
        {"model": str(MODELS / m), "parameters": {k: given[k][i] for k in per_model if k in given}}
        for i, m in enumerate("abc"[: method.num_sources[1] or 3])
    ]
    return Recipe.model_validate(
        {
            "merge_method": name,
            "models": models,
            "base_model": str(MODELS / "base") if method.base in ("optional", "required") else None,
            "parameters": {k: v for k, v in given.items() if k not in per_model},
            "semantics": semantics,
            "dtype": "float32",
            "seed": 3,
        }
    )


def both(recipe, mesh=None):
    """The recipe's merge, and ours as a function of (trees, base, coefficients) with what it takes."""
    sources = Sources(recipe)
    kind = Merge(sources.method, sources.dtype)
    trees, base = sources.load(mesh)
    bank = make_bank(kind, sources.specs, trees, base, sources.keys(), mesh)
    wanted = jax.jit(build, static_argnums=0)(kind, bank, sources.coefficients)
    coefficients = {
        p.name: unflatten({path: numbers[p.name] for path, numbers in sources.coefficients.items()})
        for p in sources.method.parameters
    }
    options = {
        "sources": [c.name for c in sources.parts[0].checkpoints],
        "names": {spec.path: spec.template for spec in sources.specs},
        "seed": recipe.seed,
        "stacked": {"layers.*": 0},
        "dtype": sources.dtype,
        "semantics": recipe.semantics,
    }
    ours = lambda trees, base, coefficients: merge(recipe.merge_method, trees, base, **options, **coefficients)  # noqa: E731
    return wanted, ours, (trees, base, coefficients)


def assert_same(found, wanted, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    check = functools.partial(np.testing.assert_allclose, **tolerance) if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda x, y: check(np.asarray(x), np.asarray(y)), found, wanted)


def random_tree(i, dtype="float32"):
    """A small model with two layers stacked."""
    rng = np.random.default_rng(i)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {"embed": draw(16, 8), "layers": {"w": draw(2, 8, 8), "b": draw(2, 8)}, "scale": draw()}


A, B, BASE = (random_tree(i) for i in range(3))


# --- the same as a recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "semantics"), [pytest.param(*m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in METHODS]
)
def test_is_the_merge_of_a_recipe_bit_for_bit(name, semantics):
    wanted, ours, arguments = both(recipe_of(name, semantics, SETTINGS[name][0]))
    assert_same(ours(*arguments), wanted)


@pytest.mark.parametrize("name", ["linear", "dare_ties"])
def test_is_the_merge_of_a_recipe_bit_for_bit_on_a_mesh(name):
    mesh = make_mesh(None, 2)
    wanted, ours, arguments = both(recipe_of(name, "mergekit", SETTINGS[name][0]), mesh)
    assert not arguments[0][0]["layers"]["mlp"]["up_proj"]["weight"].sharding.is_fully_replicated
    assert_same(ours(*arguments), wanted)


@pytest.mark.parametrize("file", ["ties_gradient", "slerp_gradient"])
def test_coefficients_that_differ_from_layer_to_layer(file, tmp_path, data):
    text = (data / "parity" / "recipes" / f"{file}.yml").read_text().replace("MODELS", str(MODELS))
    (tmp_path / "recipe.yaml").write_text(text)
    wanted, ours, arguments = both(read_recipe(tmp_path / "recipe.yaml"))
    assert_same(ours(*arguments), wanted)


@pytest.mark.parametrize(("name", "semantics"), [("slerp", "mergekit"), ("ties", "paper"), ("dare_ties", "mergekit")])
def test_is_the_same_inside_jit(name, semantics):
    """Over coefficients, with the trees around; over trees too, where what is prepared is computed in float32."""
    wanted, ours, (trees, base, coefficients) = both(recipe_of(name, semantics, SETTINGS[name][0]))
    assert_same(jax.jit(lambda c: ours(trees, base, c))(coefficients), wanted)
    whole = jax.jit(ours)(trees, base, coefficients)
    assert_same(whole, wanted, **({"atol": 1e-6} if name == "slerp" else {}))


def test_names_of_sources_and_tensors_and_the_seed_make_the_masks():
    run = functools.partial(merge, "dare_linear", [A, B], BASE, weight=1.0, density=0.5, stacked={"layers.*": 0})
    plain = run()
    assert_same(run(sources=("0", "1"), seed=0), plain)
    paths = {path: path for path in ("embed", "scale")}
    paths |= {f"layers.{leaf}": "layers.{layer}." + leaf for leaf in "wb"}
    for names in (paths, paths.__getitem__, unflatten(paths), {"embed": "embed"}):
        assert_same(run(names=names), plain)
    for other in ({"seed": 1}, {"sources": ("0", "2")}, {"names": lambda path: "m." + paths[path]}):
        assert not np.array_equal(run(**other)["embed"], plain["embed"]), other
        assert not np.array_equal(run(**other)["layers"]["w"], plain["layers"]["w"]), other


@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
@pytest.mark.parametrize("method", ["della", "ties"])
def test_stacked_layers_are_merged_as_a_list_of_layers(method, semantics):
    """Along any axis."""
    run = functools.partial(merge, method, weight=[0.7, 0.4], density=[0.4, 0.6], semantics=semantics)
    unstack = lambda t: t | {"layers": [jax.tree.map(lambda x, i=i: x[i], t["layers"]) for i in range(2)]}  # noqa: E731
    wanted = run([unstack(A), unstack(B)], unstack(BASE))
    assert_same(unstack(run([A, B], BASE, stacked={"layers.*": 0})), wanted)
    last = lambda t: t | {"layers": jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), t["layers"])}  # noqa: E731
    found = run([last(A), last(B)], last(BASE), stacked={"lay*": -1}, names=lambda p: p.replace("s.", "s.{layer}."))
    first = found | {"layers": jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), found["layers"])}
    assert_same(unstack(first), wanted)


# --- under transformations ----------------------------------------------------------------------------------


def test_vmap_over_weights_is_a_loop_over_weights():
    weights = jnp.asarray(RNG.uniform(size=(3, 2)), jnp.float32)
    one = lambda w: merge("task_arithmetic", [A, B], BASE, weight=w)  # noqa: E731
    wanted = jax.tree.map(lambda *x: jnp.stack(x), *map(one, weights))
    assert_same(jax.vmap(one)(weights), wanted)
    assert_same(jax.jit(jax.vmap(one))(weights), wanted)


def test_vmap_over_trees_is_a_loop_over_trees():
    stacks = [jax.tree.map(lambda *x: jnp.stack(x), *(random_tree(3 * j + i) for j in range(3))) for i in range(3)]
    one = lambda a, b, base: merge("ties", [a, b], base, weight=0.5, density=0.3, semantics="paper")  # noqa: E731
    wanted = [one(*(jax.tree.map(lambda x, j=j: x[j], stack) for stack in stacks)) for j in range(3)]
    assert_same(jax.vmap(one)(*stacks), jax.tree.map(lambda *x: jnp.stack(x), *wanted))


def test_gradients_of_weights_are_differences():
    probe = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), A)

    @jax.jit
    def loss(weight):
        merged = merge("linear", [A, B], weight=weight, stacked={"layers.*": 0})
        return sum(jnp.sum(x * p) for x, p in zip(jax.tree.leaves(merged), jax.tree.leaves(probe), strict=True))

    weight, step = np.array([0.7, 0.4], np.float32), 1e-2
    moved = [[loss(weight + sign * step * np.eye(2, dtype=np.float32)[i]) for sign in (1, -1)] for i in range(2)]
    wanted = [float(up - down) / (2 * step) for up, down in moved]
    np.testing.assert_allclose(jax.grad(loss)(weight), wanted, rtol=1e-3)
    pair = jax.grad(lambda w: loss(jnp.stack([w, 1 - w])))(0.3)
    listed = jax.grad(lambda w: jnp.sum(merge("linear", [A, B], weight=[w, 1 - w])["embed"]))(0.3)
    np.testing.assert_allclose(listed, jnp.sum(A["embed"] - B["embed"]), rtol=1e-4)
    assert np.isfinite(pair)


def test_gradients_of_trees_are_the_weights():
    grad = jax.grad(lambda a: sum(jnp.sum(x) for x in jax.tree.leaves(merge("linear", [a, B], weight=[3, 1]))))(A)
    assert_same(grad, jax.tree.map(lambda x: jnp.full_like(x, 0.75), A))


@pytest.mark.parametrize(
    ("method", "axes"),
    [
        *((method, AxisType.Auto) for method in ("linear", "ties", "dare_ties", "della")),
        ("linear", AxisType.Explicit),
        *(pytest.param(m, AxisType.Explicit, marks=pytest.mark.slow) for m in ("ties", "dare_ties", "della")),
    ],
)
def test_sharded_trees_give_the_unsharded_merge(method, axes):
    """The same masks; the last bit of an element may differ, for each device has another loop over fewer elements."""
    mesh = jax.make_mesh((8,), ("x",), (axes,))
    split = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), *"x"[: x.ndim])))  # noqa: E731
    density = {} if method == "linear" else {"density": 0.4}
    run = functools.partial(merge, method, semantics="paper", weight=[0.6, 0.3], stacked={"layers.*": 0}, **density)
    base = None if method == "linear" else BASE
    wanted, shards = run([A, B], base), [None if t is None else jax.tree.map(split, t) for t in (A, B, base)]
    found = run(shards[:2], shards[2])
    assert_same(found, wanted, rtol=2**-22, atol=1e-6)
    assert found["embed"].sharding.is_equivalent_to(shards[0]["embed"].sharding, 2)
    if axes == AxisType.Auto:
        assert_same(jax.jit(run)(shards[:2], shards[2]), wanted, rtol=2**-22, atol=1e-6)


# --- whatever holds the leaves ------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x)))


class Own(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.inner(x))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "rest"], meta_fields=["heads"])
@dataclasses.dataclass
class Record:
    w: jax.Array
    rest: list
    heads: int = 2


def test_linen_parameters():
    x = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    a, b = (Linen().init(jax.random.key(i), x) for i in range(2))
    merged = merge("linear", [a, b], weight=[0.25, 0.75])
    assert_same(merged, jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, a, b), atol=1e-7)
    assert Linen().apply(merged, x).shape == (2, 3)
    frozen = merge("linear", [flax.core.freeze(a), flax.core.freeze(b)], weight={"params": [0.25, 0.75]})
    assert isinstance(frozen, flax.core.FrozenDict)
    assert_same(flax.core.unfreeze(frozen), merged)


def test_nnx_states():
    a, b = (Own(nnx.Rngs(i)) for i in range(2))
    states = [nnx.state(m) for m in (a, b)]
    merged = merge("slerp", states, t={"inner": 0.5, "norm": 0.0})
    assert isinstance(merged, nnx.State)
    kernels = [np.asarray(s["inner"]["kernel"][...]) for s in (*states, merged)]
    cosine = (kernels[0] * kernels[1]).sum() / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1])
    np.testing.assert_allclose(kernels[2], (kernels[0] + kernels[1]) / np.sqrt(2 + 2 * cosine), atol=1e-6)
    nnx.update(a, merged)
    assert a(jnp.ones((2, 4))).shape == (2, 5)
    assert isinstance(merge("linear", [a, b], weight=0.5), Own)


def test_lists_dataclasses_and_single_arrays():
    xs = [jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) for _ in range(4)]
    half = lambda x, y: 0.5 * x + 0.5 * y  # noqa: E731
    assert_same(merge("linear", [xs[0], xs[1]], weight=1.0), half(xs[0], xs[1]), atol=1e-7)
    assert_same(merge("linear", [xs[:2], xs[2:]], weight=1.0), [half(xs[0], xs[2]), half(xs[1], xs[3])], atol=1e-7)
    one = merge("linear", [Record(xs[0], [xs[1]]), Record(xs[2], [xs[3]])], weight=[1, 1])
    assert_same(one, Record(half(xs[0], xs[2]), [half(xs[1], xs[3])]), atol=1e-7)
    with pytest.raises(InputError, match=r"trees\[0\] and trees\[1\] have the same leaves, but .* static fields"):
        merge("linear", [Record(xs[0], [xs[1]]), Record(xs[2], [xs[3]], heads=4)], weight=1.0)


def test_numpy_arrays_also_inside_jit():
    arrays = [jax.tree.map(np.asarray, t) for t in (A, B, BASE)]
    run = functools.partial(merge, "ties", density=0.5, semantics="paper")
    wanted = run([A, B], BASE, weight=0.5)
    assert_same(run(arrays[:2], arrays[2], weight=0.5), wanted)
    assert_same(jax.jit(lambda w: run(arrays[:2], arrays[2], weight=w))(0.5), wanted)


def test_what_is_no_float_is_kept():
    rest = {
        "step": jnp.int32(7),
        "mask": np.array([True, False]),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "name": "x",
    }
    for merged in (
        merge("linear", [A | rest, B | rest], weight=0.5),
        jax.jit(lambda w: A | merge("linear", [A | rest, B | rest], weight=w) | {"name": 0})(0.5),
    ):
        assert merged["none"] is None
        assert merged["step"] == 7
        assert merged["empty"].shape == (0, 3)
        np.testing.assert_array_equal(merged["mask"], rest["mask"])
        assert_same(merged["embed"], merge("linear", [A, B], weight=0.5)["embed"])


def test_the_dtype_is_that_of_the_first_or_what_one_asks_for():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), B)
    mixed = merge("linear", [low, A | {"embed": A["embed"].astype(jnp.float16)}], weight=[0.5, 0.5])
    assert {x.dtype for x in jax.tree.leaves(mixed)} == {jnp.dtype(jnp.bfloat16)}
    wide = merge("linear", [low, A], weight=[0.5, 0.5], dtype="float32")
    assert_same(wide, jax.tree.map(lambda x, y: 0.5 * x.astype(jnp.float32) + 0.5 * y, low, A), atol=1e-7)


# --- coefficients -------------------------------------------------------------------------------------------


def test_coefficients_are_numbers_or_trees_that_end_above_the_leaves():
    run = functools.partial(merge, "task_arithmetic", [A, B], BASE, stacked={"layers.*": 0})
    wanted = run(weight=[0.5, 0.25])
    for weight in (
        jnp.asarray([0.5, 0.25]),
        {"embed": [0.5, 0.25], "layers": np.array([0.5, 0.25]), "scale": (0.5, 0.25)},
        jax.tree.map(lambda _: np.array([0.5, 0.25]), A),
        {"embed": [0.5, 0.25], "layers": {"w": np.full((2, 2), [0.5, 0.25]), "b": [0.5, 0.25]}, "scale": [0.5, 0.25]},
    ):
        assert_same(run(weight=weight), wanted)
    other = run(weight=[0.5, 0.25], **{"lambda": {"embed": 1.0, "scale": 0.0, "layers": np.array([0.0, 1.0])}})
    assert_same(other["embed"], wanted["embed"])
    assert_same(other["scale"], BASE["scale"])
    np.testing.assert_array_equal(other["layers"]["w"][0], BASE["layers"]["w"][0])
    np.testing.assert_array_equal(other["layers"]["w"][1], wanted["layers"]["w"][1])
    one = run(weight=0.5, normalize=True)
    assert_same(one, merge("linear", [A, B], weight=0.5), atol=1e-6)


def test_a_list_of_numbers_for_a_list_of_leaves():
    """Of as many numbers as sources it is one value, of others a tree."""
    xs, ys = ([jnp.full((3,), float(10 * i + j)) for j in range(3)] for i in range(2))
    assert_same(merge("linear", [xs, ys], weight=[1, 3]), [jnp.full((3,), 7.5 + j) for j in range(3)])
    lists = merge("linear", [xs, ys], weight=[[1, 0], [0, 1], [1, 1]])
    assert_same(lists, [xs[0], ys[1], jnp.full((3,), 7.0)])
    slerped = merge("slerp", [xs[1:], ys[1:]], t=[0.0, 1.0])
    assert_same(slerped, [xs[1], ys[2]], atol=1e-6)


def test_a_method_of_ones_own():
    def noise(sources, base, coefficients, prepared, keys):
        return prepared + coefficients["size"] * uniform_field(keys[0], sources[0].shape)

    method = MergeMethod("noise", (Parameter("size", 1.0),), noise, prepare=lambda sources, base: sources[0] + base)
    merged = merge(method._replace(base="required"), [A], BASE, size=0.0)
    assert_same(merged, jax.tree.map(jnp.add, A, BASE))
    assert not np.array_equal(merge(method._replace(base="required"), [A], BASE)["embed"], merged["embed"])


def test_a_base_is_what_the_method_makes_of_it():
    """Nothing to linear, the first source to slerp."""
    assert_same(merge("linear", [A, B], BASE, weight=0.5), merge("linear", [A, B], weight=0.5))
    wanted = merge("slerp", [BASE, A], t=0.3)
    assert_same(merge("slerp", [A], BASE, t=0.3), wanted)
    assert_same(merge("slerp", [A, BASE], BASE, t=0.3), wanted)


# --- what is refused ----------------------------------------------------------------------------------------


W = {"w": jnp.ones((2, 3))}


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        ("`linaer` is not known; did you mean `linear`?", ("linaer", [A, B]), {}),
        ("linear needs `weight`", ("linear", [A, B]), {}),
        ("ties has no parameter `densty`; did you mean `density`?", ("ties", [A, B], BASE), {"densty": 1}),
        ("arcee_fusion has no parameter `t`; it has none", ("arcee_fusion", [A], BASE), {"t": 1}),
        ("base: ties needs one", ("ties", [A, B]), {"weight": 1}),
        ("trees: slerp merges 1 to 2, not 3", ("slerp", [A, B], BASE), {"t": 0.5}),
        ("trees: model_stock merges at least 2, not 1", ("model_stock", [A], BASE), {}),
        ("trees: a list of trees, not a dict", ("linear", A), {"weight": 1}),
        ("sources: 2 different names, one per source", ("linear", [A, B]), {"weight": 1, "sources": "a"}),
        ("sources: 2 different names, one per source", ("linear", [A, B]), {"weight": 1, "sources": "aa"}),
        ("dtype: int8 is not a floating-point type", ("linear", [A, B]), {"weight": 1, "dtype": "int8"}),
        (
            "`w` is float32 [2, 3] in trees[0], but float32 [3, 2] in trees[1]",
            ("linear", [W, {"w": W["w"].T}]),
            {"weight": 1},
        ),
        ("`w` is float32 [2, 3] in trees[0], but None in trees[1]", ("linear", [W, {"w": None}]), {"weight": 1}),
        ("`w` is float32 [2, 3] in trees[0], but int32 [2] in base", ("ram", [W], {"w": np.arange(2, dtype="i4")}), {}),
        ("trees[1] has no leaf `layers.b`, trees[0] has", ("linear", [A, A | {"layers": {"w": 0}}]), {"weight": 1}),
        ("trees[0] has no leaf `v`, base has", ("ram", [W], W | {"v": 1.0}), {}),
        (
            "trees[0] and trees[1] have the same leaves, but in different containers",
            ("linear", [W, flax.core.freeze(W)]),
            {"weight": 1},
        ),
        (
            "`step` is not merged but kept, and it differs between trees[0] and base",
            ("ram", [W | {"step": 1}], W | {"step": 2}),
            {},
        ),
        (
            "`k` holds random keys (key<fry>), which cannot be merged",
            ("linear", [W | {"k": jax.random.key(0)}] * 2),
            {"weight": 1},
        ),
        ("paths are equal when joined by dots", ("linear", [{"a": W, "a.w": W["w"]}] * 2), {"weight": 1}),
        ("stacked: no leaf's path matches `layer.*`; paths are such as embed",
            ("ram", [A], BASE), {"stacked": {"layer.*": 0}}),
        ("stacked: `scale` has no axis 0, its shape is []", ("ram", [A], BASE), {"stacked": {"*": 0}}),
        ('names: `layers.b` needs a text with a "{layer}", for it is stacked, not \'layers.b\'',
            ("ram", [A], BASE), {"stacked": {"layers.*": 0}, "names": str}),
        ("names: `embed` needs a text, not 3", ("ram", [A], BASE), {"names": {"embed": 3}}),
        ("names: a function of a path, a mapping from paths, or a tree", ("ram", [A], BASE), {"names": {"emed": "x"}}),
        ("`weight` has no value for leaf `layers.b`; it is a number, 2 numbers or a tree of these",
            ("linear", [A, B]), {"weight": {"embed": 1.0, "scale": 1.0}}),
        ("`t` has no value for leaf `embed`; it is a number or a tree of these", ("slerp", [A, B]), {"t": [0.5, 0.5]}),
        ("`weight` has a value for `wrong`, which the trees do not have",
            ("linear", [W, W]), {"weight": {"w": 1.0, "wrong": 1.0}}),
        ("`weight` of leaf `w` has the shape (3,), not () or (2,)", ("linear", [W, W]), {"weight": np.ones(3)}),
        ("`t` of leaf `layers.b` has the shape (3,), not () or (2,)",
            ("slerp", [A, B]), {"t": {"embed": 1, "scale": 1, "layers": np.ones(3)}, "stacked": {"layers.*": 0}}),
        ("`normalize` is on or off, not 0.5", ("linear", [W, W]), {"weight": 1, "normalize": 0.5}),
        ("`max_iter` is a whole number, not 1.5", ("karcher", [W, W]), {"max_iter": 1.5}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(message, arguments, options):
    with pytest.raises(InputError) as error:
        merge(*arguments, **options)
    assert message in str(error.value)


def test_integers_cannot_be_compared_inside_jit():
    with pytest.raises(InputError, match="`step` is kept if equal everywhere, which is unknown"):
        jax.jit(lambda a, b: merge("linear", [a, b], weight=1))(W | {"step": 1}, W | {"step": 1})
    with pytest.raises(TypeError):
        jax.jit(lambda seed: merge("linear", [W, W], weight=1, seed=seed))(0)


def test_the_docstring_example():
    found = doctest.testmod(module)
    assert found.attempted >= 4
    assert found.failed == 0
