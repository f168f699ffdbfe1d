"""Qwen2.5-VL against transformers: tower, features, positions, logits, greedy texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from jevomerge.models.fields import Fields
from jevomerge.models.qwen2_5_vl.qwen2_5_vl import Qwen25VL
from jevomerge.models.qwen2_5_vl.tower import look
from jevomerge.models.vision.seeing import features
from jevomerge.models.vision.specs import TEXT, TOWER
from tests.seeing import IMAGE, ROWS, compare_greedy, compare_logits, load, make, picture, tensors_of, texts

SIZES = [(64, 64), (20, 100), (30, 50), (20, 100)]  # in windows of 28 pixels: cut off on two sides, on one, on none
VALUES = {"patch_size": 7, "min_pixels": 784, "max_pixels": 5000}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model of transformers, ours with its parameters, the pictures' views and features."""
    folder = tmp_path_factory.mktemp("qwen")
    reference = make("qwen2_5_vl", folder)
    tensors = tensors_of(folder)
    fields = Fields(json.loads((folder / "config.json").read_text()), "config.json")
    model = Qwen25VL.read(fields).stored_as(tensors)
    assert not fields.unread()
    assert {name for spec in model.specs for name in spec.names()} == tensors.keys()
    processor = model.processor(VALUES | {"image_processor_type": "Qwen2VLImageProcessor"})
    views = [model.views(picture(*size), processor) for size in SIZES]
    params = load(model.specs, tensors)
    return reference, model, params, views, [features(params, model, v.pixels, v.layout) for v in views]


def inputs(which):
    """What transformers' own model is given of these pictures."""
    return dict(Qwen2VLImageProcessorPil(**VALUES)([picture(*SIZES[i]) for i in which], return_tensors="pt"))


def in_order(case, side):
    """Of all texts, with which tokens are pictures'; and the positions that transformers makes of them."""
    reference, _, _, _, seen = case
    given = inputs([i for row in ROWS for i in row])
    tokens, valid = (torch.tensor(x, dtype=torch.long) for x in texts(list(map(len, seen)), side))
    given["mm_token_type_ids"] = (tokens == IMAGE).int()
    positions, _ = reference.model.get_rope_index(
        tokens, given["mm_token_type_ids"], given["image_grid_thw"], attention_mask=valid
    )
    return given, positions


def shifts(case):
    _, model, _, views, _ = case
    return [model.shifts([views[i].layout for i in row]) for row in ROWS]


def test_hidden_states_of_the_tower(case):
    reference, model, params, views, _ = case
    for i, view in enumerate(views[:2]):
        rows, columns = view.layout
        pixels, grid = inputs([i]).values()
        with torch.no_grad():
            theirs = reference.model.visual(pixels, grid_thw=grid).last_hidden_state
        order = torch.argsort(get_vision_window_index(grid, 2, 28, 7)[0])
        theirs = theirs.reshape(-1, 4, 32)[order].reshape(rows // 2, columns // 2, 2, 2, 32).transpose(1, 2)
        ours = jax.jit(look, static_argnums=(1, 3))(params[TOWER], model.vision, view.pixels, view.layout)
        np.testing.assert_allclose(ours, theirs.reshape(rows, columns, 32).numpy(), rtol=1e-5, atol=1e-5)


def test_features_of_pictures(case):
    reference, model, _, views, seen = case
    with torch.no_grad():
        given = inputs(range(len(SIZES)))
        expected = reference.model.get_image_features(**given, return_dict=True).pooler_output
    for ours, theirs, v in zip(seen, expected, views, strict=True):
        assert model.placeholder(v.layout, ".") == f"<|vision_start|>{'.' * len(ours)}<|vision_end|>"
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert np.ptp(expected[0].numpy()) > 0.3  # the comparison is about something


def test_features_are_computed_in_the_dtype_of_pixels(case):
    _, model, params, views, seen = case
    found = jax.eval_shape(lambda x: model.features(params, x, views[0].layout), views[0].pixels.astype(jnp.bfloat16))
    assert (found.dtype, found.shape) == (jnp.bfloat16, seen[0].shape)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_texts_with_pictures(case, side):
    reference, model, params, _, seen = case
    given, positions = in_order(case, side)
    compare_logits(reference, given | {"position_ids": positions}, params[TEXT], model.text, seen, side, shifts(case))


def test_greedy_texts(case):
    reference, model, params, _, seen = case
    given, _ = in_order(case, "left")
    compare_greedy(reference, given, params[TEXT], model.text, seen, shifts(case))
