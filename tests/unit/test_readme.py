"""What the README says of merge methods and of evolution from Python: its table and its examples."""

import importlib.metadata
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jevomerge
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.methods import registry
from jevomerge.methods.registry import MERGEKIT, get_method, register

ROOT = Path(__file__).parents[2]
METHODS = (ROOT / "jevomerge" / "methods" / "README.md").read_text()
PYTHON = (ROOT / "experiments" / "guides" / "python.md").read_text()
MODELS = Path(__file__).parents[1] / "data" / "parity" / "models"


BROUGHT = (  # rows of the README's table: a file of results, where its rows are, and their names by column
    ("japanese_math_mini/results", ("japanese_math",), ("addition", "TIES (density 0.5)", "task arithmetic, random",
     "evolved, 3 genes", "evolved, 42 genes", None, "fine-tuned mathematics, other sums")),
    ("sparse_experts/results", ("runs",), ("mathematics", "task arithmetic (weight 0.4)", "task arithmetic, random",
     "evolved, 3 genes", "evolved, 42 genes", "gradient, 42 genes", None)),
    ("japanese_vqa_mini/results", ("Japanese",), ("graft", "task arithmetic (weight 0.7)", "task arithmetic, random",
     "evolved, 2 genes", "evolved, 22 genes", None, "fine-tuned graft")),
    ("japanese_diffusion_mini/results", ("Japanese, four steps",), ("fast", "task vectors added, no style",
     "3 genes, random", "evolved, 3 genes", "evolved, blocks", None, "ja, distilled")),
    ("japanese_diffusion_mini/results_outlines", ("Japanese, four steps",), ("fast", "task vectors added (1, 1, 1)",
     "3 genes, random", "evolved, 3 genes", "evolved, blocks", None, "average, fine-tuned")),
    ("trajectories/results", ("cells", "constant"), ("last checkpoint", "average of the last k", None,
     "searched, a weight per checkpoint", "searched, a weight per checkpoint and layer",
     "gradient, a weight per checkpoint", None)),
    ("japanese_math_gemma/fresh", (), ("japanese", "task arithmetic (weight 1)", "task arithmetic, random",
     "evolved, 2 genes", "evolved, by thirds", "gradient, by layer", "fine-tuned japanese")),
    ("japanese_math_gemma/trajectory", ("cells",), ("constant: last checkpoint", "constant: average of all", None,
     "constant: searched, a weight per checkpoint", None, "constant: gradient, a weight per checkpoint and layer",
     None)),
)  # fmt: skip


def test_what_it_brings_is_what_the_experiments_hold():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## What it brings")[1].split("\n## ")[0]
    table = [line.split("|")[2:-1] for line in re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:]]
    assert len(table) == len(BROUGHT)
    for cells, (file, where, names) in zip(table, BROUGHT, strict=True):
        rows = json.loads((ROOT / "experiments" / f"{file}.json").read_text())
        for key in where:
            rows = rows[key]
        for cell, name in zip(cells, names, strict=True):
            if name:
                solved = np.mean([[int(bit) for bit in seed["bits"]] for seed in rows[name].values()])
                assert re.search(r"[\d.]+", cell)[0] == f"{100 * solved:.1f}", (file, name)
            else:  # of which there is none, or it is of another experiment, which is linked
                assert not cell.strip() or "](" in cell, (file, cell)
    refined = json.loads((ROOT / "experiments/refine/results.json").read_text())["0.5, likelihood"]
    heldout = np.mean([steps["25"]["heldout"] for steps in refined.values()])
    assert table[0][5].strip() == f"[**{100 * heldout:.1f}**](experiments/refine)"


def test_the_table_of_methods():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| .*? \| (.*?) \| (.*?) \| (.*?) \| ", METHODS, re.MULTILINE)
    assert [name for name, *_ in rows] == list(MERGEKIT)
    for name, parameters, gradients, random in rows:
        method = MERGEKIT[name]
        defaults = {
            p.name: "" if p.default is None else ("off", "on")[int(p.default)] if p.kind == "bool" else f"{p.default:g}"
            for p in method.parameters
        }
        assert parameters == ", ".join(f"{p} ({default})" if default else p for p, default in defaults.items())
        smooth = [p.name for p in method.parameters if p.kind == "float" and p.differentiable]
        assert gradients == ", ".join(smooth)
        assert (random == "yes") == method.stochastic == draws_numbers(method), name


