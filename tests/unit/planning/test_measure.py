"""Plans: shapes that are those of the run, arithmetic that is right, advice that helps, and nothing read."""

import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.extend.core import jaxprs_in_params

from jevomerge.checkpoint.export import write_model
from jevomerge.config import RunConfig
from jevomerge.devices.collectives import collectives, executions
from jevomerge.devices.mesh import by_member, make_mesh, put
from jevomerge.fitness.batches import Batch, Layout
from jevomerge.fitness.members import make_members, run_members
from jevomerge.fitness.rollouts.beams import BeamSearch
from jevomerge.fitness.rollouts.generation import Generation, Prompts
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.fitness.slices import Placing
from jevomerge.methods.bank import Merge, abstract_bank, make_bank
from jevomerge.methods.registry import MERGEKIT, PAPER
from jevomerge.models.families import read_model
from jevomerge.models.specs import unflatten
from jevomerge.planning import measure
from jevomerge.planning.cost import cost_of
from jevomerge.planning.measure import bytes_per_device, plan_on
from jevomerge.planning.programs import first_generation, programs
from jevomerge.planning.report import advice, lines_of
from jevomerge.problems.problem import Whole
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.run.plan import plan
from jevomerge.run.search import choose_mesh
from jevomerge.search.setup import set_up
from tests.unit.devices.test_mesh import KINDS, MODELS, mesh_of, task

ROOT = Path(__file__).parents[3]
GIB = 1 << 30


def config_of(kind, scores=("likelihood", "generation"), **more):
    given = {"name": kind, "tasks": [task(s) for s in scores], "memory": "device"}
    return RunConfig.model_validate({**given, **KINDS[kind], **more})


@functools.cache
def setup_of(kind, scores=("likelihood", "generation")):
    return set_up(config_of(kind, scores))


def compiled(program):
    return program.traced.lower().compile()


# --- shapes are those of the run ----------------------------------------------------------------------------


