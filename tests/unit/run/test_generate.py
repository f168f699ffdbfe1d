"""Pictures that the command draws, against diffusers' from the same noise; what cannot be drawn is said."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import jevomerge as jm
from jevomerge.cli import main
from jevomerge.models.diffusion.pipeline import draw, noise_keys
from tests.diffusion import SDXL, make, shaken
from tests.pipelines import UNET

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, NumPy 2
PROMPTS = ["柴犬", "a cat on a hill"]
GUIDED = {"negative": "rain", "guidance": 3.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline like SDXL, and one whose latents are pictures."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("generate")
    latent = make(folder)
    unet = shaken(UNet2DConditionModel(**SDXL | {"in_channels": 3, "out_channels": 3}))
    pixel = StableDiffusionXLPipeline(**{**latent.components, "vae": None, "unet": unet}, add_watermarker=False)
    pixel.set_progress_bar_config(disable=True)
    pipelines = {"latent": latent, "pixel": pixel}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)
    return folder, pipelines


@pytest.fixture(scope="module")
def drawn(made):
    """The pictures of the first, guided."""
    folder, _ = made
    return jm.generate(folder / "latent", PROMPTS, folder / "guided", seeds=[0, 7], **GUIDED)


def noise(prompt, seed, channels):
    return torch.from_numpy(np.array(draw(noise_keys([prompt], [seed]), (16, 16, channels))[0]).transpose(0, 3, 1, 2))


def colours(path):
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_are_those_of_diffusers(made, drawn):
    _, pipelines = made
    assert [path.name for path in drawn] == [f"prompt_{i}_seed_{seed}.png" for i in (1, 2) for seed in (0, 7)]
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}
    for path, (prompt, seed) in zip(drawn, [(p, s) for p in PROMPTS for s in (0, 7)], strict=True):
        with torch.no_grad():
            expected = pipelines["latent"](prompt, negative_prompt="rain", latents=noise(prompt, seed, 4), **options)
        np.testing.assert_allclose(colours(path), (expected.images[0] * 255).round(), atol=1)
    assert Image.open(drawn[1]).text["parameters"] == (
        "柴犬\nNegative prompt: rain\nSteps: 4, CFG scale: 3, Size: 32x32, Model: latent, Seed: 7"
    )


def test_latents_may_be_pictures(made):
    folder, pipelines = made
    (path,) = jm.generate(folder / "pixel", PROMPTS[:1], folder / "pixels")
    options = {"num_inference_steps": 4, "guidance_scale": 0.0, "height": 128, "width": 128, "output_type": "latent"}
    sizes = {"original_size": (16, 16), "target_size": (16, 16)}
    with torch.no_grad():
        x = pipelines["pixel"](PROMPTS[0], latents=noise(PROMPTS[0], 0, 3), **options, **sizes).images[0]
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(colours(path), expected, atol=1)


def test_a_picture_is_the_same_whatever_is_drawn_beside_it(made, drawn):
    folder, _ = made
    (alone,) = jm.generate(folder / "latent", PROMPTS[1:], folder / "alone", seeds=[7], **GUIDED)
    assert alone.name == "prompt_1_seed_7.png"
    assert alone.read_bytes() == drawn[3].read_bytes()


def test_a_single_file_draws_with_what_a_folder_lends(made, drawn, capsys):
    folder, _ = made
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(folder / "latent"), "parameters": {"weight": 1.0}}],
        "dtype": "float32",
    }
    jm.merge_folder(recipe, file := folder / "one.safetensors")
    out = ["--output", str(folder / "of_file")]
    words = ["generate", str(file), "--prompt", PROMPTS[0], "--negative", "rain", "--guidance", "3", "--size", "32"]
    assert main([*words, *out]) == 2
    assert "no tokenizers and no scheduler; name a folder that has with --like" in capsys.readouterr().err
    assert main([*words, *out, "--like", str(folder / "latent")]) == 0
    assert "drawn 1/1 pictures" in capsys.readouterr().out
    np.testing.assert_array_equal(colours(folder / "of_file" / "prompt_1_seed_0.png"), colours(drawn[0]))
    with pytest.raises(jm.InputError, match=r"conv_in.weight has shape .* but .*pixel/unet/config.json says"):
        jm.generate(file, PROMPTS, folder / "no", like=folder / "pixel")


def test_what_cannot_be_drawn_is_refused_before_a_weight_is_read(made, tmp_path, capsys):
    folder, _ = made
    shutil.copytree(folder / "latent", tmp_path / "m")
    (tmp_path / "there").mkdir()
    words = ["generate", str(tmp_path / "m"), "--prompt", "a", "--output"]
    out = [*words, str(tmp_path / "out")]
    scheduler = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    for said, command in {
        "there exists already and is not overwritten": [*words, str(tmp_path / "there")],
        "--negative: without guidance above 1": [*out, "--negative", "rain"],
        "steps: 0: must be 1 to 1000": [*out, "--steps", "0"],
        "steps: 51: must be 1 to 50": [*out, "--steps", "51", "--scheduler", "lcm"],
        "size: 30 x 32: must be multiples of 4": [*out, "--size", "30x32"],
        "--size: `large` is neither a number of pixels nor": [*out, "--size", "large"],
        "pooled_from: 1: of the text encoders [2]": [*out, "--pooled-from", "1"],
        "is no image model": [*out[:1], str(tmp_path / "there"), *out[2:]],
    }.items():
        assert main(command) == 2
        assert said in capsys.readouterr().err
    values = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(values | {"_class_name": "DPMSolverMultistepScheduler"}))
    assert main(out) == 2
    assert "DPMSolverMultistepScheduler" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"m", "there"}


def test_a_broken_model_leaves_nothing_behind(made, tmp_path):
    folder, _ = made
    shutil.copytree(folder / "latent", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / UNET)
    tensors["conv_out.bias"] += np.float32(3e38)  # finite, unlike what it makes
    save_file(tensors, tmp_path / "m" / UNET, {"format": "pt"})
    with pytest.raises(jm.InputError, match="prompt 1: the picture is not finite"):
        jm.generate(tmp_path / "m", PROMPTS, tmp_path / "out", **GUIDED)
    assert not (tmp_path / "out").exists()


def test_few_steps_of_a_model_for_many_are_noted(made, tmp_path):
    folder, _ = made
    shutil.copytree(folder / "latent", tmp_path / "m")
    scheduler = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"timestep_spacing": "leading"}))

    class Heard(Exception):
        pass

    class Listener(jm.Terminal):
        def note(self, text):
            raise Heard(text)  # before anything is compiled

    with pytest.raises(Heard, match="add --scheduler lightning or lcm"):
        jm.generate(tmp_path / "m", PROMPTS, tmp_path / "out", observer=Listener())
    with pytest.raises(Heard, match="tokens and is cut"):
        jm.generate(folder / "latent", ["a " * 90], tmp_path / "out", observer=Listener())
