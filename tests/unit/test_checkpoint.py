"""Broken or unsuitable checkpoints are refused with the file and the remedy; exports are whole or absent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint import Checkpoint, ExportFolder, export
from jevomerge.checkpoint.card import merged_licence, model_card
from jevomerge.checkpoint.export import tensors_of
from jevomerge.config import Recipe
from jevomerge.errors import InputError
from jevomerge.recipe import Sources
from tests.families import make

STORIES = Path(__file__).parents[1] / "data" / "stories260k"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(STORIES, tmp_path / "m")
    return tmp_path / "m"


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mamba"}, "model_type `mamba` is not supported"),
        ({"hidden_act": "relu"}, "`hidden_act: relu` is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type `dynamic` is not supported"),
        ({"sliding_window": 4096}, "`sliding_window: 4096` is not understood"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": ...}, "`hidden_size` is missing"),
        ({"intermediate_size": 100}, "has shape"),
        ({"num_hidden_layers": 6}, r"model\.layers\.5\..* is missing"),
        ({"num_hidden_layers": 4}, r"model\.layers\.4\..* is not expected"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
    ],
)
def test_config_and_weights_that_disagree(model, changes, expected):
    edit_json(model / "config.json", **changes)
    with pytest.raises(InputError, match=expected):
        Checkpoint(model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_is_found_and_named(model, dtype, value):
    def damage(weights):
        for name, array in weights.items():
            weights[name] = array.astype(dtype)
        weights["model.layers.2.mlp.up_proj.weight"][3, 4] = value

    edit_weights(model, damage)
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj\.weight contains NaN"):
        Checkpoint(model).load()


def test_large_finite_values_are_not_nan(model):
    edit_weights(model, lambda w: w["model.norm.weight"].fill(3e38))
    Checkpoint(model).load()


def test_truncated_file(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        Checkpoint(model)


def test_missing_shard(tmp_path):
    make("llama", tmp_path / "m", shard="20KB")
    shard = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"shard {shard.name} is missing"):
        Checkpoint(tmp_path / "m")


def test_pickle_is_refused_with_the_way_out(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match="safe_serialization=True"):
        Checkpoint(model)


def test_neither_folder_nor_hub_name():
    with pytest.raises(InputError, match="neither a folder nor a hub name"):
        Checkpoint("/no/such/folder")


def test_redundant_tied_head_must_equal_the_embeddings(model):
    edit_weights(model, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in Checkpoint(model).load()
    edit_weights(model, lambda w: w["lm_head.weight"].__setitem__((0, 0), 1.0))
    with pytest.raises(InputError, match=r"lm_head\.weight differs"):
        Checkpoint(model).load()


# --- sources against each other -----------------------------------------------------------------------------


def both(a, b):
    models = [{"model": str(m), "parameters": {"weight": 1}} for m in (a, b)]
    return Sources(Recipe.model_validate({"merge_method": "linear", "models": models}))


def test_different_tokenizers(model):
    other = model.parent / "other"
    shutil.copytree(model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        first, second = list(vocab)[300:302]
        vocab[first], vocab[second] = vocab[second], vocab[first]
    else:
        vocab[300], vocab[301] = vocab[301], vocab[300]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="tokenizers of"):
        both(model, other)


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (("llama", "smollm2"), "ties its head"),
        (("llama", "qwen2"), "only models of one shape"),
        (("mistral", "llama"), "kinds"),
    ],
)
def test_sources_that_cannot_be_merged(families, expected, tmp_path):
    for name in families:
        make(name, tmp_path / name)
    with pytest.raises(InputError, match=expected):
        both(*(tmp_path / name for name in families))


def test_same_name_twice(model):
    shutil.copytree(model, model.parent / "other" / "m")
    with pytest.raises(InputError, match="same name"):
        both(model, model.parent / "other" / "m")


# --- export -------------------------------------------------------------------------------------------------


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail():
        with ExportFolder(tmp_path / "out") as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        ExportFolder(tmp_path)


def test_a_disk_without_room_is_noticed_before_writing(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    checkpoint = Checkpoint(model)
    with pytest.raises(InputError, match="GB free"), ExportFolder(tmp_path / "out") as folder:
        export.write_model(folder, checkpoint, "float32", tensors_of(checkpoint.load()))
    assert not (tmp_path / "out").exists()


def test_large_models_are_sharded(model, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(export, "SHARD_BYTES", 300_000)
    checkpoint = Checkpoint(model)
    with ExportFolder(tmp_path / "out") as folder:
        export.write_model(folder, checkpoint, "float32", tensors_of(checkpoint.load()))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    original, sharded = (AutoModelForCausalLM.from_pretrained(f) for f in (model, tmp_path / "out"))
    for (name, a), b in zip(original.state_dict().items(), sharded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["apache-2.0", "mit"], "apache-2.0"),
        (["mit", "mit"], "mit"),
        (["apache-2.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["llama3", "apache-2.0"], "llama3"),
        (["llama3", "gemma"], "other"),
        (["apache-2.0", None], "other"),
        (["apache-2.0", "my-own"], "other"),
    ],
)
def test_the_most_restrictive_licence_wins(licences, expected):
    assert merged_licence(licences) == expected


def test_card_is_readable_front_matter(model):
    from huggingface_hub import ModelCard

    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    card = ModelCard(model_card("two", "a: 1", [Checkpoint(model)], {"x": {"search": 0.5, "heldout": 0.25}}))
    assert card.data.license == "mit"
    assert "merge" in card.data.tags
    assert "| x | 0.5000 | 0.2500 |" in card.text
