"""Functions of parameters: our own likelihood written by hand gives our own numbers, on every mesh and path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import RunConfig
from jevomerge.errors import FitnessError
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.members import run_members
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.schema import FunctionTask, Task
from jevomerge.problems.problem import Whole
from jevomerge.search.setup import problem_of
from tests.unit.devices.test_mesh import KINDS, mesh_of, task


def by_hand(model, params, batch):
    """The mean log-probability of the answers' tokens, as a user may write it."""
    hidden, _ = jm.apply(params, model, batch.tokens[:, :-1], batch.valid[:, :-1])
    logits = jax.nn.log_softmax(jm.unembed(params, model, hidden))
    chosen = jnp.take_along_axis(logits, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    place = jnp.arange(1, batch.tokens.shape[1], dtype=jnp.int32)[None, :]
    counted = place >= batch.tokens.shape[1] - batch.answer_length[:, None]
    total = jnp.sum(jnp.where(counted, chosen, 0.0), axis=1)
    return total / jnp.maximum(batch.answer_length, 1).astype(jnp.float32)


def of_a_copy(model, params, batch):
    """The same of parameters that are others to Python, for which all blocks have been merged."""
    return by_hand(model, jax.tree.map(lambda x: x, params), batch)


def with_a_cache(model, params, batch):
    """How sure the model is of the last token, by a pass that keeps keys and values."""
    rows, length = batch.tokens.shape
    cache = model.cache(rows, length, jnp.float32)
    hidden, cache = jm.apply(params, model, batch.tokens[:, :-1], batch.valid[:, :-1], cache)
    logits = jax.nn.log_softmax(jm.unembed(params, model, hidden[:, -1]))
    hidden, _ = jm.apply(params, model, batch.tokens[:, -1:], batch.valid[:, -1:], cache)  # one more, for the cache
    return jnp.take_along_axis(logits, batch.tokens[:, -1:], axis=-1)[:, 0] + 0.0 * hidden[:, 0, 0]


def without_a_cache(model, params, batch):
    """The same by one pass."""
    hidden, _ = jm.apply(params, model, batch.tokens[:, :-1], batch.valid[:, :-1])
    logits = jax.nn.log_softmax(jm.unembed(params, model, hidden[:, -1]))
    return jnp.take_along_axis(logits, batch.tokens[:, -1:], axis=-1)[:, 0]


def with_function(name, function):
    data = task("likelihood").model_dump(exclude={"score"})
    return Task.model_validate({**data, "name": name, "score": {"function": function, "of": "params"}})


@functools.cache
def all_scores(kind, shape, members_per_device=1):
    """{function: (5, n) scores of genomes}, and of ours."""
    functions = (by_hand, of_a_copy, with_a_cache, without_a_cache)
    tasks = [task("likelihood"), *(with_function(f.__name__, f) for f in functions)]
    problem = problem_of(RunConfig.model_validate({"name": kind, "tasks": tasks, **KINDS[kind]}))
    mesh = mesh_of(*shape)
    ready = make_ready(tasks, problem.tokenizer(), problem.model)
    judge = make_judge(ready, problem.model, mesh=mesh, members_per_device=members_per_device)
    rng = np.random.default_rng(0)
    genomes = np.clip(rng.normal(problem.mean, 0.1, (5, len(problem.names))), 0, 1)
    found = [s for group in judge.members(problem.load(mesh), genomes) for s in group]
    assert all(s.tokens.answer % len(tasks) == 0 for s in found)  # all count the same tokens
    return {t.name: np.stack([s.fitness[t.name] for s in found]) for t in tasks}


@pytest.mark.parametrize(
    ("kind", "shape", "members"),
    [
        ("task_arithmetic", (2, 2), 2),
        pytest.param("path", (2, 1), 1, marks=pytest.mark.slow),
        pytest.param("both", (1, 2), 1, marks=pytest.mark.slow),
    ],
)
def test_likelihood_by_hand_is_ours(kind, shape, members):
    found = all_scores(kind, shape, members)
    assert np.ptp(found["likelihood"].mean(axis=1)) > 0.01  # members differ
    for name in ("by_hand", "of_a_copy"):
        np.testing.assert_allclose(found[name], found["likelihood"], atol=2e-5)
    np.testing.assert_allclose(found["with_a_cache"], found["without_a_cache"], atol=2e-5)


def judge_of(function, folder, **options):
    model = Checkpoint(folder).model
    given = FunctionTask.model_validate({"name": "own", "score": {"function": function, "of": "params"}})
    return make_judge(make_ready([given], None, model), model, **options)


def means(model, params):
    """The mean of each leaf."""
    return jnp.stack([jnp.mean(x) for x in jax.tree.leaves(params)])


def test_without_a_batch_each_score_is_a_document_of_its_own(stories260k):
    judge, params = judge_of(means, stories260k), Checkpoint(stories260k).load()
    expected = np.array([np.mean(np.asarray(x, np.float64)) for x in jax.tree.leaves(params)])
    scores = judge.model(params, "search")
    np.testing.assert_allclose(scores.fitness["own"], expected, atol=1e-6)
    assert scores.tokens == (0, 0)
    assert judge.fitness(scores) == (pytest.approx(expected.mean(), abs=1e-6), 0.0)
    ((few,),) = judge.members(Whole(params), np.zeros((1, 0)), {"own": np.array([2, 5])})
    np.testing.assert_array_equal(few.fitness["own"], scores.fitness["own"][[2, 5]])


def test_one_number_is_one_score(stories260k):
    judge = judge_of(lambda model, params: 3 * model.vocab_size, stories260k)
    assert judge.model(Checkpoint(stories260k).load(), "heldout").fitness["own"].tolist() == [3 * 512]


def test_a_function_is_compiled_once(stories260k):
    """For every judge of it, model and split."""
    params = Checkpoint(stories260k).load()
    run_members.clear_cache()
    for factor in (1.0, 2.0):
        for split in ("search", "heldout"):
            judge_of(means, stories260k).model(jax.tree.map(lambda x, f=factor: x * np.float32(f), params), split)
    assert run_members._cache_size() == 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda model, params: 1 / 0, "task own: .*<lambda>: ZeroDivisionError: division by zero"),
        (lambda model, params: "good", "gave str, not an array of scores"),
        (lambda model, params: {"a": 1.0}, "gave dict, not an array of scores"),
        (lambda model, params: jnp.ones((2, 3)), r"gave float32\[2, 3\], not a score or \(N,\) of them"),
        (lambda model, params: float(params["norm"]["weight"][0]), "<lambda>: ConcretizationTypeError"),
    ],
)
def test_what_goes_wrong_is_known_before_weights_are_read(function, said, stories260k):
    with pytest.raises(FitnessError, match=said):
        judge_of(function, stories260k)


def test_a_batch_has_a_score_for_each_row(stories260k):
    model, tokenizer = (
        Checkpoint(stories260k).model,
        problem_of(
            RunConfig.model_validate({"name": "t", "tasks": [task("likelihood")], **KINDS["task_arithmetic"]})
        ).tokenizer(),
    )
    ready = make_ready([with_function("own", lambda model, params, batch: jnp.zeros(3))], tokenizer, model)
    [rollout] = [r.rollout for r in ready]
    layout = rollout.layouts(ready[0].material("search").examples, [], 4096)[0]
    batch = rollout.batch(model, [], layout)
    with pytest.raises(FitnessError, match="gave 3 scores, not one for each of a batch's rows"):
        rollout.run(model, Whole(Checkpoint(stories260k).load()).model(None, None), batch, layout, dtype="float32")
