"""Scorers of pictures against transformers, torch and Pillow, on tiny random weights."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from jevomerge.fitness.scorers.registry import open_scorer
from jevomerge.models.clip.clip import Clip
from jevomerge.models.fields import Fields
from jevomerge.models.vision.on_device import views
from jevomerge.models.vision.processor import read_clip
from tests import clips
from tests.unit.test_experiments import ROOT, load

convert = load(ROOT / "convert_scorers" / "run.py").convert
TEXTS = ["a cat on a hill", "柴犬", "", "a text of many more words than the model takes at all"]
SIZES = [(32, 32), (96, 96), (40, 57), (57, 40), (24, 31), (17, 9), (100, 24)]


def pictures(height=40, width=40, count=4):
    """(B, H, W, 3) eight-bit pictures that differ in colour and in what can be seen."""
    rng = np.random.default_rng(height + width)
    rough = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)) for x in rough]
    noise = rng.integers(-30, 30, (count, height, width, 3))
    return np.clip(np.stack(smooth) + noise, 0, 255).astype(np.uint8)


def colours(x):
    return jnp.asarray(x, jnp.float32) / 255


def processed(x, size=clips.SIDE):
    """What transformers' processor makes of them."""
    kind = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.stack([kind(Image.fromarray(picture), return_tensors="np").pixel_values[0] for picture in x])


def tokens(folder, texts=TEXTS):
    options = {"padding": "max_length", "truncation": True, "max_length": clips.TEXT["max_position_embeddings"]}
    return CLIPTokenizer.from_pretrained(folder)(texts, **options, return_tensors="pt").input_ids


def expected(model, folder, x):
    """transformers' embeddings of pictures and of texts, and how well each picture fits its text, scaled."""
    with torch.no_grad():
        out = model(input_ids=tokens(folder), pixel_values=torch.tensor(processed(x)))
    return out.image_embeds.numpy(), out.text_embeds.numpy(), np.diagonal(out.logits_per_image.numpy())


score = jax.jit(lambda scorer, params, images, told: scorer.score(params, images, told), static_argnums=0)


def scores(scorer, x):
    params = scorer.load()
    return np.asarray(score(scorer, params, colours(x), scorer.told(TEXTS, params)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_are_resized_on_the_device_as_by_pillow(size):
    """At most one of 255 steps apart, and that in less than one of ten thousand colours."""
    x = pictures(*size, count=8)
    processor = read_clip(Fields({"size": clips.SIDE, "crop_size": clips.SIDE}, ""))
    std = np.asarray(processor.std)[:, None, None]
    steps = np.abs(np.asarray(views(colours(x), processor)) - processed(x)) * 255 * std
    assert steps.max() < 1.01
    assert np.mean(steps > 0.01) < 1e-4


@pytest.mark.parametrize(("act", "end"), [("quick_gelu", clips.EOS), ("gelu", 2)])
def test_clip(act, end, tmp_path):
    """`end`: of texts, the first of these tokens, or in old files, which say 2, the largest."""
    model, x = clips.make(tmp_path, act, end=end), pictures()
    scorer, picking = (open_scorer(kind, str(tmp_path)) for kind in ("clip", "pickscore"))
    seen, words, logits = expected(model, tmp_path, x)
    cosines = logits / np.exp(model.logit_scale.item())
    assert np.ptp(cosines) > 0.1

    @jax.jit  # as one program
    def found(params, images, told):
        eyes = scorer.clip.of_pictures(params, views(images, scorer.processor))
        against = scorer.score(params, images, -told)
        return eyes, scorer.score(params, images, told), against, picking.score(params, images, told)

    params = scorer.load()
    told = scorer.told(TEXTS, params)
    np.testing.assert_allclose(told, words, atol=1e-5)
    eyes, fits, against, picked = found(params, colours(x), told)
    np.testing.assert_allclose(eyes, seen, atol=1e-5)
    np.testing.assert_allclose(fits, np.maximum(0, 100 * cosines), atol=1e-3)
    np.testing.assert_allclose(against, np.maximum(0, -100 * cosines), atol=1e-3)
    np.testing.assert_allclose(picked, logits, rtol=1e-4, atol=1e-4)


def test_open_clips_file_of_hpsv2(tmp_path):
    """In float16, matrices stacked and transposed, as in the file that is published; the script makes safetensors."""
    model, x = clips.make(tmp_path, "gelu", width=1024, end=2).half(), pictures()
    torch.save({"epoch": 3, "state_dict": clips.with_open_clips_names(model)}, tmp_path / "HPS_v2.1_compressed.pt")
    convert(tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "hps.safetensors")
    ours = scores(open_scorer("hpsv2", str(tmp_path / "hps.safetensors"), str(tmp_path)), x)
    model = model.float()
    np.testing.assert_allclose(ours, expected(model, tmp_path, x)[2] / model.logit_scale.exp().item(), atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_aesthetic_heads(version, tmp_path):
    model, x = clips.make(tmp_path), pictures()
    widths = (40, 1) if version == 1 else (40, 1024, 128, 64, 16, 1)
    torch.manual_seed(1)
    layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    dropouts = [torch.nn.Dropout(0.1) for _ in layers[:3]]
    head = torch.nn.Sequential(*itertools.chain(*zip(layers, dropouts, strict=False)), *layers[3:]).eval()
    state = layers[0].state_dict() if version == 1 else {f"layers.{n}": t for n, t in head.state_dict().items()}
    torch.save(state, tmp_path / "head.pth")
    convert(tmp_path / "head.pth", tmp_path / "head.safetensors")
    scorer = open_scorer("aesthetic", str(tmp_path / "head.safetensors"), str(tmp_path))
    assert not any("text" in name for name in scorer.load())
    with pytest.raises(SystemExit, match="exists already"):
        convert(tmp_path / "head.pth", tmp_path / "head.safetensors")
    with torch.no_grad():
        wanted = (layers[0] if version == 1 else head)(torch.tensor(expected(model, tmp_path, x)[0]))[:, 0]
    assert np.ptp(wanted.numpy()) > 1e-3
    np.testing.assert_allclose(scores(scorer, x), wanted, atol=1e-5)


SIZES_OF = {
    "L/14": (768, "quick_gelu", {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}, 303_966_208),
    "H/14": (1024, "gelu", {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}, 632_076_800),
}


@pytest.mark.parametrize("name", SIZES_OF)
def test_published_sizes(name):
    """Shapes alone: names as in transformers; the tower and its projection with as many parameters as are published."""
    width, act, vision, count = SIZES_OF[name]
    config = {
        "model_type": "clip",
        "projection_dim": width,
        "text_config": {"hidden_size": width, "num_attention_heads": width // 64, "hidden_act": act},
        "vision_config": vision | {"num_attention_heads": 16, "patch_size": 14, "hidden_act": act},
    }
    model = Clip.read(Fields(config, "config.json"))
    shapes = {name: s.shape for s in model.specs for name in s.names()}
    assert sum(math.prod(s.leaf_shape) for s in model.eyes) == count
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**{k: v for k, v in config.items() if k != "model_type"})).state_dict()
    assert shapes == {name: tuple(x.shape) for name, x in theirs.items() if not name.endswith("position_ids")}
