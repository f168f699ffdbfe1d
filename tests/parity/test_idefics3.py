"""Idefics3 and SmolVLM against transformers: tower, features, logits, greedy texts."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from jevomerge.models.fields import Fields
from jevomerge.models.idefics3.idefics3 import Idefics3
from jevomerge.models.vision.seeing import features
from jevomerge.models.vision.specs import TEXT, TOWER
from jevomerge.models.vision.tower import look
from tests.seeing import ROWS, compare_greedy, compare_logits, load, make, picture, tensors_of

SIZES = [(30, 50), (64, 64), (20, 100), (100, 7)]
VALUES = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 56},
    "max_image_size": {"longest_edge": 28},
}


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def case(request, tmp_path_factory):
    """A model of transformers, ours with its parameters, the pictures' views and features."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = make(request.param, folder)
    tensors = tensors_of(folder)
    fields = Fields(json.loads((folder / "config.json").read_text()), "config.json")
    model = Idefics3.read(fields).stored_as(tensors)
    assert not fields.unread()
    assert {name for spec in model.specs for name in spec.names()} == tensors.keys()
    processor = model.processor(VALUES)
    views = [model.views(picture(*size), processor) for size in SIZES]
    params = load(model.specs, tensors)
    return reference, model, params, views, [features(params, model, v.pixels, v.layout) for v in views]


def inputs(views, rows):
    """What transformers' own model is given: the views of each text's pictures, and black ones after them."""
    pixels = [[torch.tensor(view) for i in row for view in views[i].pixels] for row in rows]
    most = max(map(len, pixels))
    black = torch.zeros(views[0].pixels.shape[1:])
    return {"pixel_values": torch.stack([torch.stack([*row, *[black] * (most - len(row))]) for row in pixels])}


def test_hidden_states_of_the_tower(case):
    reference, model, params, views, _ = case
    with torch.no_grad():
        out = reference.model.vision_model(torch.tensor(views[0].pixels), output_hidden_states=True)
    layers = tuple(range(model.vision.num_hidden_layers + 1))
    found = jax.jit(look, static_argnums=(1, 3))(params[TOWER], model.vision, views[0].pixels, layers)
    for ours, theirs in zip(found, out.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_features_of_pictures(case):
    reference, model, _, views, seen = case
    with torch.no_grad():
        given = inputs(views, [[i] for i in range(len(SIZES))])
        expected = reference.model.get_image_features(**given, return_dict=True).pooler_output
    theirs = torch.cat([x.flatten(0, -2) for x in expected]).numpy()
    for ours, v in zip(seen, views, strict=True):
        assert len(ours) == model.placeholder(v.layout, "<image>").count("<image>")
    np.testing.assert_allclose(np.concatenate(seen), theirs, atol=1e-5)
    assert np.ptp(theirs) > 0.3  # the comparison is about something


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_logits_of_texts_with_pictures(case, side):
    reference, model, params, views, seen = case
    compare_logits(reference, inputs(views, ROWS), params[TEXT], model.text, seen, side)


def test_greedy_texts(case):
    reference, model, params, views, seen = case
    compare_greedy(reference, inputs(views, ROWS), params[TEXT], model.text, seen)


@pytest.mark.parametrize("side", [26, 27, 32])
def test_positions_of_the_released_models_are_in_their_plain_order(side):
    """Which transformers finds from fractions in float32."""
    theirs = Idefics3VisionEmbeddings(Idefics3VisionConfig(hidden_size=4, image_size=2 * side, patch_size=2))
    with torch.no_grad():
        theirs.patch_embedding.weight.zero_()
        theirs.patch_embedding.bias.zero_()
        pixels = torch.zeros(1, 3, 2 * side, 2 * side)
        found = theirs(pixels, torch.ones(1, side, side, dtype=torch.bool))
    assert torch.equal(found[0], theirs.position_embedding.weight)
