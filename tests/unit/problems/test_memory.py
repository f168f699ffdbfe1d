"""Models that wait for their merges in parts on all devices, or in the memory of the host, as they are or packed."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.config import RunConfig
from jevomerge.devices.mesh import HOST, by_member, put
from jevomerge.errors import InputError
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.members import make_members
from jevomerge.fitness.ready import make_ready
from jevomerge.methods.packed import Packed, pack, unpack, words_of
from jevomerge.models.specs import flatten
from jevomerge.observers.observer import Observer
from jevomerge.planning.measure import bytes_per_device
from jevomerge.run.evolve import evolve
from jevomerge.run.search import score_exported
from jevomerge.search.archive import Archive
from jevomerge.search.loop import choose
from jevomerge.search.setup import memories_of, set_up
from tests.unit.devices.test_mesh import KINDS, mesh_of, setting, task


@functools.cache
def candidates(kind, memory, pop=1, model=1):
    return setting(kind)[1].load(mesh_of(pop, model), memory)


@functools.cache
def made(kind, memory, pop=1, model=1):
    """{path: leaf} of two candidates."""
    genomes = put(setting(kind)[3][:2].astype(np.float32), by_member(mesh_of(pop, model)))
    return flatten(make_members(candidates(kind, memory, pop, model), genomes, mesh=mesh_of(pop, model)))


def bank_of(found):
    return getattr(found, "merged", found).bank


OTHERS = [("ties", (2, 1)), ("dare_ties", (1, 1))]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("ties", (1, 2)),
        ("slerp", (1, 1)),
        ("both", (1, 1)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
    ],
)
def test_from_the_host_candidates_are_the_same(kind, shape):
    bank = bank_of(candidates(kind, "host", *shape))
    for leaves in (*bank.sources, bank.base or {}):
        for path, x in leaves.items():
            assert x.sharding.memory_kind == ("device" if path.endswith("norm.weight") else HOST)
    assert {x.sharding.memory_kind for x in made(kind, "host", *shape).values()} == {"device"}
    jax.tree.map(np.testing.assert_array_equal, made(kind, "host", *shape), made(kind, "device", *shape))
    jax.tree.map(np.testing.assert_array_equal, bank.prepared, bank_of(candidates(kind, "device", *shape)).prepared)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("ties", (4, 2)), ("both", (2, 2)), pytest.param("dare_ties", (8, 1), marks=pytest.mark.slow)],
)
def test_from_parts_on_all_devices_candidates_are_the_same(kind, shape):
    """Each slice has a part of each matrix, and what is merged from them is the same bit for bit."""
    parts, whole = (candidates(kind, memory, *shape) for memory in ("mesh", "device"))
    bank, other = bank_of(parts), bank_of(whole)
    vectors = sum(math.prod(s.leaf_shape) * 2 for s in bank.specs if len(s.shape) < 2)
    for few, all_ in zip((*bank.sources, bank.base), (*other.sources, other.base), strict=True):
        assert bytes_per_device(few) - vectors == (bytes_per_device(all_) - vectors) / shape[0]
    jax.tree.map(np.testing.assert_array_equal, bank.prepared, other.prepared)
    genomes = put(
        np.resize(setting(kind)[3], (shape[0], setting(kind)[3].shape[1])).astype(np.float32),
        by_member(mesh_of(*shape)),
    )
    made = [flatten(make_members(found, genomes, mesh=mesh_of(*shape))) for found in (parts, whole)]
    jax.tree.map(np.testing.assert_array_equal, *made)
    assert [x.sharding for x in made[0].values()] == [x.sharding for x in made[1].values()]


@pytest.mark.parametrize("shape", [(4, 2)])
def test_from_parts_scores_are_the_same(shape):
    config, problem, tokenizer, genomes = setting("ties")
    judge = make_judge(make_ready(config.tasks, tokenizer, problem.model), problem.model, mesh=mesh_of(*shape))
    scores = {m: next(judge.members(candidates("ties", m, *shape), genomes[:3])) for m in ("device", "mesh")}
    for one, other in zip(*scores.values(), strict=True):
        # Merged once, not in the pass.
        np.testing.assert_allclose(one.fitness["likelihood"], other.fitness["likelihood"], atol=1e-6)
        np.testing.assert_array_equal(one.fitness["generation"], other.fitness["generation"])
        assert (one.texts, one.tokens) == (other.texts, other.tokens)


def test_from_the_host_scores_are_the_same():
    config, problem, tokenizer, genomes = setting("ties")
    judge = make_judge(make_ready(config.tasks, tokenizer, problem.model), problem.model, mesh=mesh_of(1, 1))
    scores = {m: next(judge.members(candidates("ties", m), genomes[:1]))[0] for m in ("device", "host")}
    for name in ("likelihood", "generation"):
        np.testing.assert_array_equal(scores["host"].fitness[name], scores["device"].fitness[name])
    assert scores["host"].texts == scores["device"].texts


@pytest.mark.parametrize("shape", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_from_the_host_paths_are_the_same(shape):
    """Each hop fetches its block; the models that paths are compared with do as well."""
    (config, problem, tokenizer, genomes), mesh = setting("path"), mesh_of(*shape)
    judge = make_judge(make_ready(config.tasks, tokenizer, problem.model), problem.model, mesh=mesh)
    params = candidates("path", "host", *shape).params
    kinds = {path: x.sharding.memory_kind for path, x in flatten(params).items()}
    assert {HOST} == {kind for path, kind in kinds.items() if "proj" in path}
    assert {"device"} == {kind for path, kind in kinds.items() if "proj" not in path}
    scores = {m: next(judge.members(candidates("path", m, *shape), genomes[: shape[0]])) for m in ("device", "host")}
    sources = {m: next(problem.baselines(candidates("path", m, *shape))) for m in ("device", "host")}
    whole = {m: source.load(mesh) for m, source in sources.items()}
    assert bytes_per_device(whole["host"], host=True) > 0.5 * bytes_per_device(whole["device"])
    scores = {m: [*found, judge.model(whole[m], "heldout", sources[m].model)] for m, found in scores.items()}
    for one, other in zip(*scores.values(), strict=True):
        for name in ("likelihood", "generation"):
            np.testing.assert_array_equal(one.fitness[name], other.fitness[name])
        assert one.texts == other.texts


@pytest.mark.parametrize(("memory", "shape"), [("host", (1, 1)), ("int8", (1, 1)), ("mesh", (2, 2))])
def test_baselines_are_read_again(memory, shape):
    (_, problem, *_), mesh = setting("ties"), mesh_of(*shape)
    plain, other = (
        {b.name: flatten(b.load(mesh)) for b in problem.baselines(candidates("ties", m, *shape))}
        for m in ("device", memory)
    )
    assert plain.keys() == other.keys() == {None, "japanese", "mathematics"}
    for name in plain if memory != "int8" else ("japanese", "mathematics"):
        jax.tree.map(np.testing.assert_array_equal, other[name], plain[name])
    assert {x.sharding.memory_kind for x in other[None].values()} == {"device"}
    for path, x in other[None].items():
        np.testing.assert_allclose(x, plain[None][path], rtol=0, atol=0.02 if memory == "int8" else 0)


@pytest.mark.parametrize("axis", [-1, -2])
def test_packed_as_numpy_has_it(axis):
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(6, 32)).astype(np.float32)
    x = origin + 0.01 * rng.normal(size=origin.shape).astype(np.float32)
    x[2] = origin[2]  # a row that is not tuned
    whole, step, off, size = pack(x, origin)
    assert (whole.dtype, step.shape) == (np.int8, (6, 1))
    delta = x.astype(np.float64) - origin
    np.testing.assert_allclose(step[:, 0], np.abs(delta).max(axis=1) / 127, rtol=1e-6)
    packed = Packed(jnp.asarray(words_of(whole, axis)), jnp.asarray(step), axis)
    assert packed.words.nbytes == x.size
    found = np.asarray(jax.jit(unpack)(packed, jnp.asarray(origin)), np.float64)
    np.testing.assert_array_equal(found[2], origin[2])
    assert (np.abs(found - x) <= step / 2 + 1e-7).all()
    assert off / size == pytest.approx(np.sum((found - x) ** 2) / np.sum(delta**2), rel=1e-3)
    assert 0.003 < np.sqrt(off / size) < 0.01  # 0.74 % of Gaussian weights, says qwix


@pytest.mark.parametrize("axis", [-1, -2])
def test_every_pair_of_numbers_arrives_as_it_was(axis):
    whole = np.arange(1 << 16, dtype=np.uint16).view(np.int8).reshape(64, 16, 128)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=HOST)
    words = jax.device_put(words_of(whole, axis), place)

    def layer(words):
        packed = Packed(jax.device_put(words, jax.memory.Space.Device), jnp.ones((16, 1)), axis)
        return unpack(packed, jnp.zeros((16, 128)))

    np.testing.assert_array_equal(jax.jit(lambda x: jax.lax.map(layer, x))(words), whole)


@pytest.mark.parametrize("kind", ["ties", "slerp"])
def test_in_eight_bits_candidates_are_nearly_the_same(kind):
    """Slerp has no base: the second model is counted from the first."""
    bank = bank_of(candidates(kind, "int8"))
    packed = [path for path, x in bank.sources[-1].items() if isinstance(x, Packed)]
    assert "layers.mlp.up_proj.weight" in packed
    assert not any("norm" in path or "embed" in path for path in packed)
    origin = flatten(bank.sources[0]) if bank.base is None else bank.base
    for path, exact in made(kind, "device").items():
        found = made(kind, "int8")[path]
        if path in packed:
            change = np.linalg.norm(exact - np.asarray(origin[path], np.float32)[None])
            assert 0 < np.linalg.norm(found - exact) < (0.01 if kind == "slerp" else 0.1) * change  # TIES trims others
        else:
            np.testing.assert_array_equal(found, exact)
    assert any("off by 0." in note for note in setting(kind)[1].notes)
    whole, eighth = (bytes_per_device(bank_of(candidates(kind, m)).sources[-1], host=True) for m in ("host", "int8"))
    assert eighth < whole


def test_numbers_in_eight_bits_do_not_depend_on_the_mesh():
    one, many = (bank_of(candidates("ties", "int8", *shape)).sources for shape in ((1, 1), (2, 2)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))
    assert len(jax.tree.leaves(many)[0].sharding.device_set) == 4


@pytest.mark.parametrize("memory", ["mesh", "host", "int8"])
def test_shapes_are_known_without_weights(memory):
    abstract = setting("ties")[1].load(mesh_of(2, 2), memory, abstract=True)
    concrete = candidates("ties", memory, 2, 2)
    for x, y in zip(jax.tree.leaves(abstract.held()), jax.tree.leaves(concrete.held()), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)


class Notes(Observer):
    """Who hears what is noted."""

    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


def test_a_run_says_where_its_models_wait(tmp_path):
    search = {"evaluations": 4, "population": 4}
    given = {"name": "run", "tasks": [task("likelihood")], **KINDS["task_arithmetic"], "search": search}
    config, notes = RunConfig.model_validate({**given, "memory": "int8"}), Notes()
    evolve(config, output=tmp_path / "run", observer=notes)
    assert [n.split(":")[1] for n in notes.heard if n.startswith("memory")] == [" int8", " int8"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["memory"] == "int8"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert any("off by 0." in note for note in result["notes"])


def test_finalists_are_scored_as_they_are(tmp_path):
    """The search knows candidates in eight bits; what is said of the best, and which that is, are exact."""
    search = {"evaluations": 4, "population": 4, "finalists": 2}
    given = {"name": "run", "tasks": [task("likelihood")], **KINDS["task_arithmetic"], "search": search}
    setup = set_up(RunConfig.model_validate({**given, "memory": "int8"}), jax.devices()[:1])
    genomes, merged, packed = (
        setting("task_arithmetic")[3][:2],
        *(candidates("task_arithmetic", m) for m in ("device", "int8")),
    )
    exact, known = (
        [setup.judge.fitness(s) for group in setup.judge.members(found, genomes) for s in group]
        for found in (merged, packed)
    )
    records = [
        {"generation": 0, "member": i, "genome": genome.tolist(), "fitness": fitness, "tie_break": second}
        for i, (genome, (fitness, second)) in enumerate(zip(genomes, known, strict=True))
    ]
    archive = Archive(None)
    archive.learn(records, 0)
    found = choose(setup, packed, archive, functools.partial(score_exported, setup, tmp_path))
    best = max(range(2), key=lambda i: exact[i])
    assert found.record["member"] == best
    assert found.fitness == pytest.approx(exact[best][0], abs=1e-6)
    assert abs(known[best][0] - exact[best][0]) > 1e-5
    assert found.spent.prompt > 0
    assert not [*tmp_path.iterdir()]  # what was written is gone


def test_where_models_may_wait():
    config = RunConfig.model_validate({"name": "run", "tasks": [task("likelihood")], **KINDS["ties"]})
    assert memories_of(config) == ("device", "mesh", "host", "int8")
    assert set_up(config).memory == "device"
    assert memories_of(config.model_copy(update={"memory": "host"})) == ("host",)
    refined, path, hosted = (
        RunConfig.model_validate({"name": "run", "tasks": [task("likelihood")], **KINDS[kind], **more})
        for kind, more in (
            ("ties", {"memory": "int8", "refine": {"steps": 1}}),
            ("path", {"memory": "int8"}),
            ("path", {"memory": "host"}),
        )
    )
    assert set_up(hosted).memory == "host"
    for wrong in (refined, path):
        with pytest.raises(InputError, match=r"memory: .* is for recipes"):
            set_up(wrong)