def described(tree):
    """Shape, dtype and, where it is on a mesh, sharding of every leaf, by its path."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    spec = {jax.tree_util.keystr(k): getattr(getattr(x, "sharding", None), "spec", None) for k, x in leaves}
    return {jax.tree_util.keystr(k): (x.shape, x.dtype, x.weak_type, spec[jax.tree_util.keystr(k)]) for k, x in leaves}


@pytest.mark.parametrize(
    ("semantics", "name"),
    [*(("mergekit", n) for n in MERGEKIT), *(("paper", n) for n, m in PAPER.items() if m is not MERGEKIT[n])],
)
def test_what_a_method_prepares_is_known_without_weights(semantics, name):
    method = (MERGEKIT if semantics == "mergekit" else PAPER)[name]
    models = [MODELS[m] for m in ("japanese", "mathematics", "addition")][: method.num_sources[1] or 3]
    recipe = Recipe.model_validate(
        {
            "merge_method": name,
            "semantics": semantics,
            "models": [{"model": m} for m in models],
            "parameters": {p.name: 0.5 for p in method.parameters if p.default is None},
            "dtype": "float32",
            **({"base_model": MODELS["base"]} if method.base in ("required", "optional") else {}),
            **({"base_model": models[0]} if method.base == "first" else {}),
        }
    )
    sources, mesh = Sources(recipe), mesh_of(2, 2)
    merge = Merge(sources.method, sources.dtype)
    concrete = make_bank(merge, sources.specs, *sources.load(mesh), sources.keys(), mesh)
    abstract = abstract_bank(merge, sources.specs, *sources.load(mesh, abstract=True), sources.keys(), mesh)
    assert described(abstract) == described(concrete)


@pytest.mark.parametrize("kind", ["ties", "path", "both"])
def test_candidates_are_known_without_weights(kind):
    problem, mesh = setup_of(kind).problem, mesh_of(2, 2)
    concrete, abstract = problem.load(mesh), problem.load(mesh, abstract=True)
    sharded = {k: v for k, v in described(concrete).items() if v[3] is not None}
    found = described(abstract)
    assert found.keys() == described(concrete).keys()
    assert {k: found[k] for k in sharded} == sharded
    assert {k: v[:2] for k, v in found.items()} == {k: v[:2] for k, v in described(concrete).items()}
    on_first = sum(
        s.data.nbytes for x in jax.tree.leaves(concrete) for s in x.addressable_shards if s.device == jax.devices()[0]
    )
    spaces = sum(x.nbytes for x in jax.tree.leaves(concrete) if len(x.sharding.device_set) == 1)
    assert bytes_per_device(abstract.held()) == on_first - spaces


@pytest.mark.parametrize("kind", [pytest.param("dare_ties", marks=pytest.mark.slow), "path", "both"])
def test_the_programs_are_those_that_the_judge_runs(kind):
    """Compiled from shapes, they take the arrays of a real run and give its scores."""
    setup, mesh = setup_of(kind), mesh_of(2, 2)
    judge, population = setup.judge.on(mesh), first_generation(setup)[:2]
    candidates = setup.problem.load(mesh)
    members = put(population.astype(np.float32), by_member(mesh))
    made = make_members(candidates, members, mesh=mesh)
    names = []
    for program, executable in programs(setup, judge, setup.problem.load(mesh, abstract=True), compiled):
        if program.name.endswith("whole"):  # below
            continue
        names.append(program.name.split()[0])
        if program.name == "merge":
            jax.tree.map(np.testing.assert_array_equal, executable(candidates, members), made)
            continue
        (one,) = (t for t in judge.tasks if t.name in program.name)
        examples, layouts = judge.examples["search"][one.name], judge.layouts[one.name]
        (layout, _, batch), *_ = make_batches(one.rollout, judge.subject, examples, layouts)
        batch = Placing(mesh)([batch])
        if names[-1] == "generate":
            written = executable(candidates, made, members, batch)
            assert written.shape == (2, layout.rows, layout.answer_slots)
        else:
            likelihoods, _ = executable(candidates, None if candidates.lazy else made, members, batch)
            score = run_members(
                candidates, None if candidates.lazy else made, members, batch, slots=None,
                mesh=mesh, model=judge.subject, rollout=one.rollout, layout=layout, dtype="float32",
            )  # fmt: skip
            np.testing.assert_array_equal(likelihoods, score[0])
    assert names == [*(["merge"] if kind != "path" else []), "score", "generate"]


# --- arithmetic ---------------------------------------------------------------------------------------------


ROWS, LENGTH, ANSWERS = 3, 24, 4


def traced(generating, beams=1, answers=ANSWERS):
    """One model's architecture, the sizes of its parameters, and its pass over ROWS texts of LENGTH tokens."""
    setup, shape = setup_of("task_arithmetic"), jax.ShapeDtypeStruct
    model, tokenizer = setup.judge.subject, setup.problem.tokenizer()
    specs = model.specs
    candidates = Whole(unflatten({s.path: shape(s.leaf_shape, np.float32) for s in specs}))
    texts = shape((ROWS, LENGTH), np.int32), shape((ROWS, LENGTH), bool)
    rollout, batch = Likelihood(pad=0), Batch(*texts, shape((ROWS,), np.int32))
    if generating:
        rollout = Generation(tokenizer, answers) if beams == 1 else BeamSearch(tokenizer, ANSWERS, beams=beams)
        batch = Prompts(*texts, shape((), np.int32), shape((1,), np.int32))
    static = {"mesh": mesh_of(1, 1), "model": model, "layout": Layout(ROWS, LENGTH, answers), "dtype": "float32"}
    arguments = (candidates, None, shape((1, 0), np.float32), batch)
    return model.config, specs, run_members.trace(*arguments, slots=None, rollout=rollout, **static).jaxpr


def test_matrix_products_of_a_forward_pass():
    c, specs, jaxpr = traced(generating=False)
    blocks = sum(math.prod(s.leaf_shape) for s in specs if s.stack and len(s.shape) == 2)
    tokens = ROWS * (LENGTH - 1)
    attention = 2 * 2 * c.num_hidden_layers * c.num_attention_heads * tokens * (LENGTH - 1) * c.head_dim
    head = 2 * ROWS * ANSWERS * c.vocab_size * c.hidden_size
    cost = cost_of(jaxpr)
    assert cost.matmul == pytest.approx(2 * blocks * tokens + attention + head, rel=0.01)
    assert not cost.unknown


