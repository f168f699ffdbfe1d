"""Pipelines as they are found on disks: variants, shards, parts alone, files of other things."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint.pipeline import open_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from tests.pipelines import UNET, write_siblings


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    return write_siblings(tmp_path_factory.mktemp("found"), ("model",)) / "model"


@pytest.fixture
def model(sibling, tmp_path):
    return shutil.copytree(sibling, tmp_path / "model")


def single(path, *names, dtype=np.float16, **more):
    save_file({name: np.zeros((2, 2), dtype) for name in names} | more, path)
    return path


def test_a_variant_is_read_where_there_is_one_and_else_the_only_file(model):
    weights = load_file(model / UNET)
    half = {k: x.astype(np.float16) for k, x in weights.items()}
    save_file(half, model / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    name = "unet.conv_in.weight"
    assert (open_model(model).dtype(), open_model(model, variant="fp16").dtype()) == ("float32", "float16")
    np.testing.assert_array_equal(open_model(model, variant="fp16").tensor(name), half["conv_in.weight"])
    (model / UNET).unlink()
    assert open_model(model).dtype() == "float16"


def test_shards_of_a_variant(model):
    weights, index = load_file(model / UNET), {}
    (model / UNET).unlink()
    for i in range(2):
        part = {k: x.astype(np.float16) for k, x in list(weights.items())[i::2]}
        file = f"diffusion_pytorch_model.fp16-0000{i + 1}-of-00002.safetensors"
        save_file(part, model / "unet" / file)
        index |= dict.fromkeys(part, file)
    name = "diffusion_pytorch_model.safetensors.index.fp16.json"
    (model / "unet" / name).write_text(json.dumps({"weight_map": index}))
    np.testing.assert_array_equal(
        open_model(model, variant="fp16").tensor("unet.conv_out.bias"), weights["conv_out.bias"].astype(np.float16)
    )


def test_text_encoders_have_their_prefix_whichever_transformers_wrote_them(model):
    path = model / "text_encoder" / "model.safetensors"
    opened, name = open_model(model, parts=("text_encoder",)), "text_encoder.text_model.final_layer_norm.weight"
    before = opened.tensor(name)
    weights = {k.removeprefix("text_model."): x for k, x in load_file(path).items()}
    save_file(weights | {"embeddings.position_ids": np.arange(77)[None]}, path)
    assert open_model(model, parts=("text_encoder",)).tensors.keys() == opened.tensors.keys()
    np.testing.assert_array_equal(open_model(model, parts=("text_encoder",)).tensor(name), before)


def test_its_digests_change_with_any_of_its_parts(model):
    before = open_model(model).fingerprint()
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.bias"] += 1
    save_file(weights, path)
    after = open_model(model).fingerprint()
    assert {k for k in before if before[k] != after[k]} == {"weights"}


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("is a LoRA; write it behind its model", ["lora_unet_mid_block.lora_down.weight"]),
        ("is a refiner of SDXL", ["conditioner.embedders.0.model.ln_final.weight"]),
        ("Stable Diffusion 2's text encoder", ["cond_stage_model.model.ln_final.weight"]),
        ("is a Flux model", ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"]),
        ("are of no image model", ["model.embed_tokens.weight"]),
        (
            r"tensor down_blocks\.0\.resnets\.0\.conv1\.weight is missing",
            ["model.diffusion_model.input_blocks.0.0.weight"],
        ),
    ],
)
def test_files_of_other_things_are_refused_by_name(tmp_path, message, names):
    with pytest.raises(InputError, match=message):
        open_model(single(tmp_path / "x.safetensors", *names))


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt"])
def test_pickles_are_never_opened(tmp_path, suffix):
    (tmp_path / f"model{suffix}").write_bytes(b"cos\nsystem\n")
    with pytest.raises(InputError, match=r"pickle file.*save it as \.safetensors"):
        open_model(tmp_path / f"model{suffix}")
    with pytest.raises(InputError, match="not exist"):
        open_model(tmp_path / "missing.safetensors")


def test_a_part_that_is_missing_or_has_other_tensors(model, stories260k):
    with pytest.raises(InputError, match="is no image pipeline, and has no `parts`"):
        open_model(stories260k, parts=("vae",))
    assert isinstance(open_model(stories260k), Checkpoint)
    shutil.rmtree(model / "vae")
    with pytest.raises(InputError, match=r"model_index\.json lists vae, which is missing"):
        open_model(model)
    (model / "model_index.json").unlink()
    with pytest.raises(InputError, match="has no vae, which is to be merged"):
        open_model(model, parts=("vae",))
    weights = load_file(model / UNET)
    save_file(weights | {"more.weight": np.zeros(3, np.float32)}, model / UNET)
    with pytest.raises(InputError, match=r"tensor unet\.more\.weight is not expected"):
        open_model(model)
