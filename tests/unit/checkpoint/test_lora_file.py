"""LoRA files behind a plus: as kohya's scripts, diffusers and PEFT write them, or refused by name."""

import json

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint.lora_file import spellings
from jevomerge.checkpoint.pipeline import open_model
from jevomerge.errors import InputError
from jevomerge.models.diffusion.parts import read_config, shapes
from tests.diffusion import PUBLISHED
from tests.pipelines import tensors, write_lora, write_siblings

MODULES = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0",
    "mid_block.attentions.0.proj_in",
    "up_blocks.0.resnets.0.conv1",
    "up_blocks.1.resnets.1.conv_shortcut",
    "time_embedding.linear_1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_siblings(tmp_path_factory.mktemp("lora"), ("model",)) / "model"


def added(model, path, **options):
    """What the LoRA adds to every tensor of the U-Net, as it is read."""
    with_it, without = open_model(f"{model}+{path}", **options), tensors(model)
    return {n: with_it.tensor(f"unet.{n}").astype(np.float64) - x for n, x in without.items()}


def assert_added(found, wanted):
    for name, x in found.items():
        np.testing.assert_allclose(x, wanted.get(name, np.zeros(x.shape)), rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("names", ["kohya", "kohya of diffusers", "diffusers", "peft"])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_spelling_is_the_same_product(model, tmp_path, names, alpha):
    wanted = write_lora(tmp_path / "x.safetensors", tensors(model), MODULES, names, alpha=alpha)
    assert_added(added(model, tmp_path / "x.safetensors"), wanted)


def test_processors_of_old_diffusers_and_settings_of_new(model, tmp_path):
    wanted = write_lora(tmp_path / "x.safetensors", tensors(model), MODULES[:2], "diffusers")
    old = {
        k.replace(".to_q.lora.", ".processor.to_q_lora.").replace(".to_out.0.lora.", ".processor.to_out_lora."): x
        for k, x in load_file(tmp_path / "x.safetensors").items()
    }
    assert len([k for k in old if ".processor." in k]) == 4
    save_file(old, tmp_path / "old.safetensors")
    assert_added(added(model, tmp_path / "old.safetensors"), wanted)
    settings = {"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 12}}
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "new.safetensors", {
        "lora_adapter_metadata": json.dumps(settings)
    })  # fmt: skip
    times = dict(zip(wanted, (4, 2), strict=True))
    assert_added(added(model, tmp_path / "new.safetensors"), {n: times[n] * x for n, x in wanted.items()})


def test_only_the_factors_are_kept(model, tmp_path):
    write_lora(tmp_path / "x.safetensors", tensors(model), MODULES)
    opened = open_model(f"{model}+{tmp_path / 'x.safetensors'}")
    assert opened.name == "model+x"
    assert {n.removeprefix("unet.").removesuffix(".weight") for n in opened.adapter.low_rank} == {*MODULES}
    assert {pair.rank for pair in opened.adapter.low_rank.values()} == {3}


def test_what_trains_parts_that_are_not_merged_is_said(model, tmp_path):
    module = "text_model.encoder.layers.0.self_attn.q_proj"
    spelt, sizes = f"lora_te1_{module.replace('.', '_')}", {"down": (2, 32), "up": (32, 2)}
    save_file(
        {f"{spelt}.lora_{k}.weight": np.ones(n, np.float32) for k, n in sizes.items()}, tmp_path / "x.safetensors"
    )
    reference = f"{model}+{tmp_path / 'x.safetensors'}"
    assert any("also changes text_encoder, which is not merged" in note for note in open_model(reference).notes)
    both = [open_model(r, parts=("text_encoder",)).tensor(f"text_encoder.{module}.weight") for r in (reference, model)]
    np.testing.assert_allclose(both[0] - both[1], 2, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("is a DoRA; only LoRA is read", {"lora_unet_conv_in.dora_scale": (1, 16)}),
        ("is a LoHa; only", {"lora_unet_conv_in.hada_w1_a": (2, 2)}),
        ("is a LoKr; only", {"lora_unet_conv_in.lokr_w1": (2, 2)}),
        ("is of differences of whole tensors", {"lora_unet_conv_in.diff": (16, 4, 3, 3)}),
        ("is a LoCon with a factor in the middle", {"lora_unet_conv_in.lora_mid.weight": (2, 2, 3, 3)}),
        ("is of no LoRA that is known", {"lora_unet_conv_in.something": (2, 2)}),
        ("belongs to no tensor of the model", {"lora_unet_conv_inn.lora_down.weight": (2, 4, 3, 3)}),
        ("it has only A", {"lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3)}),
        (
            "do not make its shape|which do",
            {"lora_unet_conv_in.lora_down.weight": (2, 5, 3, 3), "lora_unet_conv_in.lora_up.weight": (16, 2, 1, 1)},
        ),
    ],
)
def test_other_adapters_are_refused_by_name(model, tmp_path, message, change):
    save_file({k: np.ones(shape, np.float32) for k, shape in change.items()}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        open_model(f"{model}+{tmp_path / 'x.safetensors'}")


def test_no_two_weights_of_sdxl_are_spelt_alike():
    names = [f"unet.{name}" for name in shapes(read_config("unet", PUBLISHED["unet/config.json"], "config.json"))]
    assert len(names) == 1680
    weights = [name for name in names if name.endswith(".weight")]
    assert len(spellings(dict.fromkeys(names, ()))) == 4 * len(weights)  # two with dots, two with underscores


def test_a_folder_that_peft_saved(model, tmp_path):
    wanted = write_lora(tmp_path / "x.safetensors", tensors(model), MODULES, "peft")
    (tmp_path / "adapter").mkdir()
    renamed = {k.replace("unet.", "base_model.model.", 1): x for k, x in load_file(tmp_path / "x.safetensors").items()}
    save_file(renamed, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["to_q"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    assert_added(added(model, tmp_path / "adapter"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["kohya", "diffusers", "peft"])
def test_diffusers_fuses_the_same(model, tmp_path, names):
    pytest.importorskip("peft")
    write_lora(tmp_path / "x.safetensors", tensors(model), MODULES[:5], names, alpha=1.5 if names == "kohya" else None)
    pipeline = StableDiffusionXLPipeline.from_pretrained(model)
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs = {k: x.detach().numpy() - tensors(model)[k] for k, x in pipeline.unet.state_dict().items()}
    assert_added(added(model, tmp_path / "x.safetensors"), theirs)
