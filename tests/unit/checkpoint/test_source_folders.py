"""Folders as they are found on disks: two models in one, shards elsewhere, quantised ones, sizes that cannot be."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.checkpoint.weights import INDEX
from jevomerge.errors import InputError
from tests.unit.checkpoint.test_source import edit_json, edit_weights

STORIES = Path(__file__).parents[2] / "data" / "stories260k"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(STORIES, tmp_path / "m")
    return tmp_path / "m"


def in_shards(folder, names=("one.safetensors", "two.safetensors")):
    """The model in two files, with an index, beside or instead of the single one."""
    weights = load_file(folder / "model.safetensors")
    parts = [dict(list(weights.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_a_single_file_is_read_before_an_index_as_transformers_does(model):
    in_shards(model)
    edit_weights(model, lambda w: w["model.norm.weight"].fill(7.0))
    theirs = AutoModelForCausalLM.from_pretrained(model).model.norm.weight.detach().numpy()
    checkpoint = Checkpoint(model)
    np.testing.assert_array_equal(checkpoint.tensor("model.norm.weight"), theirs)
    assert theirs[0] == 7.0
    (note,) = checkpoint.notes
    assert "index.json beside it is not" in note


def test_an_index_that_another_save_left_behind(model):
    in_shards(model)
    for shard in ("one", "two"):
        (model / f"{shard}.safetensors").unlink()
    Checkpoint(model).load()


def test_shards_in_folders_and_behind_links_but_not_outside(model):
    (model / "sub").mkdir()
    in_shards(model, ("one.safetensors", "sub/two.safetensors"))
    whole = Checkpoint(model).load()
    outside = model.parent / "two.safetensors"
    (model / "sub" / "two.safetensors").rename(outside)
    (model / "sub" / "two.safetensors").symlink_to(outside)  # as the hub's cache has them
    (model / "model.safetensors").unlink()
    jax.tree.map(np.testing.assert_array_equal, Checkpoint(model).load(), whole)
    index = (model / INDEX).read_text()
    for name in ("../two.safetensors", str(outside)):
        (model / INDEX).write_text(index.replace("sub/two.safetensors", name))
        with pytest.raises(InputError, match=r"two\.safetensors, which lies outside the folder"):
            Checkpoint(model)


@pytest.mark.parametrize("found", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}}])
def test_an_index_of_another_form(model, found):
    (model / "model.safetensors").unlink()
    (model / INDEX).write_text(json.dumps(found))
    with pytest.raises(InputError, match="`weight_map` must give each tensor's file"):
        Checkpoint(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(model, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(InputError, match=rf"{name} .*not a file"):
        Checkpoint(model)


@pytest.mark.parametrize("ending", ["qweight", "weight_scale_inv", "weight.absmax", "weight_packed"])
def test_tensors_of_quantised_models_are_told(model, ending):
    edit_weights(model, lambda w: w.update({f"model.layers.0.mlp.up_proj.{ending}": np.zeros(3, np.int32)}))
    with pytest.raises(InputError, match=f"{ending} belongs to a quantised model; .* name the original 16-bit model"):
        Checkpoint(model)


def test_a_header_longer_than_the_format_allows(model):
    with (model / "model.safetensors").open("r+b") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # a hole
    with pytest.raises(InputError, match="its header has 200000000 bytes"):
        Checkpoint(model)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"])
def test_absurd_sizes_are_compared_with_the_headers(model, key):
    for size in (10**9, 9_998):
        edit_json(model / "config.json", **{key: size})
        tracemalloc.start()
        with pytest.raises(InputError, match=r"must be a whole number|is missing|has shape"):
            Checkpoint(model)
        assert tracemalloc.get_traced_memory()[1] < 100e6
        tracemalloc.stop()
