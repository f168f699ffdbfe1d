"""Populations on a mesh of eight devices: the same scores for every shape, and nothing exchanged between members."""

import functools
import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jevomerge.checkpoint.safetensors_file import read_header
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import RunConfig
from jevomerge.devices.collectives import collectives
from jevomerge.devices.mesh import by_member, everywhere, make_mesh, put, spread
from jevomerge.errors import InputError
from jevomerge.fitness import members as running
from jevomerge.fitness.judge import SPLITS, make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.fitness.schema import Task
from jevomerge.fitness.slices import Placing
from jevomerge.models.specs import shardings
from jevomerge.search.setup import problem_of

MINI = Path(__file__).parents[3] / "experiments" / "japanese_math_mini"
MODELS = {name: str(MINI / "models" / name) for name in ("base", "japanese", "mathematics", "addition")}
SHAPES = {"task_arithmetic": [(2, 1), (8, 1), (1, 2), (2, 4)], "path": [(4, 1), (2, 2), (1, 4)]}


def mesh_of(pop, model):
    return make_mesh(pop, model, jax.devices()[: pop * model])


def task(score):
    generated = {"pattern": r"(\d+)", "max_new_tokens": 6} if score == "generation" else {}
    files = {split: {"path": str(MINI / "data" / f"two_skills_{split}.jsonl"), "limit": 8} for split in SPLITS}
    return Task(name=score, prompt="{prompt}", answer="{number}", score=score, **files, **generated)


