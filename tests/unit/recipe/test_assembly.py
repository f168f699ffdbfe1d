"""Pipelines whose U-Nets are merged: what is in the folder or the file that comes out, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModelWithProjection

from jevomerge.checkpoint.pipeline import open_model
from jevomerge.errors import InputError
from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import write_hollow
from jevomerge.run.merge import explain, merge_folder
from tests.pipelines import FILES, UNET, linear, tensors, write_siblings, write_yaml

PROJECTION = "text_encoder.text_projection.weight"
WEIGHTS = (0.5, 0.3, 0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_siblings(tmp_path_factory.mktemp("pipelines"), first_projected=True)
    (folder / "a" / "README.md").write_text("---\nlicense: other\nlicense_name: sai-nc-community\n---\n")
    (folder / "base" / "README.md").write_text("---\nlicense: openrail++\n---\n")
    (folder / "b" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    merge_folder(write_yaml(folder / "r.yaml", linear(*WEIGHTS, pooled_from=2)), folder / "merged")
    merge_folder(folder / "r.yaml", folder / "merged.safetensors")
    return folder


def expected(folder, part="unet"):
    sources = [tensors(folder / name, part) for name in ("base", "a", "b")]
    return {n: sum(w * s[n].astype(np.float64) for w, s in zip(WEIGHTS, sources, strict=True)) for n in sources[0]}


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=3e-7, err_msg=name)


def refused(folder, match, **recipe):
    weights = recipe.pop("weights", (0.5, 0.5))
    with pytest.raises(InputError, match=match):
        Sources(read_recipe(write_yaml(folder / "refused.yaml", linear(*weights, **recipe))))


def test_u_nets_are_merged_and_all_else_is_the_first_ones(folder):
    assert_close(tensors(folder / "merged"), expected(folder))
    for part in ("vae", "text_encoder_2"):
        theirs, ours = tensors(folder / "base", part), tensors(folder / "merged", part)
        assert theirs.keys() == ours.keys()
        assert all(x.tobytes() == ours[name].tobytes() for name, x in theirs.items())
    for file in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert json.loads((folder / "merged" / file).read_text()) == json.loads((folder / "base" / file).read_text())
    card = (folder / "merged" / "README.md").read_text()
    assert "license: sai-nc-community" in card
    assert "library_name: diffusers" in card


def test_the_result_opens_in_diffusers_and_hears_the_second_encoder(folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder / "merged")
    assert_close({k: x.numpy() for k, x in pipeline.unet.state_dict().items()}, expected(folder))
    _, _, pooled, _ = pipeline.encode_prompt("柴犬", device="cpu", do_classifier_free_guidance=False)
    tokens = pipeline.tokenizer_2("柴犬", padding="max_length", max_length=77, return_tensors="pt").input_ids
    np.testing.assert_array_equal(pooled.detach(), pipeline.text_encoder_2(tokens).text_embeds.detach())
    # With a projection at the first place, as in the sources, it would be that one's.
    assert json.loads((folder / "base" / "model_index.json").read_text())["text_encoder"][1].endswith("Projection")


def test_a_single_file_has_all_parts_by_names_that_diffusers_converts(folder):
    found = load_file(folder / "merged.safetensors")
    unet = UNet2DConditionModel.from_single_file(
        str(folder / "merged.safetensors"), config=str(folder / "base"), subfolder="unet", local_files_only=True
    )
    assert_close({k: x.numpy() for k, x in unet.state_dict().items()}, expected(folder))

    def inside(prefix):
        import torch

        return {k: torch.from_numpy(x) for k, x in found.items() if k.startswith(prefix)}

    config = json.loads((folder / "base/vae/config.json").read_text())
    assert_close(
        {k: x.numpy() for k, x in convert_ldm_vae_checkpoint(inside("first_stage_model."), config).items()},
        tensors(folder / "base", "vae"),
    )
    second = CLIPTextModelWithProjection.from_pretrained(folder / "base" / "text_encoder_2")
    prefix = "conditioner.embedders.1.model."
    converted = convert_open_clip_checkpoint(second, inside(prefix), prefix=prefix)
    assert_close(
        {k: converted[k].numpy() for k in second.state_dict()}, {k: x.numpy() for k, x in second.state_dict().items()}
    )
    first = tensors(folder / "base", "text_encoder")
    prefix = "conditioner.embedders.0.transformer."
    text = {k.removeprefix(prefix): x for k, x in found.items() if k.startswith(prefix)}
    assert_close(text, {k: x for k, x in first.items() if k.startswith("text_model.")})


def test_a_single_file_says_what_it_is(folder):
    about = safe_open(folder / "merged.safetensors", "np").metadata()
    assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert about["modelspec.license"] == "sai-nc-community"
    (folder / "again.yaml").write_text(about["recipe"])
    assert [m.model for m in read_recipe(folder / "again.yaml").models] == [str(folder / n) for n in ("base", "a", "b")]
    again = open_model(folder / "merged.safetensors", parts=FILES)
    whole = open_model(folder / "merged", parts=FILES)
    for name in whole.tensors:
        np.testing.assert_array_equal(again.tensor(name), whole.tensor(name), err_msg=name)


def test_single_files_are_merged_like_folders_and_back(folder, tmp_path):
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in ("merged.safetensors", "merged")]
    recipe = {"merge_method": "linear", "models": models, "pooled_from": 2}
    merge_folder(recipe, tmp_path / "same.safetensors")  # the mean of a model and itself
    theirs, ours = load_file(folder / "merged.safetensors"), load_file(tmp_path / "same.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(x.tobytes() == ours[name].tobytes() for name, x in theirs.items())
    alone = {"merge_method": "passthrough", "models": models[:1]}
    with pytest.raises(InputError, match=r"is from a single file.*let OUT end in \.safetensors"):
        merge_folder(alone, tmp_path / "folder")
    lent = dict.fromkeys(("scheduler", "tokenizer", "tokenizer_2", "vae"), str(folder / "base"))
    merge_folder(alone | {"take": lent}, tmp_path / "folder")
    assert_close(tensors(tmp_path / "folder"), expected(folder))
    for part in ("text_encoder_2", "vae"):
        assert_close(tensors(tmp_path / "folder", part), tensors(folder / "base", part))
    StableDiffusionXLPipeline.from_pretrained(tmp_path / "folder")


def test_parts_that_are_listed_are_merged_too(folder, tmp_path):
    parts = ["unet", "text_encoder_2", "vae"]
    recipe = write_yaml(folder / "parts.yaml", linear(*WEIGHTS, parts=parts, pooled_from=2))
    merge_folder(recipe, tmp_path / "out.safetensors")
    merged = open_model(tmp_path / "out.safetensors", parts=parts)
    for part in parts:
        found = {n.removeprefix(f"{part}."): merged.tensor(n) for n in merged.tensors if n.startswith(f"{part}.")}
        assert_close(found, expected(folder, part))


def test_parts_come_from_whom_the_recipe_names(folder, tmp_path):
    shutil.copytree(folder / "b" / "vae", folder / "lone vae", dirs_exist_ok=True)
    recipe = linear(*WEIGHTS, take={"vae": "lone vae", "text_encoder": "a"}, pooled_from=2, base_model="b")
    lines = explain(write_yaml(folder / "taken.yaml", recipe | {"merge_method": "task_arithmetic"}))
    told = {line.split(":")[0].strip(): line.partition("as in ")[2] for line in lines if ": as in" in line}
    assert {k: told[k] for k in ("vae", "text_encoder", "tokenizer", "text_encoder_2", "scheduler")} == {
        "vae": "lone vae", "text_encoder": "a", "tokenizer": "a", "text_encoder_2": "b", "scheduler": "b",
    }  # fmt: skip
    write_hollow(tmp_path / "out", Sources(read_recipe(folder / "taken.yaml")))
    written = open_model(tmp_path / "out", parts=FILES)
    assert written.tensors.keys() == open_model(folder / "a", parts=FILES).tensors.keys() - {PROJECTION}
    StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
    refused(folder, r"take.vae.*has no vae", take={"vae": "a/unet"}, pooled_from=2)
    refused(folder, r"vae is merged", take={"vae": "a"}, parts=["unet", "vae"])


def test_whose_pooled_vector_it_is_has_to_be_said(folder, tmp_path):
    refused(folder, r"has a projection of its own; say whose.*`pooled_from`")
    sources = Sources(read_recipe(write_yaml(folder / "first.yaml", linear(*WEIGHTS, pooled_from=1))))
    with pytest.raises(InputError, match="takes the pooled vector of encoder 2: write a folder"):
        sources.assembly.check(tmp_path / "out.safetensors")
    write_hollow(tmp_path / "out", sources)
    kinds = [
        json.loads((f / "model_index.json").read_text())["text_encoder"][1] for f in (tmp_path / "out", folder / "base")
    ]
    assert kinds == ["CLIPTextModelWithProjection"] * 2


def test_stable_diffusion_1_goes_through_a_single_file(tmp_path):
    write_siblings(tmp_path, ("base",), xl=False)
    alone = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "base")}]}
    merge_folder(alone, tmp_path / "one.safetensors")
    parts = ("unet", "text_encoder", "vae")
    again, whole = (open_model(tmp_path / name, parts=parts) for name in ("one.safetensors", "base"))
    assert again.tensors.keys() == whole.tensors.keys()
    for name in whole.tensors:
        np.testing.assert_array_equal(again.tensor(name), whole.tensor(name), err_msg=name)
    assert safe_open(tmp_path / "one.safetensors", "np").metadata()["modelspec.architecture"] == "stable-diffusion-v1"


def test_inpainting_and_v_prediction_are_refused_by_name(folder):
    shutil.copytree(folder / "a", folder / "other", dirs_exist_ok=True)
    path, config = folder / "other" / UNET, folder / "other" / "unet" / "config.json"
    values = load_file(path)
    values["conv_in.weight"] = np.zeros((16, 9, 3, 3), np.float32)
    save_file(values, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    pair = [{"model": name, "parameters": {"weight": 0.5}} for name in ("base", "other")]
    refused(folder, r"`unet.in_channels` of inpainting, 4 and 9", models=pair, pooled_from=2)
    shutil.rmtree(folder / "other")
    shutil.copytree(folder / "a", folder / "other")
    scheduler = folder / "other" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    refused(folder, r"`prediction_type`, epsilon and v_prediction", models=pair, pooled_from=2)
    refused(folder, r"the U-Net predicts epsilon, the scheduler", take={"scheduler": "other"}, pooled_from=2)


def test_nothing_is_overwritten_and_a_merge_that_fails_leaves_nothing(folder, tmp_path):
    with pytest.raises(InputError, match=r"merged\.safetensors exists already"):
        merge_folder(folder / "r.yaml", folder / "merged.safetensors")
    large = write_yaml(folder / "large.yaml", linear(1e5, 1e5, dtype="float16", pooled_from=2))
    with pytest.raises(InputError, match="too large for float16"):
        merge_folder(large, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
