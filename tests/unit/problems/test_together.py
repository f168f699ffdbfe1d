"""Candidates that share what they read score as merged ones, and read each source once for all of them."""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.fitness.batches import Batch
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts.beams import beam_search
from jevomerge.fitness.rollouts.generation import Prompts, generate
from jevomerge.fitness.rollouts.likelihood import answer_likelihood
from jevomerge.genome.schema import Gene
from jevomerge.planning.chips import Chip
from jevomerge.planning.measure import bytes_per_device, use_of
from jevomerge.planning.programs import programs
from jevomerge.planning.sharing import costs_of, line, settled_sharing
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.schema import Recipe
from jevomerge.search.setup import set_up
from tests.families import make
from tests.unit.checkpoint.test_lora import DOWN2, EMBED, K0, LLAMA, Q0, Q1, pair, write_adapter
from tests.unit.devices.test_mesh import KINDS, mesh_of, setting, task

PARITY = Path(__file__).parents[2] / "data" / "parity" / "models"
MEMBERS, END = 5, 2


@functools.cache
def judged(together, shape, members):
    config, problem, tokenizer, genomes = setting("task_arithmetic")
    mesh = mesh_of(*shape)
    judge = make_judge(
        make_ready(config.tasks, tokenizer, problem.model), problem.model, mesh=mesh, members_per_device=members
    )
    return [s for group in judge.members(problem.load(mesh, together=together), genomes) for s in group]


@pytest.mark.parametrize(("shape", "members"), [((2, 1), 3), pytest.param((1, 2), 5, marks=pytest.mark.slow)])
def test_a_population_of_trained_models_scores_and_writes_the_same(shape, members):
    merged, together = judged(False, (1, 1), 1), judged(True, shape, members)
    one, other = (np.stack([s.fitness["likelihood"] for s in found]) for found in (merged, together))
    assert np.ptp(one.mean(axis=1)) > 0.05  # members differ
    np.testing.assert_allclose(other, one, rtol=1e-5)
    assert [s.texts for s in together] == [s.texts for s in merged]
    assert len({str(s.texts) for s in merged}) > 1


# --- random models ------------------------------------------------------------------------------------------


def problem_of(models, method="linear", base=None):
    recipe = {"merge_method": method, "models": [{"model": str(m)} for m in models], "dtype": "float32"}
    named = {} if base is None else {"base_model": str(base)}
    return WeightProblem(Recipe.model_validate(recipe | named), {"weight": Gene(layers_per_group=2)})


def genomes_of(problem):
    return jnp.asarray(np.random.default_rng(0).uniform(0.2, 1, (MEMBERS, len(problem.names))), jnp.float32)


def prompts(rows=7, length=9):
    tokens = jnp.asarray(np.random.default_rng(1).integers(5, 90, (rows, length)), jnp.int32)
    valid = jnp.arange(length)[None] >= jnp.asarray([0, 4, 0, 2, 0, 0, 3])[:rows, None]
    return Prompts(tokens, valid, jnp.int32(8), jnp.asarray([17, 18, 19], jnp.int32))


def found(problem, candidates, way):
    """What `way` makes of the model of each candidate."""

    def member(genome):
        made = candidates.make(genome) if candidates.together else None
        return way(candidates.model(candidates.make(genome) if made is None else made, genome))

    each = jax.vmap(member) if candidates.together else functools.partial(jax.lax.map, member)
    return jax.jit(lambda genomes: each(genomes))(genomes_of(problem))


def agree(problem, merged=None, together=None, ways=("refilled",)):
    """Likelihoods to 1e-5, and the same texts, where rows are filled again; perhaps also by beams and all at once."""
    merged = problem.load() if merged is None else merged
    together = problem.load(together=True) if together is None else together
    batch, model = prompts(), problem.model
    scored = Batch(batch.tokens, batch.valid, jnp.full(7, 3, jnp.int32))
    known = {
        "refilled": lambda instance: generate(instance, model, batch, 8, 2),
        "all": lambda instance: generate(instance, model, batch, 8),
        "beams": lambda instance: beam_search(instance, model, batch, 8, 2),
    }
    one, other = (found(problem, c, lambda i: answer_likelihood(i, model, scored, 3)[0]) for c in (merged, together))
    assert np.ptp(one, axis=0).max() > 1e-3
    np.testing.assert_allclose(other, one, rtol=1e-5)
    for name in ways:
        one, other = (np.asarray(found(problem, c, known[name])) for c in (merged, together))
        assert (one == other).all(), name
        assert len({row.tobytes() for row in one}) > 1, name


def test_random_models_write_the_same():
    agree(problem_of([PARITY / m for m in "abc"]), ways=("beams",))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "base"), [("linear", None), ("task_arithmetic", PARITY / "base")])
