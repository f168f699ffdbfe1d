"""Trees of Orbax: merged beside NumPy's sums, opened by Orbax, flax and optax again, searched, refused."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import yaml
from flax import nnx

from jevomerge.cli import main

WEIGHTS = (0.5, 0.3, -0.1)
QUERY = ("params", "decoder", "layers", "self_attention", "query", "kernel")  # as MaxText calls it


def training_state(seed, step):
    """Parameters as MaxText has them, its layers along the second axis, with an optimizer's state."""
    draw = np.random.default_rng(seed).standard_normal
    layers = {"self_attention": {"query": {"kernel": draw((8, 3, 2, 4), np.float32)}}}
    norm = draw(8, np.float32).astype(ml_dtypes.bfloat16)
    params = {"params": {"decoder": {"layers": layers, "norm": {"scale": norm}}}}
    return {"params": params, "opt_state": optax.adam(1e-3).init(params), "step": np.int32(step)}


def save(folder, tree):
    with ocp.StandardCheckpointer() as orbax:
        orbax.save(folder, tree)
    return folder


def restore(folder):
    with ocp.PyTreeCheckpointer() as orbax:
        return orbax.restore(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for i in range(3):
        save(folder / str(100 * i) / "items", training_state(i, 100 * i))
    return folder


def recipe(folder):
    models = [
        {"model": str(folder / str(100 * i) / "items"), "parameters": {"weight": w}} for i, w in enumerate(WEIGHTS)
    ]
    return {"merge_method": "linear", "models": models, "dtype": "float32", "parameters": {"normalize": False}}


def test_parameters_are_merged_and_the_rest_is_the_first_ones(folder, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(folder)))
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--debug"]) == 0
    assert "opt_state" in capsys.readouterr().out
    merged, states = restore(tmp_path / "out"), [training_state(i, 100 * i) for i in range(3)]
    for path in (QUERY, ("params", "decoder", "norm", "scale")):
        leaves = [state["params"] for state in (merged, *states)]
        for key in path:
            leaves = [leaf[key] for leaf in leaves]
        exact = sum(w * np.asarray(x, np.float64) for w, x in zip(WEIGHTS, leaves[1:], strict=True))
        assert leaves[0].dtype == np.float32
        np.testing.assert_allclose(leaves[0], exact, rtol=1e-6, atol=1e-6)
    assert int(merged["step"]) == 0
    opened = jax.tree.structure(states[0])  # optax' own state again
    with ocp.PyTreeCheckpointer() as orbax:
        assert jax.tree.structure(orbax.restore(tmp_path / "out", item=states[0])) == opened
    card = (tmp_path / "out" / "README.md").read_text()
    assert "ocp.PyTreeCheckpointer" in card
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["merge_method"] == "linear"


def test_a_module_of_nnx_computes_with_the_average(tmp_path):
    modules = [nnx.Linear(4, 3, rngs=nnx.Rngs(seed)) for seed in range(2)]
    for seed, module in enumerate(modules):
        save(tmp_path / f"m{seed}", nnx.state(module))
    models = [{"model": str(tmp_path / f"m{seed}"), "parameters": {"weight": 0.5}} for seed in range(2)]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "float32"}))
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--debug"]) == 0
    graph, like = nnx.split(modules[0])
    with ocp.StandardCheckpointer() as orbax:
        found = orbax.restore(tmp_path / "out", like)
    x = jnp.arange(8.0).reshape(2, 4)
    mean = sum(module(x) for module in modules) / 2
    np.testing.assert_allclose(nnx.merge(graph, found)(x), mean, rtol=1e-6, atol=1e-6)


def test_a_trajectory_is_searched(folder, tmp_path):
    (tmp_path / "nearness.py").write_text(
        "import jax.numpy as jnp\n\n\ndef near(model, params):\n"
        "    return -jnp.abs(params['params']['params']['decoder']['norm']['scale'].astype(jnp.float32) - 1)\n"
    )
    config = {
        "name": "trajectory",
        "recipe": recipe(folder),
        "genome": {"weight": {"range": [-1, 1]}},
        "refine": {"steps": 8, "objective": "fitness"},
        "search": {"evaluations": 24, "population": 8},
        "tasks": [{"name": "near", "score": {"function": "nearness:near", "of": "params", "bounds": [-10, 0]}}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["evolve", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run"), "--debug"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    best = restore(tmp_path / "run" / "best")["params"]["params"]["decoder"]["norm"]["scale"]
    assert result["best"]["search"] == pytest.approx(-np.abs(best - 1).mean(), abs=1e-5)
    assert result["best"]["search"] > max(source["search"] for source in result["sources"].values())


def refused(arguments, capsys):
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_what_is_no_tree_is_refused(folder, tmp_path, capsys):
    other = save(tmp_path / "other", {"params": {"params": {"decoder": {"norm": {"scale": np.ones(3, np.float32)}}}}})
    counts = save(tmp_path / "counts", {"step": np.int32(3)})
    whole = ocp.CheckpointManager(tmp_path / "manager")
    whole.save(3, args=ocp.args.Composite(items=ocp.args.StandardSave({"a": np.ones(2, np.float32)})))
    whole.wait_until_finished()

    def merged(model):
        models = [{"model": str(m), "parameters": {"weight": 1}} for m in (folder / "0" / "items", model)]
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
        return refused(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out")], capsys)

    assert "params.params.decoder.norm.scale" in merged(other)
    assert "no floating-point leaf" in merged(counts)
    assert "items; name the folder of one tree" in merged(tmp_path / "manager" / "3")
    damaged = save(tmp_path / "damaged", training_state(0, 0))
    (damaged / "_METADATA").write_text("{")
    assert "Orbax cannot read it" in merged(damaged)
    assert not (tmp_path / "out").exists()
