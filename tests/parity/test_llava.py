"""LLaVA-1.5 and LLaVA-NeXT against transformers: tower, features, logits, greedy texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jevomerge.models.fields import Fields
from jevomerge.models.llava.llava import Llava
from jevomerge.models.vision.seeing import features
from jevomerge.models.vision.specs import TEXT, TOWER
from jevomerge.models.vision.tower import look
from tests.seeing import MODELS, PINPOINTS, ROWS, compare_greedy, compare_logits, load, make, picture, tensors_of

SIZES = [(30, 50), (64, 64), (20, 100), (100, 7)]
NAMES = [name for name in MODELS if name.startswith("llava")]
CORE = ("llava", "llava-siglip", "llava-gemma", "llava_next")  # the others differ in the features alone
TEXTS = [pytest.param(name, marks=[] if name in CORE else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory):
    """A model of transformers, ours with its parameters, the pictures' views and features."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = make(request.param, folder)
    tensors = tensors_of(folder)
    fields = Fields(json.loads((folder / "config.json").read_text()), "config.json")
    model = Llava.read(fields).stored_as(tensors)
    assert not fields.unread()
    edge = model.config.vision.image_size
    values = {"image_processor_type": "CLIPImageProcessor", "size": edge, "crop_size": edge}
    if model.config.pinpoints:
        values |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS}
    processor = model.processor(values)
    views = [model.views(picture(*size), processor) for size in SIZES]
    params = load(model.specs, tensors)
    return reference, model, params, views, [features(params, model, v.pixels, v.layout) for v in views]


def inputs(views, which):
    """What transformers' own model is given of these pictures."""
    pixels = [torch.tensor(views[i].pixels) for i in which]
    if views[0].layout is None:
        return {"pixel_values": torch.cat(pixels)}
    most = max(len(p) for p in pixels)
    padded = torch.stack([torch.cat([p, torch.zeros(most - len(p), *p.shape[1:])]) for p in pixels])
    return {"pixel_values": padded, "image_sizes": torch.tensor([SIZES[i] for i in which])}


def in_order(views):
    return inputs(views, [i for row in ROWS for i in row])


def test_hidden_states_of_the_tower(case):
    reference, model, params, views, _ = case
    pixels, depth = views[0].pixels, model.config.vision.num_hidden_layers
    with torch.no_grad():
        expected = reference.model.vision_tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
    run = jax.jit(look, static_argnums=(1, 3))
    found = run(params[TOWER], model.config.vision, pixels, tuple(range(depth + 1)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    (one,) = run(params[TOWER], model.config.vision, pixels, (depth - 1,))
    np.testing.assert_allclose(one, expected[-2].numpy(), atol=1e-5)


def test_features_of_pictures(case):
    reference, model, _, views, seen = case
    with torch.no_grad():
        given = inputs(views, range(len(SIZES)))
        expected = reference.model.get_image_features(**given, return_dict=True).pooler_output
    for ours, theirs, v in zip(seen, expected, views, strict=True):
        assert len(ours) == len(model.placeholder(v.layout, "."))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert np.ptp(expected[0].numpy()) > 0.3  # the comparison is about something


@pytest.mark.parametrize("case", ["llava_next"], indirect=True)
def test_features_in_bfloat16(case):
    _, model, params, views, seen = case
    found = features(params, model, views[0].pixels, views[0].layout, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), seen[0], atol=0.03 * np.abs(seen[0]).max())


@pytest.mark.parametrize("case", TEXTS, indirect=True)
@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_logits_of_texts_with_pictures(case, side):
    reference, model, params, views, seen = case
    compare_logits(reference, in_order(views), params[TEXT], model.text, seen, side)


@pytest.mark.parametrize("case", TEXTS, indirect=True)
def test_greedy_texts(case):
    reference, model, params, views, seen = case
    compare_greedy(reference, in_order(views), params[TEXT], model.text, seen)