def recipe(method, **parameters):
    models = [{"model": MODELS[name], "parameters": {"weight": 0.4}} for name in ("japanese", "mathematics")]
    named = {"base_model": MODELS["base"]} if method != "slerp" else {}
    if method == "slerp":
        models, parameters = [{"model": m["model"]} for m in models], {"t": 0.5}
        named = {"base_model": MODELS["japanese"]}
    return {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32", **named}


PATH = {"models": [MODELS["mathematics"], MODELS["japanese"]], "repeats": 2}
KINDS = {
    "task_arithmetic": {"recipe": recipe("task_arithmetic"), "genome": {"weight": {"range": [0, 1]}}},
    "ties": {"recipe": recipe("ties", density=0.5), "genome": {"weight": {"range": [0, 1]}}},
    "dare_ties": {"recipe": recipe("dare_ties", density=0.5), "genome": {"density": {"range": [0.3, 1]}}},
    "slerp": {"recipe": recipe("slerp"), "genome": {"t": {"range": [0, 1], "layers_per_group": 1}}},
    "path": {"path": PATH},
    "both": {
        "recipe": recipe("task_arithmetic"),
        "genome": {"weight": {"range": [0, 1]}},
        "path": {"models": [MODELS["addition"]], "repeats": 1},
    },
}


@functools.cache
def setting(kind, scores=("likelihood", "generation")):
    config = RunConfig.model_validate({"name": kind, "tasks": [task(s) for s in scores], **KINDS[kind]})
    problem = problem_of(config)
    tokenizer = problem.tokenizer()
    rng = np.random.default_rng(0)
    genomes = np.clip(rng.normal(problem.mean, 0.1, (5, len(problem.names))), 0, 1)
    return config, problem, tokenizer, genomes


@functools.cache
def scores(kind, pop, model, members_per_device=1, names=("likelihood", "generation")):
    config, problem, tokenizer, genomes = setting(kind, names)
    mesh = mesh_of(pop, model)
    tasks = make_ready(config.tasks, tokenizer, problem.model)
    judge = make_judge(tasks, problem.model, mesh=mesh, members_per_device=members_per_device)
    found = [s for group in judge.members(problem.load(mesh), genomes) for s in group]
    assert len(found) == len(genomes)
    return {name: np.stack([s.fitness[name] for s in found]) for name in names}


@pytest.mark.parametrize(("kind", "shape"), [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes])
def test_scores_are_the_same_on_every_mesh(kind, shape):
    one, many = scores(kind, 1, 1), scores(kind, *shape)
    assert np.ptp(one["likelihood"].mean(axis=1)) > 0.05  # members differ, and are not mixed up
    assert one["generation"].any()
    if shape[1] == 1:  # over pop every device runs the program of one
        np.testing.assert_array_equal(many["likelihood"], one["likelihood"])
    np.testing.assert_allclose(many["likelihood"], one["likelihood"], atol=1e-5)
    np.testing.assert_array_equal(many["generation"], one["generation"])


@pytest.mark.parametrize(
    "kind", ["ties", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dare_ties", "slerp", "both"))]
)
def test_methods_that_look_at_whole_tensors_are_split_too(kind):
    one, many = (scores(kind, *shape, names=("likelihood",)) for shape in ((1, 1), (2, 2)))
    assert np.ptp(one["likelihood"].mean(axis=1)) > 0.05
    np.testing.assert_allclose(many["likelihood"], one["likelihood"], atol=1e-5)


@pytest.mark.parametrize(("shape", "ways"), [((8, 1), 4), ((8, 1, 2), 8), ((4, 2), 2)])
def test_members_that_are_few_share_out_their_examples(monkeypatch, shape, ways):
    config, problem, tokenizer, genomes = setting("task_arithmetic")
    mesh, runs = mesh_of(*shape[:2]), []

    def counted(*args, **static):
        runs.append((static["rollout"], static["layout"]))
        return running.run_members(*args, **static)

    monkeypatch.setattr("jevomerge.fitness.judge.run_members", counted)
    tasks = make_ready(config.tasks, tokenizer, problem.model)

    def scored(mesh, members_per_device=1):
        options = {"tokens_per_batch": 32, "mesh": mesh, "members_per_device": members_per_device}
        judge, before = make_judge(tasks, problem.model, **options), len(runs)
        groups = judge.members(problem.load(mesh), genomes[:2])
        return [scores for group in groups for scores in group], Counter(runs[before:])

    one, batches = scored(mesh_of(1, 1), 2)
    many, turns = scored(mesh, (*shape, 1)[2])
    assert max(batches.values()) > 3
    assert turns == {layout: math.ceil(n / ways) for layout, n in batches.items()}
    for a, b in zip(many, one, strict=True):
        np.testing.assert_allclose(a.fitness["likelihood"], b.fitness["likelihood"], atol=1e-5)
        np.testing.assert_array_equal(a.fitness["generation"], b.fitness["generation"])
        assert (a.tokens, a.texts) == (b.tokens, b.texts)


def test_texts_are_in_as_many_batches_as_slices_share_out():
    """The last members of a population are few: each slice that scores one has texts for it, and they are the same."""
    config, problem, tokenizer, genomes = setting("task_arithmetic")
    tasks, mesh = make_ready(config.tasks, tokenizer, problem.model), mesh_of(8, 1)
    one = make_judge(tasks, problem.model)
    many = make_judge(tasks, problem.model, mesh=mesh, population=10)
    assert many.slices(2, "search").ways == 4
    assert [layout.rows for layout in many.layouts["generation"]] == [2]  # of 8
    assert many.layouts["likelihood"] == one.layouts["likelihood"]
    assert many.on(mesh_of(2, 4)).layouts == one.layouts  # which 10 fill
    ours, theirs = (
        [s for group in judge.members(problem.load(judge.mesh), genomes[:2]) for s in group] for judge in (many, one)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.fitness["generation"], b.fitness["generation"])
        np.testing.assert_array_equal(a.fitness["likelihood"], b.fitness["likelihood"])
        assert (a.tokens, a.texts) == (b.tokens, b.texts)


def test_several_members_on_each_device():
    one, many = (scores("task_arithmetic", *shape) for shape in ((1, 1), (2, 1, 2)))
    np.testing.assert_allclose(many["likelihood"], one["likelihood"], atol=1e-5)
    np.testing.assert_array_equal(many["generation"], one["generation"])


# --- what devices exchange ----------------------------------------------------------------------------------


def programs(kind, mesh):
    """The compiled programs that score and generate."""
    config, problem, tokenizer, genomes = setting(kind)
    judge = make_judge(make_ready(config.tasks, tokenizer, problem.model), problem.model, mesh=mesh)
    candidates = problem.load(mesh)
    members = put(np.resize(genomes, (mesh.shape["pop"], genomes.shape[1])).astype(np.float32), by_member(mesh))
    make = running.make_members.lower(candidates, members, mesh=mesh).compile()
    yield make
    made = make(candidates, members)
    for one in judge.tasks:
        rollout = one.rollout
        examples = judge.examples["search"][one.name]
        (layout, _, batch), *_ = make_batches(rollout, judge.subject, examples, judge.layouts[one.name])
        static = {"mesh": mesh, "model": judge.subject, "rollout": rollout, "layout": layout, "dtype": "float32"}
        given = made if rollout.many_passes or not candidates.lazy else None
        slots = candidates.slots(genomes) if rollout.many_passes else None
        placed = Placing(mesh)([batch])
        yield running.run_members.lower(candidates, given, members, placed, slots=slots, **static).compile()


@pytest.mark.parametrize(("kind", "shape"), [("task_arithmetic", (8, 1)), ("path", (2, 4)), ("both", (4, 2))])
def test_members_exchange_nothing(kind, shape):
    mesh = mesh_of(*shape)
    over_model = 0
    for program in programs(kind, mesh):
        found = collectives(program.as_text(), mesh)
        over_model += sum("model" in c.axes for c in found)
        assert not [c for c in found if "pop" in c.axes]
    assert (over_model > 0) == (shape[1] > 1)  # the weights really are split


def test_an_exchange_between_members_would_be_seen():
    mesh = mesh_of(4, 2)
    x = put(np.ones((4, 8), np.float32), by_member(mesh))
    f = jax.jit(spread(mesh, lambda shared, local: shared * jax.lax.psum(local, "pop")))
    (found,) = collectives(f.lower(jnp.float32(2), x).compile().as_text(), mesh)
    assert found[:2] == ("all-reduce", {"pop"})
    assert found.bytes == 4 * 8
    turned = jax.jit(lambda x: x.T, in_shardings=by_member(mesh), out_shardings=by_member(mesh))
    assert {c.axes for c in collectives(turned.lower(jnp.ones((4, 8))).compile().as_text(), mesh)} == {
        frozenset({"pop"})
    }


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", {"model"}),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", {"pop"}),
        ("replica_groups={}", {"pop", "model"}),
        ("replica_groups=[4,2]<=[8]", {"model"}),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", {"pop"}),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}", {"pop"}),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}", {"model"}),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", {"model"}),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", {"pop"}),
        ("source_target_pairs={{0,1},{1,0}}", {"model"}),
        ("source_target_pairs={{0,6}}", {"pop"}),
    ],
)
def test_groups_of_devices_are_read_however_they_are_written(groups, axes):
    line = f"  %x.1 = (f32[4,8]{{1,0}}, bf16[2]{{0}}) all-gather-start(%y), channel_id=1, {groups}, dimensions={{0}}"
    (found,) = collectives(line, mesh_of(4, 2))
    assert found == ("all-gather", axes, "(f32[4,8]{1,0}, bf16[2]{0})", 4 * 32 + 4, 1)


