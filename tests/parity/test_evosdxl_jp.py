"""configs/evosdxl_jp.yaml on small copies of SDXL's U-Net with all of its 1,680 tensors, against NumPy's sums."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jevomerge.errors import InputError
from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from jevomerge.run.merge import merge_folder
from tests.pipelines import SMALL, UNET, write_unets

CONFIG = Path(__file__).parents[2] / "configs" / "evosdxl_jp.yaml"
# As published: of conv and of attn, in this order.
WEIGHTS = {
    "stable-diffusion-xl-base-1.0": (0.15928833971605916, 0.1877279276437178),
    "dpo-sdxl-text2image-v1": (0.1032449268871776, 0.20014114603909822),
    "Juggernaut-XL-v9": (0.6503217149752791, 0.3922685507065275),
    "japanese-stable-diffusion-xl": (0.08714501842148402, 0.2198623756106564),
}
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """U-Nets in float16, in the files that the models have: all but DPO's in a variant."""
    folder = write_unets(tmp_path_factory.mktemp("sdxl"), SMALL, WEIGHTS, dtype=np.float16)
    for name in WEIGHTS:
        if not name.startswith("dpo"):
            path = folder / name / UNET
            shutil.copy(path, path.with_suffix(".fp16.safetensors"))
            # Another precision, which is not to be read.
            save_file({k: x.astype(np.float32) + 1 for k, x in load_file(path).items()}, path)
    return folder


def recipe_of(models):
    recipe = yaml.safe_load(CONFIG.read_text())
    for model in recipe["models"]:
        model["model"] = str(models / model["model"].partition("/")[2])
    return {k: v for k, v in recipe.items() if k not in ("take", "pooled_from")}  # these copies are U-Nets alone


def read(path):
    half = path.with_suffix(".fp16.safetensors")
    return load_file(half if half.exists() else path)


def test_stage_one_is_the_published_sum(models, tmp_path):
    merge_folder(recipe_of(models), tmp_path / "out")
    merged, sources = load_file(tmp_path / "out" / UNET), [read(models / name / UNET) for name in WEIGHTS]
    assert len(merged) == 1680
    far = []
    for name, x in merged.items():
        weights = [pair[any(part in name for part in ATTENTION)] for pair in WEIGHTS.values()]
        exact = sum(w * s[name].astype(np.float64) for w, s in zip(weights, sources, strict=True))
        # One rounding of a float32 sum: half a unit of float16's last place, and what float32 lost.
        assert x.dtype == np.float16
        np.testing.assert_array_less(np.abs(x - exact), 0.5 * np.spacing(np.abs(x)).astype(np.float64) + 1e-7)
        halves = np.zeros(x.shape, np.float16)
        for w, s in zip(weights, sources, strict=True):  # as Sakana's script
            halves += np.float16(w) * s[name]
        far.append(np.abs(halves.astype(np.float64) - x).max())
    assert 1e-5 < max(far) < 1e-3  # of weights of 0.1: sums in float16 are that far away


def test_the_recipe_itself_is_read_and_takes_japanese_words_from_whom_it_should():
    recipe = read_recipe(CONFIG)
    assert [m.model.partition("/")[2] for m in recipe.models] == list(WEIGHTS)
    assert recipe.take == {"text_encoder": "stabilityai/japanese-stable-diffusion-xl"}
    assert (recipe.pooled_from, recipe.variant, recipe.dtype) == (2, "fp16", "float16")


def test_u_nets_alone_make_no_single_file(models, tmp_path):
    with pytest.raises(InputError, match=r"no model has a text_encoder.*say whose with `take`"):
        merge_folder(recipe_of(models), tmp_path / "out.safetensors")


def test_block_weights_of_another_model_are_refused(models):
    given = recipe_of(models)
    given["models"] = given["models"][:2]
    given["models"][0]["parameters"]["weight"] = {"mbw": ",".join(["0.5"] * 26)}
    with pytest.raises(InputError, match=r"no block `IN09`; they have BASE, IN00"):
        Sources(read_recipe(given))
    given["models"][0]["parameters"]["weight"] = [0, 1]
    with pytest.raises(InputError, match=r"a list over layers, which U-Nets do not have"):
        Sources(read_recipe(given))
