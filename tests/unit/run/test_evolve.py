"""Evolution from Python: trees in memory, functions as fitness, the outcome as an object."""

import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jevomerge as jm
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
BASE = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
TREES = {"base": BASE, "w": BASE | {"w": np.ones((3, 2), np.float32)}, "b": BASE | {"b": np.ones(2, np.float32)}}
BEST = {"w": 0.3, "b": 0.7}  # weights of the two task vectors
TARGET = X @ np.full((3, 2), BEST["w"], np.float32) + BEST["b"]


def apply(params, x):
    return x @ params["w"] + params["b"][None]


def likeness(model, params):
    return -jnp.sum((model.apply(params, X) - TARGET) ** 2, axis=1)


def evolve(folder, **options):
    given = {
        "models": TREES,
        "model": jm.own_model(apply, BASE),
        "recipe": {"merge_method": "task_arithmetic", "base_model": "base"},
        "genome": {"weight": [0, 1]},
        "fitness": likeness,
        "search": {"evaluations": 60, "population": 6},
        "observer": SILENT,
        "output": folder / "run",
    }
    return jm.evolve(**(given | options))


def test_trees_in_memory_are_evolved(tmp_path):
    result = evolve(tmp_path)
    for name, weight in BEST.items():
        assert result.genome[f"model/{name}/weight"] == pytest.approx(weight, abs=0.02)
    np.testing.assert_allclose(result.params["w"], BEST["w"], atol=0.02)
    np.testing.assert_allclose(result.params["b"], BEST["b"], atol=0.02)
    archive = result.archive
    assert archive.genome.shape == (60, 2)
    assert [scores.shape for scores in archive.scores["fitness"]] == [(40,)] * 60
    np.testing.assert_allclose(archive.fitness, [np.mean(s) for s in archive.scores["fitness"]], atol=1e-6)
    best = -float(np.mean(np.sum((np.asarray(apply(result.params, X)) - TARGET) ** 2, axis=1)))
    assert result.scores["best"]["search"] == pytest.approx(best, rel=1e-4)
    assert max(result.scores[name]["search"] for name in ("w", "b")) < best
    written = load_file(result.folder / "best" / "model.safetensors")
    assert written.keys() == {"w", "b"}


def test_what_was_interrupted_goes_on_to_the_same_end(tmp_path):
    whole = evolve(tmp_path)
    begun = tmp_path / "begun"
    shutil.copytree(whole.folder, begun, ignore=shutil.ignore_patterns("result.json", "best", "checkpoints"))
    lines = (begun / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (begun / "evaluations.jsonl").write_bytes(b"".join(lines[:25]))
    resumed = evolve(tmp_path, output=begun, resume=True)
    assert resumed.genome == whole.genome
    np.testing.assert_array_equal(resumed.archive.genome, whole.archive.genome)
    other = TREES | {"w": BASE | {"w": np.full((3, 2), 2, np.float32)}}
    shutil.rmtree(begun / "best")
    (begun / "result.json").unlink()
    with pytest.raises(InputError, match="w: weights changed since"):
        evolve(tmp_path, output=begun, resume=True, models=other)


def test_an_nnx_module_by_tensor(tmp_path):
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    base = nnx.state(net, nnx.Param)
    other = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(1)), nnx.Param)
    result = evolve(
        tmp_path, models=[base, other], model=jm.own_model(net), recipe={"merge_method": "linear"},
        genome={"weight": {"range": [0, 1], "by": "tensor"}}, search={"evaluations": 12},
    )  # fmt: skip
    assert set(result.genome) == {f"{leaf}/{i}/weight" for leaf in ("bias", "kernel") for i in "01"}
    assert isinstance(result.params, nnx.State)
    weight = {leaf: [result.genome[f"{leaf}/{i}/weight"] for i in "01"] for leaf in ("bias", "kernel")}
    again = jm.merge("linear", [base, other], weight=weight)
    np.testing.assert_allclose(result.params["kernel"][...], again["kernel"][...], atol=1e-6)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", result.params)
        checkpointer.wait_until_finished()
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "orbax", base), result.params)


def test_the_gradient_of_the_fitness_is_followed(tmp_path):
    refine = {"objective": "fitness", "steps": 60, "learning_rate": 0.05}
    result = evolve(tmp_path, search={"evaluations": 0}, refine=refine)
    assert result.archive.fitness.shape == (2,)  # the start, and what is made of it
    for name, weight in BEST.items():
        assert result.genome[f"model/{name}/weight"] == pytest.approx(weight, abs=0.02)
    with pytest.raises(InputError, match="refine: not with functions of whole models such as fitness"):
        evolve(tmp_path / "other", refine={})


class Grid:
    """Asks for one line of points after another."""

    def __init__(self):
        self.asked = 0

    def ask(self):
        self.asked += 1
        return np.stack([np.linspace(0, 1, 5), np.full(5, (self.asked % 4) / 4)], axis=1)

    def tell(self, population, fitness):
        assert fitness.shape == (5,)


def test_a_strategy_of_ones_own(tmp_path):
    result = evolve(tmp_path, search={"strategy": Grid(), "evaluations": 20, "population": 5})
    np.testing.assert_allclose(result.archive.genome[:5, 0], np.linspace(0, 1, 5))
    assert json.loads((result.folder / "environment.json").read_text())["population"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "`models`, parameters in memory, and `model`"),
        ({"recipe": None, "genome": None}, "`models` are merged by a `recipe`"),
        ({"models": TREES | {"w": {"w": BASE["w"]}}}, "models: w: its tree is"),
        ({"models": TREES | {"w": BASE | {"w": np.ones((2, 2), np.float32)}}}, r"models: w: w has shape \[2, 2\]"),
        ({"recipe": {"merge_method": "ties", "base_model": "nothing"}}, "nothing is neither a folder nor"),
        ({"genome": {"wieght": [0, 1]}}, "no parameter `wieght`"),
        ({"fitness": None}, "tasks"),
        ({"genome": {"weight": {"range": [0, 1], "layers_per_group": 2}}}, "layers_per_group"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        evolve(tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_fitness_that_fails_says_where(tmp_path):
    def wrong(model, params):
        raise KeyError("no such leaf")

    with pytest.raises(Exception, match=r"task fitness: .*no such leaf"):
        evolve(tmp_path, fitness=wrong)