def test_a_decoded_token_moves_the_weights_and_the_cache():
    c, specs, jaxpr = traced(generating=True)
    ten, twenty = (cost_of(jaxpr, {"decode": n}) for n in (10.0, 20.0))
    step = (twenty.bytes - ten.bytes) / 10
    matrices = sum(math.prod(s.leaf_shape) for s in specs if len(s.shape) == 2 and not s.path.startswith("embed"))
    head = c.vocab_size * c.hidden_size * c.tie_word_embeddings
    before = LENGTH + ANSWERS - 1  # the newest slot is at hand
    cache = 2 * c.num_hidden_layers * ROWS * before * c.num_key_value_heads * c.head_dim
    assert 1 < step / (4 * (matrices + head + cache)) < 1.15  # and activations
    blocks = sum(math.prod(s.leaf_shape) for s in specs if s.stack and len(s.shape) == 2)
    attention = 2 * 2 * c.num_hidden_layers * c.num_attention_heads * ROWS * (LENGTH + ANSWERS) * c.head_dim
    expected = 2 * ROWS * (blocks + c.vocab_size * c.hidden_size) + attention
    assert (twenty.matmul - ten.matmul) / 10 == pytest.approx(expected, rel=0.01)
    assert ten.unknown == set()
    assert cost_of(jaxpr).unknown == {"decode"}


def test_each_beam_is_a_row_of_the_cache():
    c, _, jaxpr = traced(generating=True, beams=3)
    setup, layout = setup_of("task_arithmetic"), Layout(ROWS, LENGTH, ANSWERS)
    shapes = BeamSearch(setup.problem.tokenizer(), ANSWERS, beams=3).cache(setup.judge.subject, layout, None)
    shape = (c.num_hidden_layers, 3 * ROWS, c.num_key_value_heads, LENGTH + ANSWERS, c.head_dim)
    assert list(shapes).count(shape) == len(shapes) == 2
    carried = [v.aval.shape for e in loops(jaxpr.jaxpr) for v in e.invars]
    assert carried.count(shape) == 2  # keys and values