def test_in_every_way(method, base):
    agree(problem_of([PARITY / m for m in "abc"], method, base), ways=("refilled", "all", "beams"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen2", "phi3", "cohere2", "gpt_neox", "qwen3_moe", "qwen3_next"])
def test_families_write_the_same(family, tmp_path):
    for seed in (1, 2):
        make(family, tmp_path / str(seed), seed=seed)
    agree(problem_of([tmp_path / "1", tmp_path / "2"]))


def test_no_matrix_is_there_once_for_each_member():
    """In the compiled program: what is multiplied by are the sources themselves."""
    problem, batch = problem_of([PARITY / m for m in "abc"]), prompts(4)
    matrices = {s.shape for s in problem.sources.specs if len(s.shape) == 2}

    def program(candidates):
        def members(candidates, genomes):
            def member(genome):
                instance = candidates.model(candidates.make(genome), genome)
                return generate(instance, problem.model, batch, 8)

            return jax.vmap(member)(genomes)

        text = jax.jit(members).lower(candidates, genomes_of(problem)).compile().as_text()
        shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
        return {shape for shape in shapes if shape[0] == MEMBERS and shape[-2:] in matrices}

    assert program(problem.load())  # of merged candidates there are
    assert not program(problem.load(together=True))


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapters(tmp_path):
    """Of different ranks and tensors, the last with more than linear maps: an embedding, a bias would be the same."""
    folders = [
        write_adapter(tmp_path / "one", pair(Q0) | pair(K0) | pair(DOWN2)),
        write_adapter(tmp_path / "two", pair(Q0, rank=2) | pair(Q1, rank=2), r=2, lora_alpha=3),
        write_adapter(tmp_path / "more", pair(Q1) | pair(EMBED, embedding=True)),
    ]
    return [f"{LLAMA}+{folder}" for folder in folders]


@pytest.mark.parametrize(
    ("method", "base"), [("task_arithmetic", LLAMA), pytest.param("linear", None, marks=pytest.mark.slow)]
)
def test_adapters_of_one_model_are_not_folded_in(method, base, adapters):
    problem = problem_of(adapters, method, base)
    pool = problem.load(together=True)
    agree(problem, together=pool)
    leaf = f"layers.{Q0.partition('layers.0.')[2]}.weight"
    assert all(source[leaf] is pool.bank.sources[0][leaf] for source in pool.bank.sources)


def test_what_a_pool_holds_is_one_model_and_the_adapters(adapters):
    problem, mesh = problem_of(adapters[:2], "task_arithmetic", LLAMA), mesh_of(1, 1)
    specs = {s.path: s for s in problem.sources.specs}
    whole = sum(4 * s.count * math.prod(s.shape) for s in specs.values())
    ranks = {"self_attn.q_proj": 4 + 2, "self_attn.k_proj": 4, "mlp.down_proj": 4}
    adapted = [(specs[f"layers.{name}.weight"], rank) for name, rank in ranks.items()]
    low = sum(4 * spec.count * rank * sum(spec.shape) for spec, rank in adapted)
    for abstract in (True, False):
        dense, pool = (problem.load(mesh, abstract=abstract, together=t) for t in (False, True))
        assert bytes_per_device(pool.held()[0]) == whole + low
        assert bytes_per_device(dense.held()[0]) == 3 * whole
    assert problem.shared.read - problem.shared.size == low / 4


@pytest.mark.slow
def test_baselines_and_gradients_of_a_pool_are_those_of_folded_adapters(adapters):
    problem, mesh = problem_of(adapters, "task_arithmetic", LLAMA), mesh_of(1, 1)
    dense, pool = (problem.load(mesh, together=t) for t in (False, True))
    for one, other in zip(problem.baselines(dense), problem.baselines(pool), strict=True):
        assert one.name == other.name
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one.load(mesh), other.load(mesh))
    batch = prompts()
    scored = Batch(batch.tokens, batch.valid, jnp.full(7, 3, jnp.int32))

    def likelihood(candidates):
        def mean(genome):
            return answer_likelihood(candidates.model(None, genome), problem.model, scored, 3)[0].mean()

        return jax.jit(jax.grad(mean))(genomes_of(problem)[0])

    one, other = likelihood(dense.unrounded()), likelihood(pool.unrounded())
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


def test_an_adapter_with_nan_is_refused(tmp_path):
    tensors = pair(Q0)
    tensors[next(iter(tensors))][0, 0] = np.nan
    write_adapter(tmp_path / "one", tensors)
    with pytest.raises(InputError, match=r"the adapter of .*q_proj.* contains NaN"):
        problem_of([f"{LLAMA}+{tmp_path / 'one'}", LLAMA]).load(together=True)


SPARSE = {"dare_linear": {"rescale": True}, "breadcrumbs": {"gamma": 0.05}}


@pytest.mark.parametrize("method", ["dare_linear", pytest.param("breadcrumbs", marks=pytest.mark.slow)])
def test_a_sum_of_what_is_kept_of_each_once(method, tmp_path):
    make("smollm2", tmp_path / "m", seed=7)
    models = []
    for seed in (1, 2):
        make("smollm2", tmp_path / str(seed), seed=seed)
        models.append({"model": str(tmp_path / str(seed)), "parameters": {"density": 0.2 + 0.3 * seed}})
    recipe = {"merge_method": method, "models": models, "base_model": str(tmp_path / "m"), "parameters": SPARSE[method]}
    problem = WeightProblem(Recipe.model_validate(recipe), {"weight": Gene(layers_per_group=2)})
    assert problem.shared.read == 3 * problem.shared.size
    mesh = mesh_of(1, 1)
    merged, shared = problem.load(mesh), problem.load(mesh, together=True)
    agree(problem, merged, shared, ways=())
    abstract = problem.load(mesh, abstract=True, together=True)
    assert bytes_per_device(abstract.held()[0]) == bytes_per_device(shared.held()[0])
    for one, other in zip(problem.baselines(merged), problem.baselines(shared), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.load(mesh), other.load(mesh))
    searched = WeightProblem(Recipe.model_validate(recipe), {"weight": Gene(), "density": Gene()})
    assert searched.shared == f"{method} is not linear in its models where `density` is a gene"


# --- whether --------------------------------------------------------------------------------------------


def setup_of(kind, share="auto", more=None, search=None, **recipe):
    values = {"name": kind, "tasks": [task("generation")], **KINDS[kind], **(more or {})}
    values |= {"recipe": {**values["recipe"], **recipe}, "search": {"share": share, **(search or {})}}
    return set_up(RunConfig.model_validate(values), jax.devices()[:1])


def chip(flops):
    """So many operations in the time of a byte."""
    return Chip("", "", flops * 1e12, 1e12, math.inf, 1 << 34)


def test_what_is_cheaper_is_done():
    setup = setup_of("task_arithmetic")
    free, dear = settled_sharing(setup, chip(1e6)), settled_sharing(setup, chip(1e-3))
    assert (free.together, dear.together) == (True, False)
    assert free.judge.members_per_device == setup.strategy.population_size
    assert "share what they read" in line(free, chip(1e6))
    assert "each candidate is merged, as that is cheaper" in line(dear, chip(1e-3))
    costs = costs_of(setup, chip(1e6))
    # One batch of 8 prompts, 5 more steps. Three of 2 bytes are read, one of 4 written and read 6 times; or the three
    # are read 6 times for all.
    shared, members = setup.problem.shared, setup.strategy.population_size
    assert shared.read == 3 * shared.size
    assert costs.merged == pytest.approx(shared.size * (3 * 2 + 4 + 6 * 4), rel=1e-3)
    assert costs.together == pytest.approx(shared.size * 6 * 3 * 2 / members, rel=1e-3)
    assert costs_of(setup, chip(1e-3)).together / costs_of(setup, chip(1e-3)).merged > 1


def test_a_plan_knows_the_caches_of_all_that_run_together():
    setup = settled_sharing(setup_of("task_arithmetic", True))
    judge, candidates = (
        setup.judge.on(mesh_of(1, 1), 3),
        setup.problem.load(mesh_of(1, 1), abstract=True, together=True),
    )
    made = programs(setup, judge, candidates, lambda program: program.traced.lower().compile())
    (merge, first), (generate, second) = next(made), next(made)
    uses = [use_of(merge, first, None, [])]
    uses.append(use_of(generate, second, None, uses))
    assert uses[1].cache == 3 * 4 * sum(map(math.prod, generate.cache))
    assert not uses[1].unknown  # how often its loops turn


def test_share_is_a_wish():
    free = chip(1e6)
    assert not settled_sharing(setup_of("task_arithmetic", False), free).together
    assert settled_sharing(setup_of("task_arithmetic", True), chip(1e-3)).together
    raced = setup_of("task_arithmetic", search={"racing": "exact", "strategy": "sep_cma_es"})  # a group at a time
    assert not settled_sharing(raced, free).together
    assert "and raced" in line(raced, free)
    little = setup_of("task_arithmetic", more={"tokens_per_batch": 300})
    assert costs_of(little, free).members < setup_of("task_arithmetic").strategy.population_size
    half = {"dtype": "bfloat16"}
    assert not settled_sharing(setup_of("task_arithmetic", **half), free).together
    wished = setup_of("task_arithmetic", True, **half)
    assert settled_sharing(wished, free).together
    assert any("without the rounding of their weights to bfloat16" in note for note in wished.problem.notes)
    with pytest.raises(InputError, match=r"search\.share: .* ties is not linear in its models"):
        setup_of("ties", True)
    assert "ties is not linear" in line(setup_of("ties"))