def test_an_unknown_way_to_write_groups_is_an_error():
    with pytest.raises(ValueError, match="not known"):
        collectives("%x = f32[4]{0} all-reduce(%y), replica_groups=everyone", mesh_of(4, 2))


# --- where weights lie --------------------------------------------------------------------------------------


def test_weights_are_split_over_model_and_copied_over_pop():
    checkpoint = Checkpoint(MODELS["base"])
    mesh = mesh_of(2, 4)
    split, whole = checkpoint.load(mesh), checkpoint.load()
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    leaf = split["layers"]["self_attn"]["o_proj"]["weight"]
    assert leaf.sharding.spec == P(None, None, "model")
    assert {s.data.shape for s in leaf.addressable_shards} == {(4, 128, 32)}
    assert split["norm"]["weight"].sharding.is_fully_replicated


def test_what_cannot_be_cut_between_heads_is_cut_inside_of_them(tmp_path):
    from tests.families import make

    make("llama-biases", tmp_path / "m")
    checkpoint = Checkpoint(tmp_path / "m")
    config = checkpoint.model.config
    assert config.num_attention_heads % 4 == 0
    assert config.num_key_value_heads % 4 != 0
    where = shardings(mesh_of(2, 4), checkpoint.specs)
    assert where["layers.self_attn.q_proj.weight"].spec == P(None, "model", None)
    assert where["layers.self_attn.q_proj.bias"].spec == P(None, "model")
    assert where["layers.self_attn.k_proj.weight"].spec == P(None, "model", None)
    for path, spec in {s.path: s for s in checkpoint.specs}.items():
        where[path].shard_shape(spec.leaf_shape)  # raises unless all parts are equal


def test_a_part_of_a_tensor_is_its_bytes_and_no_others():
    stored = read_header(Path(MODELS["base"]) / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    whole = stored.read()
    for index in [(slice(32, 64), slice(None)), (slice(None), slice(64, 128)), (slice(3, 5), slice(1, 2))]:
        before = read_so_far()
        part = stored.read(index=index)
        bytes_read = read_so_far() - before - reading_costs()
        np.testing.assert_array_equal(part, whole[index])
        assert bytes_read == part.nbytes


def read_so_far():
    """Bytes that this process has asked files for."""
    return int(Path("/proc/self/io").read_text().split()[1])


def reading_costs():
    return -(read_so_far() - read_so_far())


@pytest.mark.parametrize(("pop", "model"), [(3, None), (None, 3), (2, 2), (16, 1)])
def test_a_mesh_that_is_not_the_devices_is_refused(pop, model):
    with pytest.raises(InputError, match=r"is not the number of devices, 8"):
        make_mesh(pop, model)


def test_the_mesh_follows_from_the_devices():
    assert dict(make_mesh().shape) == {"pop": 8, "model": 1}
    assert dict(make_mesh(model=4).shape) == {"pop": 2, "model": 4}
    assert dict(make_mesh(pop=2).shape) == {"pop": 2, "model": 4}
    assert put(np.arange(4), everywhere(make_mesh())).sharding.is_fully_replicated