def loops(jaxpr):
    """The loops of dynamic length in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from loops(inner)


def test_a_loop_counts_as_often_as_it_runs():
    weights, x = jnp.ones((10, 128, 128)), jnp.ones((64, 128))
    product = 2 * 64 * 128 * 128

    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)[0]

    once = cost_of(jax.jit(scanned).trace(x, weights[:1]).jaxpr)
    ten = cost_of(jax.jit(scanned).trace(x, weights).jaxpr)
    assert ten.matmul == 10 * product
    assert ten.bytes == 10 * once.bytes >= 10 * (128 * 128 + 2 * 64 * 128) * 4

    def dynamic(x, n):
        with jax.named_scope("hops"):
            return jax.lax.fori_loop(0, n, lambda i, x: x @ weights[0], x)

    traced = jax.jit(dynamic).trace(x, 5).jaxpr
    assert cost_of(traced, {"hops": 7.0}).matmul == 7 * product
    assert cost_of(traced, {}).matmul == product
    assert cost_of(traced, {}).unknown == {"hops"}


def test_a_choice_costs_what_it_takes_in_the_mean():
    x = jnp.ones((64, 128))
    one = 2 * 64 * 128 * 128
    branches = [lambda x, n=n: functools.reduce(lambda y, _: y @ jnp.ones((128, 128)), range(n), x) for n in (1, 2, 4)]

    def chosen(x, which):
        with jax.named_scope("reach"):
            return jax.lax.switch(which, branches, x)

    traced = jax.jit(chosen).trace(x, 0).jaxpr
    found = [cost_of(traced, trips).matmul / one for trips in ({}, {"reach": 0.0}, {"reach": 1.25}, {"reach": 9.0})]
    assert found == [4, 1, 2.5, 4]


def test_a_decoded_token_moves_what_is_filled_of_a_cache():
    """Of 300 slots 128, 256, or all; scores are moved, too, which in heads this small is much."""
    c, _, jaxpr = traced(generating=True, answers=300 - LENGTH)
    moved = []
    for reach in (0.0, 1.0, 2.0):
        ten, twenty = (cost_of(jaxpr, {"decode": n, "reach": reach}).bytes for n in (10.0, 20.0))
        moved.append((twenty - ten) / 10)
    slot = 2 * 4 * c.num_hidden_layers * ROWS * c.num_key_value_heads * c.head_dim
    np.testing.assert_allclose(np.diff(moved), np.array([128, 300 - 256]) * slot, rtol=0.3)


FREE_OF_LOOPS = {
    "product": lambda x, y: x @ y.T,
    "batched": lambda x, y: jnp.einsum("abi,cbi->bac", x.reshape(8, 8, 64), y.reshape(8, 8, 64)),
    "norm": lambda x, y: x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True)) @ y.T,
    "gradient": lambda x, y: jax.grad(lambda x: jnp.mean(jnp.square(jnp.maximum(x @ y.T, 0) @ y)))(x),
    "softmax": lambda x, y: jnp.sum(jnp.maximum(x - jnp.max(x, axis=1, keepdims=True), 0) * y, axis=1),
}


@pytest.mark.parametrize("name", FREE_OF_LOOPS)
def test_arithmetic_without_loops_is_that_of_xla(name):
    x = jnp.ones((64, 64))
    traced = jax.jit(FREE_OF_LOOPS[name]).trace(x, x)
    theirs = traced.lower().compile().cost_analysis()["flops"]
    assert cost_of(traced.jaxpr).flops == pytest.approx(theirs, rel=0.05)


# --- collectives and loops of compiled programs ---------------------------------------------------------------


def test_an_exchange_in_a_loop_counts_as_often_as_it_runs():
    mesh = mesh_of(1, 4)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "model"))
    weights = jax.ShapeDtypeStruct((6, 32, 32), np.float32, sharding=where)

    def f(x, weights, n):
        def layer(x, w):
            return jnp.tanh(x @ w.T), None

        with jax.named_scope("decode"):
            return jax.lax.fori_loop(0, n, lambda _, x: jax.lax.scan(layer, x, weights)[0], x)

    x = jax.ShapeDtypeStruct(
        (4, 32), np.float32, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    text = jax.jit(f).lower(x, weights, 3).compile().as_text()
    found = [c for c in collectives(text, mesh, {"decode": 5.0}) if c.bytes == 4 * 32 * 4]
    assert [c.runs for c in found] == [30.0]
    assert {c.runs for c in collectives(text, mesh)} == {1.0}
    assert max(executions(text, {"decode": 5.0}).values()) >= 30


# --- does it fit, and what to change ------------------------------------------------------------------------


def with_memory(monkeypatch, gib):
    """Devices that have so much memory: what is tested is what a plan does about it."""
    monkeypatch.setattr(measure, "memory_limit", lambda device: gib * GIB)


def test_memory_by_kind_adds_up_to_what_the_compiler_says():
    setup, mesh = setup_of("task_arithmetic", ("generation",)), mesh_of(1, 1)
    plan = plan_on(setup, mesh, 1)
    traced = programs(setup, setup.judge.on(mesh), setup.problem.load(mesh, abstract=True), compiled)
    analyses = [executable.memory_analysis() for _, executable in traced]
    merge, generate, export = plan.uses
    parameters = sum(math.prod(s.leaf_shape) for s in setup.problem.sources.specs)
    assert plan.sources == 3 * parameters * 2  # base and two models in bfloat16
    assert merge.merged == generate.merged == pytest.approx(parameters * 4, rel=1e-3)  # pointers beside them
    c, layout = setup.judge.subject.config, setup.judge.layouts["generation"][0]
    tokens = layout.rows * (layout.length + layout.answer_slots)
    assert generate.cache == 2 * c.num_hidden_layers * tokens * c.num_key_value_heads * c.head_dim * 4
    assert generate.cache + generate.temporaries == analyses[1].temp_size_in_bytes + analyses[1].output_size_in_bytes
    largest = max(math.prod(s.shape) for s in setup.problem.sources.specs)
    assert largest * (3 * 2 + 4) < export.temporaries < largest * (3 * 2 + 4) * 1.5  # its inputs and its result
    most = max(analyses[0].temp_size_in_bytes, generate.cache + generate.temporaries)
    assert plan.peak == plan.sources + plan.prepared + merge.merged + most


def test_the_mesh_is_the_smallest_that_fits(monkeypatch):
    setup, devices = set_up(config_of("task_arithmetic", ("likelihood",), members_per_device=1)), jax.devices()
    peaks = {model: plan_on(setup, mesh_of(8 // model, model), 1).peak / GIB for model in (1, 2)}
    assert peaks[1] > peaks[2]
    for model in peaks:
        with_memory(monkeypatch, peaks[model] * 1.01)
        plan = measure.best_plan(setup, devices)
        assert plan.fits
        assert dict(plan.mesh.shape) == {"pop": 8 // model, "model": model}
    monkeypatch.undo()
    assert dict(measure.best_plan(setup, devices).mesh.shape) == {"pop": 8, "model": 1}  # a CPU does not say


def test_a_search_takes_the_mesh_that_fits(monkeypatch):
    """`evolve` on devices that say how much memory they have."""
    setup = set_up(config_of("task_arithmetic", ("likelihood",), members_per_device=1))
    assert dict(setup.mesh.shape) == {"pop": 8, "model": 1}
    limit = (plan_on(setup, mesh_of(8, 1), 1).peak + plan_on(setup, mesh_of(4, 2), 1).peak) / 2 / GIB
    with_memory(monkeypatch, limit)
    monkeypatch.setattr("jevomerge.run.search.memory_limit", measure.memory_limit)
    chosen = choose_mesh(setup, Quiet())
    assert dict(chosen.mesh.shape) == {"pop": 4, "model": 2}
    assert chosen.judge.group == 4
    assert dict(setup.mesh.shape) == {"pop": 8, "model": 1}  # another one
    with_memory(monkeypatch, 1e-6)
    heard = Quiet()
    choose_mesh(setup, heard)
    assert "may not fit" in heard.notes[0]


class Quiet:
    def __init__(self):
        self.notes = []

    def stage(self, text):
        pass

    def note(self, text):
        self.notes.append(text)


def test_as_many_members_at_once_as_fit(monkeypatch):
    setup, device = set_up(config_of("task_arithmetic", ("likelihood",))), jax.devices()[:1]
    setup = dataclasses.replace(setup, judge=setup.judge.on(make_mesh(devices=device)))
    peaks = {n: plan_on(setup, mesh_of(1, 1), n).peak / GIB for n in (1, 2, 4)}
    assert peaks[1] < peaks[2] < peaks[4]
    for n in (1, 2):
        with_memory(monkeypatch, (peaks[n] + peaks[2 * n]) / 2)
        assert measure.best_plan(setup, device).members_per_device == n
    fixed = set_up(config_of("task_arithmetic", ("likelihood",), members_per_device=1))
    with_memory(monkeypatch, peaks[4] * 2)
    assert measure.best_plan(fixed, device).members_per_device == 1


def test_what_to_change_if_it_does_not_fit(monkeypatch):
    config = config_of("task_arithmetic", ("generation",), mesh={"model": 1})
    setup, devices = set_up(config), jax.devices()
    with_memory(monkeypatch, plan_on(setup, mesh_of(4, 2), 1).peak * 1.01 / GIB)
    plan = measure.best_plan(setup, devices)
    assert not plan.fits
    way, changed = advice(setup, plan, devices)
    assert "model: 2" in way
    assert changed.fits
    assert changed.mesh.shape["model"] == 2
    assert "does not fit" in "\n".join(lines_of(plan, "here"))


def test_fewer_examples_at_once_if_there_is_one_device(monkeypatch):
    config, one = config_of("task_arithmetic", ("generation",)), jax.devices()[:1]
    many = {"search": config.tasks[0].search.model_copy(update={"limit": 96})}
    config = config.model_copy(update={"tasks": (config.tasks[0].model_copy(update=many),)})
    small, full = (set_up(config.model_copy(update={"tokens_per_batch": n}), one) for n in (512, 4096))
    fewer, more = (plan_on(s, mesh_of(1, 1), 1).peak / GIB for s in (small, full))
    assert fewer < more
    with_memory(monkeypatch, (fewer + more) / 2)
    found, _ = advice(full, measure.best_plan(full, one), one)
    size = int(re.search(r"^set `tokens_per_batch: (\d+)`", found)[1])
    changed = set_up(config.model_copy(update={"tokens_per_batch": size}), one)
    assert measure.best_plan(changed, one).fits
    with_memory(monkeypatch, 1e-6)
    assert "larger devices" in advice(full, measure.best_plan(full, one), one)[0]


def test_fewer_examples_in_a_step_if_only_the_gradient_is_too_large(monkeypatch):
    config, mesh = (
        config_of("task_arithmetic", ("likelihood",), refine={"examples_per_step": 8}, members_per_device=1),
        mesh_of(1, 1),
    )
    setup, one = set_up(config, jax.devices()[:1]), jax.devices()[:1]
    setups, peaks = {}, {}
    for n in (4, 8):
        refine = config.refine.model_copy(update={"examples_per_step": n})
        setups[n] = dataclasses.replace(setup, config=config.model_copy(update={"refine": refine}))
        peaks[n] = plan_on(setups[n], mesh, 1).peak / GIB
    with_memory(monkeypatch, (peaks[4] + peaks[8]) / 2)
    plan = measure.best_plan(setup, one)
    assert not plan.fits
    assert advice(setup, plan, one)[0].startswith("set `refine.examples_per_step: 4`")
    assert measure.best_plan(setups[4], one).fits
    with_memory(monkeypatch, 1e-6)
    assert "or refine.examples_per_step makes it fit" in advice(setups[4], measure.best_plan(setups[4], one), one)[0]


def test_members_are_the_first_to_go(monkeypatch):
    setup, device = set_up(config_of("task_arithmetic", ("likelihood",), members_per_device=4)), jax.devices()[:1]
    with_memory(monkeypatch, plan_on(setup, mesh_of(1, 1), 1).peak * 1.01 / GIB)
    plan = measure.best_plan(setup, device)
    assert not plan.fits
    assert advice(setup, plan, device)[0] == "set `members_per_device: 1`"


# --- nothing is read ----------------------------------------------------------


SEVEN_BILLION = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def large(tmp_path):
    """A search over two models of 7B whose weights are holes."""
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        specs = read_model(SEVEN_BILLION).specs
        write_model(folder, {"config.json": SEVEN_BILLION}, specs, "bfloat16", None)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((Path(MODELS["base"]) / file).read_bytes())
    config = {
        "name": "large",
        "recipe": {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "dtype": "bfloat16"},
        "genome": {"weight": [0, 1]},
        "tasks": [task("likelihood").model_dump()],
        "compute_dtype": "bfloat16",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run.yaml"


def test_a_plan_reads_no_weights(large):
    """In a process that may not have as much memory as a fifth of one model."""
    # Not getrusage's ru_maxrss: it survives exec, so a child would report this worker's own peak.
    script = (
        "import sys; from jevomerge.cli import main\n"
        "status = main(['plan', sys.argv[1], '--debug'])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "sys.exit(status)"
    )
    command, env = [sys.executable, "-c", script, str(large)], os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    *lines, peak = result.stdout.splitlines()
    assert int(peak) * 1024 < 2.9e9
    (sources,) = (float(line.split()[1]) for line in lines if line.split()[0] == "sources")
    assert sources == pytest.approx(2 * 7.2417e9 * 2 / GIB, rel=1e-3)


def test_a_sweep_on_this_machine():
    config = config_of("task_arithmetic", ("likelihood",), mesh={"model": 4}, search={"population": 6})
    lines = [line for line in plan(config, sweep=True) if "per device" in line]
    assert [re.search(r"(\d) per device", line)[1] for line in lines] == ["1", "2"]  # three groups of members at most