def draws_numbers(method):
    """Whether the keys of the random field make a difference."""
    rng = np.random.default_rng(0)
    base, *xs = (jnp.asarray(rng.normal(size=(16, 16)), jnp.float32) for _ in range(3))
    xs = xs[: method.num_sources[1] or 2]
    coefficients = {
        p.name: jnp.full((len(xs),) if p.per_model else (), {"density": 0.5}.get(p.name, p.default or 0.3), jnp.float32)
        for p in method.parameters
    }
    origin = base if method.base == "required" else None
    merge = jax.jit(lambda keys: method.merge(xs, origin, coefficients, method.prepare(xs, origin), keys))
    one, other = (merge(jnp.full((len(xs), 2), key, jnp.uint32)) for key in (1, 2))
    return not np.array_equal(one, other)


@pytest.fixture
def example(monkeypatch):
    """The README's method, by the README's code."""
    monkeypatch.setattr(registry, "_registered", {})
    code = re.search(r"```python\n(import jax.numpy as jnp\nimport jevomerge.*?)```", METHODS, re.DOTALL)[1]
    names = {}
    exec(code, names)
    return names["MEDIAN"]


def test_your_own_method_merges_by_its_name(example, tmp_path):
    recipe = {
        "merge_method": "median",
        "base_model": str(MODELS / "base"),
        "models": [{"model": str(MODELS / m)} for m in "abc"],
        "parameters": {"lambda": [0.5, 1.5]},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    assert main(["merge", str(tmp_path / "recipe.yml"), str(tmp_path / "out"), "--debug"]) == 0
    found, base = (load_file(p / "model.safetensors") for p in (tmp_path / "out", MODELS / "base"))
    sources = [load_file(MODELS / m / "model.safetensors") for m in "abc"]
    for layer, factor in enumerate((0.5, 5 / 6, 7 / 6, 1.5)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        expected = base[name] + factor * np.median([s[name] - base[name] for s in sources], axis=0)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_your_own_method_is_pure(example):
    xs = [jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(3, 4, 6))]
    base = jnp.ones((4, 6))
    merge = jax.jit(jax.vmap(lambda c: get_method("median").merge(xs, base, {"lambda": c}, (), ())))
    found = np.asarray(merge(jnp.asarray([0.0, 1.0])))
    np.testing.assert_array_equal(found[0], np.ones((4, 6)))
    np.testing.assert_allclose(found[1], np.median(np.stack(xs), axis=0), atol=1e-6)


def test_entry_points_make_methods_known(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    entry = importlib.metadata.EntryPoint("mean", "jevomerge.methods.linear:LINEAR", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group, name: [e for e in [entry] if e.name == name])
    assert get_method("mean") is MERGEKIT["linear"]
    with pytest.raises(InputError, match="is not known"):
        get_method("meen")


def test_names_are_taken_once(example):
    with pytest.raises(ValueError, match="there is a merge method 'median' already"):
        register(example._replace(num_sources=(1, None)))
    assert register(example) is example


def test_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PYTHON, re.DOTALL)[1]
    rng = np.random.default_rng(0)
    base, a, b = ({"w": rng.normal(size=(4, 3)).astype(np.float32)} for _ in range(3))
    images = rng.normal(size=(50, 4)).astype(np.float32)
    labels = np.argmax(images @ (a["w"] + b["w"] - base["w"]), axis=1)
    names = {
        "jm": jevomerge, "jax": jax, "base": base, "a": a, "b": b,
        "weights": np.array([[0.2, 0.8], [1, 3]], np.float32),
        "apply": lambda params, x: x @ params["w"], "images": images, "labels": labels,
        "accuracy": lambda logits, labels: jnp.argmax(logits, axis=1) == labels,
    }  # fmt: skip
    lines = code.splitlines()
    one, several = (eval(line.split("#")[0], names) for line in lines[:2])
    np.testing.assert_allclose(several["w"][1], (a["w"] + 3 * b["w"]) / 4, atol=1e-6)
    assert jax.tree.structure(one) == jax.tree.structure(base)
    exec("\n".join(lines[2:]), names)
    result = names["result"]
    assert set(result.genome) == {"w/a/weight", "w/b/weight"}
    assert result.scores["best"]["search"] == np.mean(np.argmax(images @ result.params["w"], axis=1) == labels) > 0.9
    assert result.archive.fitness.shape == (300,)
    assert result.folder.parent.name == "runs"
