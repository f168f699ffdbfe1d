"""What every kind of problem says of itself, beside what it does: the plan, the stages and the refusals rest on it."""

import jax.numpy as jnp
import numpy as np
import pytest

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import RunConfig
from jevomerge.errors import InputError
from jevomerge.models.specs import flatten
from jevomerge.search.setup import problem_of, set_up
from tests.unit.devices.test_mesh import KINDS, MODELS, mesh_of, task


def config_of(kind, **more):
    return RunConfig.model_validate({"name": kind, "tasks": [task("likelihood")], **KINDS[kind], **more})


@pytest.fixture(params=["ties", "path", "both"])
def kind(request):
    return request.param


@pytest.mark.parametrize("scaling", ["none", "per_hop"])
def test_what_is_exported_is_known_before(kind, scaling, tmp_path):
    """Depth, architecture and dtype of the folder that is written."""
    config = config_of(kind)
    if config.path is not None:
        path = config.path.model_copy(update={"scaling": scaling, "repeats": 2})
        config = config.model_copy(update={"path": path})
    problem = problem_of(config)
    genome = np.clip(np.random.default_rng(1).normal(problem.mean, 0.2, len(problem.names)), 0, 1)
    hops = problem.load(mesh_of(1, 1), abstract=True).hops(genome[None])
    architecture, dtype = problem.exported(None if hops is None else int(hops[0]))
    problem.export(genome, tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    assert written.model == architecture
    assert written.dtype() == dtype
    assert written.model.max_length == problem.model.max_length


def test_hollow_is_the_merge_without_its_weights(kind, tmp_path):
    problem = problem_of(config_of(kind))
    assert problem.hollow(tmp_path / "hollow") == (kind == "ties") == (tmp_path / "hollow").exists()
    if kind == "ties":
        hollow = Checkpoint(tmp_path / "hollow")
        assert (hollow.model, hollow.dtype()) == problem.exported()
        assert {p.name for p in hollow.beside()} == {p.name for p in problem.sources.like.beside()}


def test_baselines_are_the_sources_and_what_they_average(kind):
    problem, mesh = problem_of(config_of(kind)), mesh_of(1, 1)
    found = {name: (config, load(mesh)) for name, config, load in problem.baselines(problem.load(mesh))}
    merged = ["japanese", "mathematics"]
    assert list(found) == {"ties": [None, *merged], "path": merged[::-1], "both": [None, *merged, "addition"]}[kind]
    for name, (config, params) in found.items():
        if name is None:
            own, other = (flatten(found[m][1]) for m in merged)
            for path, leaf in flatten(params).items():
                mean = (own[path].astype(jnp.float32) + other[path].astype(jnp.float32)) / 2
                np.testing.assert_allclose(np.asarray(leaf), mean, rtol=1e-6, atol=1e-7)
        else:
            checkpoint = Checkpoint(MODELS[name])
            assert config == checkpoint.model
            for path, leaf in flatten(checkpoint.load(mesh)).items():
                np.testing.assert_array_equal(flatten(params)[path], leaf)


def test_a_model_that_is_merged_and_in_the_path_is_scored_once():
    path = {"models": [MODELS["addition"], MODELS["japanese"]], "repeats": 1}
    problem, mesh = problem_of(config_of("both", path=path)), mesh_of(1, 1)
    names = [name for name, *_ in problem.baselines(problem.load(mesh, abstract=True))]
    assert names == [None, "japanese", "mathematics", "addition"]


def test_there_is_no_gradient_through_a_path(kind):
    problem = problem_of(config_of(kind))
    assert problem.gradient.shape == (len(problem.names),)
    if kind == "ties":
        assert problem.gradient.all()
        return
    assert not problem.gradient.any()
    with pytest.raises(InputError, match="refine: there is no gradient through a path"):
        set_up(config_of(kind, refine={}))


@pytest.mark.slow
def test_weights_for_a_gradient_are_not_rounded():
    recipe = KINDS["ties"]["recipe"] | {"dtype": "bfloat16"}
    problem = problem_of(config_of("ties", recipe=recipe))
    candidates, genome = problem.load(mesh_of(1, 1)), jnp.full(len(problem.names), 0.3)
    rounded, exact = (flatten(c.make(genome)) for c in (candidates, candidates.unrounded()))
    assert {x.dtype for x in rounded.values()} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in exact.values()} == {jnp.dtype("float32")}
    for path, leaf in exact.items():
        np.testing.assert_array_equal(leaf.astype(jnp.bfloat16), rounded[path])
