"""Names of single files against diffusers' own converters, and the blocks that users know."""

import math
from collections import Counter

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jevomerge.models.clip.open_clip import open_clip_name, open_clip_names_back
from jevomerge.models.diffusion.deduce import deduced
from jevomerge.models.diffusion.ldm import (
    unet_names,
    unet_names_back,
    vae_names,
    vae_names_back,
)
from jevomerge.models.diffusion.parts import read_config
from jevomerge.models.diffusion.places import mbw_blocks, read_mbw, sakana, unet_blocks, write_mbw
from tests.diffusion import PUBLISHED

UNET, VAE = PUBLISHED["unet/config.json"], PUBLISHED["vae/config.json"]
SD1 = {"cross_attention_dim": 768}  # all else is the class's own


def state(kind, config):
    with torch.device("meta"):
        module = kind.from_config(config) if kind is not CLIPTextModelWithProjection else kind(config)
    return module.state_dict(), dict(module.config)


@pytest.fixture(scope="module")
def sdxl():
    return state(UNet2DConditionModel, UNET)


@pytest.mark.parametrize("config", [UNET, SD1])
def test_names_of_a_u_net_are_those_that_diffusers_converts(config):
    wanted, config = state(UNet2DConditionModel, config)
    names = unet_names(wanted)
    file = {f"model.diffusion_model.{theirs}": wanted[ours] for ours, theirs in names.items()}
    converted = convert_ldm_unet_checkpoint(file, config)
    assert {name: x.shape for name, x in converted.items()} == {name: x.shape for name, x in wanted.items()}
    assert unet_names_back(names.values()) == {theirs: ours for ours, theirs in names.items()}


def test_names_of_an_autoencoder_are_those_that_diffusers_converts():
    wanted, config = state(AutoencoderKL, VAE)
    names = vae_names(wanted)
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{names[k]}": x for k, x in wanted.items()}, config)
    assert converted.keys() == wanted.keys()
    assert vae_names_back(names.values()) == {theirs: ours for ours, theirs in names.items()}


def test_names_of_the_second_text_encoder_are_those_that_diffusers_converts():
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "projection_dim": 40}
    model = CLIPTextModelWithProjection(CLIPTextConfig(num_attention_heads=4, vocab_size=64, **sizes))
    wanted = {n: x for n, x in model.state_dict().items() if not n.endswith("position_ids")}
    file: dict[str, torch.Tensor] = {}
    for name in sorted(wanted, key=lambda n: open_clip_name(n)[1] or 0):
        theirs, third = open_clip_name(name)
        assert name in open_clip_names_back(theirs)
        x = wanted[name].T if theirs == "text_projection" else wanted[name]
        file[theirs] = x if third in (None, 0) else torch.cat([file[theirs], x])
    converted = convert_open_clip_checkpoint(model, dict(file), prefix="")
    for name, x in wanted.items():
        torch.testing.assert_close(converted[name], x, rtol=0, atol=0)


def test_a_name_that_no_single_file_has_is_an_error():
    with pytest.raises(KeyError, match="encoder_hid_proj"):
        unet_names(["encoder_hid_proj.weight"])
    assert unet_names_back(["betas", "diffusion_model.x"]) == {}


def test_what_shapes_let_one_deduce_is_what_the_configs_say(sdxl):
    shapes = {name: tuple(x.shape) for name, x in sdxl[0].items()}
    assert read_config("unet", deduced("unet", {"unet": shapes}), "deduced") == read_config("unet", UNET, "config.json")
    sd1, _ = state(UNet2DConditionModel, SD1)
    shapes = {name: tuple(x.shape) for name, x in sd1.items()}
    assert read_config("unet", deduced("unet", {"unet": shapes}), "deduced") == read_config("unet", SD1, "config.json")
    vae, _ = state(AutoencoderKL, VAE)
    parts = {"vae": {name: tuple(x.shape) for name, x in vae.items()}, "unet": {"add_embedding.linear_1.weight": ()}}
    assert read_config("vae", deduced("vae", parts), "deduced") == read_config("vae", VAE, "config.json")


def test_blocks_hold_what_their_users_say(sdxl):
    blocks = unet_blocks(sdxl[0])
    counts = Counter(blocks.values())
    assert [counts[b] for b in mbw_blocks(20)] == [
        12, 2, 10, 10, 2, 58, 56, 2, 218, 216, 226, 218, 218, 220, 58, 58, 60, 12, 12, 12,
    ]  # fmt: skip
    assert set(unet_blocks(state(UNet2DConditionModel, SD1)[0]).values()) == set(mbw_blocks(26))
    groups = Counter(map(sakana, sdxl[0]))
    assert groups == {"attn": 700, "conv": 980}
    assert sum(math.prod(x.shape) for n, x in sdxl[0].items() if sakana(n) == "attn") == 955_353_600


def test_block_weight_strings_are_read_and_written():
    values = [i / 7 for i in range(26)]
    told = read_mbw(" , ".join(map(str, values)))
    assert (told["BASE"], told["IN11"], told["M00"], told["OUT11"]) == (0, values[12], values[13], values[25])
    assert read_mbw(write_mbw(told)) == told
    assert write_mbw({"IN00": 1.0}) is None
    for wrong in ("0.5", "0,1", "x," * 19 + "1", ""):
        with pytest.raises(ValueError, match="20 numbers of SDXL's blocks"):
            read_mbw(wrong)
