"""The public names: all there, typed, not hidden by a module; the commands as functions."""

import ast
import importlib
import json
import pkgutil
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jevomerge as jm
from jevomerge.cli import main

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "tests" / "data" / "parity"
MODULES = [m.name for m in pkgutil.walk_packages(jm.__path__, "jevomerge.") if m.name != "jevomerge.__main__"]


def test_no_module_hides_a_public_name():
    """Whatever is imported, and however often a name is used, it is the function or class itself."""
    assert len(MODULES) > 80
    for name in MODULES:
        importlib.import_module(name)
    first, second = ([getattr(jm, name) for name in jm.__all__] for _ in range(2))
    for name, one, other in zip(jm.__all__, first, second, strict=True):
        assert one is other, name
        assert not isinstance(one, ModuleType), name


def test_dir_lists_the_public_names():
    assert dir(jm) == sorted(jm.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        jm.nothing


def test_type_checkers_see_the_same_names():
    stub = ast.parse((ROOT / "jevomerge" / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name, alias.asname) for node in imports for alias in node.names}
    assert seen == {(module, name, name) for module, names in jm._HOME.items() for name in names}
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["jevomerge"]
    assert all((ROOT / "jevomerge" / name).is_file() for name in data)
    assert {"py.typed", "__init__.pyi"} <= set(data)


def test_the_docstring_example(tmp_path):
    text = (PARITY / "recipes" / "ties.yml").read_text().replace("MODELS", str(PARITY / "models"))
    (tmp_path / "recipe.yaml").write_text(text)
    sources = jm.Sources(jm.read_recipe(tmp_path / "recipe.yaml"))
    merge = jm.Merge(sources.method, sources.dtype)
    bank = jm.make_bank(merge, sources.specs, *sources.load(), sources.keys())
    params = jax.jit(jm.build, static_argnums=0)(merge, bank, sources.coefficients)
    expected = load_file(PARITY / "expected" / "ties.safetensors")["model.layers.2.mlp.up_proj.weight"]
    np.testing.assert_allclose(params["layers"]["mlp"]["up_proj"]["weight"][2], expected, atol=1e-5)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    hidden, _ = jm.apply(params, sources.model, tokens, jnp.ones((1, 8), bool))
    assert jm.unembed(params, sources.model, hidden).shape == (1, 8, 96)


# --- commands as functions ----------------------------------------------------------------------------------


def test_merging_and_explaining_a_mapping(tmp_path, monkeypatch, capsys):
    """As the command does it with the file; paths are relative to where one stands."""
    recipe = {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": m} for m in "ab"],
        "parameters": {"t": 0.3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(PARITY / "models")
    assert main(["merge", str(tmp_path / "recipe.yaml"), "--explain"]) == 0
    assert jm.explain(recipe) == capsys.readouterr().out.splitlines()
    assert main(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "command")]) == 0
    assert "merged 39/39 tensors" in capsys.readouterr().out
    for given, out in ((recipe, "mapping"), (jm.read_recipe(recipe), "read"), (tmp_path / "recipe.yaml", "file")):
        assert jm.merge_folder(given, tmp_path / out) == tmp_path / out
        written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("command", out)]
        assert written[0] == written[1]
    assert capsys.readouterr().out == ""  # a function prints nothing of its own accord
    with pytest.raises(jm.InputError, match="exists already"):
        jm.merge_folder(recipe, tmp_path / "file")


def test_merging_several_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(PARITY / "models")
    first = {"name": "inner", "merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    first |= {"parameters": {"weight": 1}, "dtype": "float32"}
    jm.merge_folder([first, first | {"name": "outer", "models": [{"model": "inner"}]}], tmp_path / "out")
    jm.merge_folder(first, tmp_path / "alone")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "out"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_evaluating(siblings, tmp_path, capsys):
    out = tmp_path / "scores.json"
    result = jm.evaluate(siblings / "base", siblings / "task.yaml", json=out)
    assert json.loads(out.read_text()) == result
    assert result.keys() == {"model", "split", "results", "examples", "texts"}
    assert (result["model"], result["split"]) == (str(siblings / "base"), "heldout")
    (score,) = result["results"]["stories"].values()
    assert len(result["examples"]["stories"]) == 8
    np.testing.assert_allclose(score, np.mean(result["examples"]["stories"]), rtol=1e-6)
    assert capsys.readouterr().out == ""
    assert main(["evaluate", str(siblings / "base"), "--task", str(siblings / "task.yaml")]) == 0
    assert capsys.readouterr().out == f"stories (heldout, 8 examples, likelihood): {score:.4f}\n"
    with pytest.raises(jm.InputError, match="exists already"):
        jm.evaluate(siblings / "base", siblings / "task.yaml", json=out)
