"""The public names, and the example in the package's docstring."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import jevomerge as jm

PARITY = Path(__file__).parents[1] / "data" / "parity"


def test_every_public_name_exists():
    for name in jm.__all__:
        assert getattr(jm, name) is not None


def test_the_docstring_example(tmp_path):
    text = (PARITY / "recipes" / "ties.yml").read_text().replace("MODELS", str(PARITY / "models"))
    (tmp_path / "recipe.yaml").write_text(text)
    sources = jm.Sources(jm.read_recipe(tmp_path / "recipe.yaml"))
    merge = jm.Merge(sources.method, sources.dtype)
    bank = jm.make_bank(merge, sources.specs, *sources.load(), sources.keys())
    params = jax.jit(jm.build, static_argnums=0)(merge, bank, sources.numbers)
    expected = load_file(PARITY / "expected" / "ties.safetensors")["model.layers.2.mlp.up_proj.weight"]
    np.testing.assert_allclose(params["layers"]["mlp"]["up_proj"]["weight"][2], expected, atol=1e-5)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    hidden, _ = jm.apply(params, sources.config, tokens, jnp.ones((1, 8), bool))
    assert jm.unembed(params, sources.config, hidden).shape == (1, 8, 96)


def test_help_does_not_import_jax():
    code = "import sys; from jevomerge.cli import parser; parser().format_help(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
