"""Adapters that are extracted from models: close to the best of their rank, the models themselves at full rank."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import jevomerge as jm
from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.genome.schema import Gene
from jevomerge.observers.observer import SILENT
from jevomerge.planning.sharing import settled_sharing
from jevomerge.problems.weights import WeightProblem
from jevomerge.recipe.extract import Extraction
from jevomerge.recipe.schema import Recipe
from jevomerge.search.archive import read_archive
from jevomerge.search.setup import set_up
from tests.unit.devices.test_mesh import KINDS, MODELS, mesh_of, task
from tests.unit.problems.test_together import PARITY, agree

GIVEN = {"name": "run", "tasks": [task("likelihood")], **KINDS["task_arithmetic"]}


@functools.cache
def task_vectors():
    """Those of a trained model's MLPs."""
    trees = [jm.Checkpoint(MODELS[name]).load()["layers"]["mlp"] for name in ("mathematics", "base")]
    one, other = ([np.asarray(x[0], np.float32) for x in jax.tree.leaves(tree)] for tree in trees)
    return [x - y for x, y in zip(one, other, strict=True)]


def test_a_rank_is_nearly_the_best_of_it():
    found, best, size = Extraction(8), 0.0, 0.0
    for delta in task_vectors():
        a, b = found.factors(delta, 0)
        assert (a.shape, b.shape) == ((8, delta.shape[1]), (delta.shape[0], 8))
        error = np.linalg.norm(delta.astype(np.float64) - b.astype(np.float64) @ a) ** 2
        left = np.linalg.svd(delta.astype(np.float64), compute_uv=False)[8:]
        assert error < 1.02 * np.sum(left**2)
        best, size = best + error, size + np.linalg.norm(delta) ** 2
    assert (found.lost, found.size) == (pytest.approx(best, rel=1e-3), pytest.approx(size, rel=1e-5))
    assert str(found) == f"{100 * np.sqrt(best / size):.2g} %"


def test_what_is_of_low_rank_is_left_as_it_is():
    rng = np.random.default_rng(0)
    delta = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30))).astype(np.float32)
    a, b = Extraction(4).factors(delta, 1)
    np.testing.assert_allclose(b @ a, delta, atol=2e-5)
    assert Extraction(99).factors(delta, 1)[0].shape == (30, 30)
    assert str(Extraction(2)) == "nothing"


def problem_of(extract):
    models = [{"model": str(PARITY / m)} for m in "abc"]
    recipe = {"merge_method": "task_arithmetic", "models": models, "base_model": str(PARITY / "base")}
    recipe = Recipe.model_validate(recipe | {"dtype": "float32"})
    return WeightProblem(recipe, {"weight": Gene(layers_per_group=2)}, extract=extract)


def test_of_full_rank_candidates_score_and_write_as_merged():
    agree(problem_of(None), together=problem_of(1 << 10).load(together=True))


def test_shapes_are_known_without_weights():
    problem = set_up(RunConfig.model_validate({**GIVEN, "extract": {"rank": 4}})).problem
    found = [problem.load(mesh_of(2, 1), together=True, abstract=abstract) for abstract in (False, True)]
    for x, y in zip(*(jax.tree.leaves(c.held()) for c in found), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)


def test_a_run_searches_adapters_and_exports_the_models(tmp_path):
    """Sources, finalists and the result have the scores of their weights; only candidates have not."""
    search = {"evaluations": 4, "population": 4, "finalists": 2}
    results, records = {}, {}
    for name, more in {"run": {"extract": {"rank": 120}}, "plain": {}}.items():
        jm.evolve({**GIVEN, "search": search, **more}, output=tmp_path / name, observer=SILENT)
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
        records[name] = read_archive(tmp_path / name / "evaluations.jsonl")
    run, plain = results["run"], results["plain"]
    [note] = [n for n in run["notes"] if n.startswith("extract:")]
    assert "rank 120, which leave out" in note
    assert run["tokens"]["finalists"]["prompt"] > 0
    for name, scores in {"average": plain["average"], **plain["sources"]}.items():
        found = run["average"] if name == "average" else run["sources"][name]
        assert found["search"] == pytest.approx(scores["search"], abs=1e-6)
    gaps = [abs(x["fitness"] - y["fitness"]) for x, y in zip(records["run"], records["plain"], strict=True)]
    assert 1e-5 < max(gaps) < 0.2
    best = run["best"]
    exact, number = best.get("candidate", best["search"]), best["evaluation"]
    assert exact == pytest.approx(records["plain"][number]["fitness"], abs=1e-5)
    assert abs(exact - records["run"][number]["fitness"]) > 4e-5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (KINDS["ties"], "extract: it is for linear methods, .* ties is none; leave it out"),
        ({"memory": "int8"}, "`extract`: adapters are shared and on the devices"),
        ({"search": {"share": False}}, "`extract`: adapters are shared and on the devices"),
        ({"refine": {"steps": 1}}, "`extract`: it is for a `recipe` alone"),
        (KINDS["path"] | {"recipe": None, "genome": {}}, "`extract`: it is for a `recipe` alone"),
    ],
)
def test_what_cannot_be_is_refused(changes, why):
    with pytest.raises((InputError, ValueError), match=why):
        settled_sharing(set_up(RunConfig.model_validate({**GIVEN, "extract": {"rank": 4}, **changes})))


def test_adapters_that_could_not_be_shared_are_refused():
    setup = set_up(RunConfig.model_validate({**GIVEN, "extract": {"rank": 4}}))
    with pytest.raises(InputError, match="extract: candidates cannot share what they read: the models are not all on"):
        settled_sharing(dataclasses.replace(setup, memory="host"))
