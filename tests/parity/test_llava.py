"""LLaVA-1.5 and LLaVA-NeXT against transformers: tower, features, logits, greedy texts."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jevomerge.models.fields import Fields
from jevomerge.models.llava.llava import Llava
from jevomerge.models.model import Pictures, apply, unembed
from jevomerge.models.vision.seeing import features
from jevomerge.models.vision.specs import TEXT, TOWER
from jevomerge.models.vision.tower import look
from tests.seeing import IMAGE, MODELS, PAD, PINPOINTS, load, make, picture, tensors_of

SIZES = [(30, 50), (64, 64), (20, 100), (100, 7)]
ROWS = [[0], [], [3, 2], [1]]  # which pictures each text has
ORDER = [i for row in ROWS for i in row]
NEW = 6


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A model of transformers, ours with its parameters, and the pictures' views."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = make(request.param, folder)
    tensors = tensors_of(folder)
    fields = Fields(json.loads((folder / "config.json").read_text()), "config.json")
    model = Llava.read(fields).stored_as(tensors)
    fields.refuse_rest()
    edge = model.config.vision.image_size
    size = {"height": edge, "width": edge}
    kind = "LlavaNextImageProcessor" if model.config.pinpoints else "CLIPImageProcessor"
    values = {"image_processor_type": kind, "size": {"shortest_edge": edge}, "crop_size": size}
    processor = model.processor(values | ({"image_grid_pinpoints": PINPOINTS} if model.config.pinpoints else {}))
    views = [model.views(picture(*s), processor) for s in SIZES]
    return reference, model, load(model.specs, tensors), views


def look_of(reference, views, which):
    """What transformers' own model is given of these pictures."""
    pixels = [torch.tensor(views[i].pixels) for i in which]
    if views[0].layout is None:
        return {"pixel_values": torch.cat(pixels)}
    most = max(len(p) for p in pixels)
    padded = torch.stack([torch.cat([p, torch.zeros(most - len(p), *p.shape[1:])]) for p in pixels])
    return {"pixel_values": padded, "image_sizes": torch.tensor([SIZES[i] for i in which])}


def seen(pair):
    _, model, params, views = pair
    return [features(params, model, v.pixels, v.layout) for v in views]


def texts(model, views, side):
    """Token rows of texts with pictures, padded: (B, T) tokens and validity, and the pictures in their order."""
    rng = np.random.default_rng(1)
    rows = []
    for pictures in ROWS:
        row = [0, *rng.integers(3, 80, 3)]
        for i in pictures:
            row += [IMAGE] * len(model.placeholder(views[i].layout, ".")) + list(rng.integers(3, 80, 4))
        rows.append(row)
    longest = max(map(len, rows))
    tokens, valid = np.full((len(rows), longest), PAD, np.int32), np.zeros((len(rows), longest), bool)
    for t, v, row in zip(tokens, valid, rows, strict=True):
        at = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        t[at], v[at] = row, True
    return tokens, valid


def pictures_of(pair):
    features = seen(pair)
    rows = [np.concatenate([features[i] for i in row]) if row else np.zeros((0, features[0].shape[1])) for row in ROWS]
    most = max(map(len, rows))
    padded = np.stack([np.pad(r, ((0, most - len(r)), (0, 0))).astype(np.float32) for r in rows])
    return Pictures(jnp.asarray(padded), jnp.asarray(IMAGE, jnp.int32))


@functools.partial(jax.jit, static_argnums=1)
def run(params, model, tokens, valid, pictures=None, cache=None):
    hidden, cache = apply(params, model, tokens, valid, cache, pictures=pictures)
    return unembed(params, model, hidden), cache


def test_hidden_states_of_the_tower(pair):
    reference, model, params, views = pair
    pixels, depth = views[0].pixels, model.config.vision.num_hidden_layers
    with torch.no_grad():
        expected = reference.model.vision_tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
    found = jax.jit(look, static_argnums=(1, 3))(params[TOWER], model.config.vision, pixels, tuple(range(depth + 1)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    one = jax.jit(look, static_argnums=(1, 3))(params[TOWER], model.config.vision, pixels, (depth - 1,))
    np.testing.assert_allclose(one[0], expected[-2].numpy(), atol=1e-5)


def test_features_of_pictures(pair):
    reference, model, _, views = pair
    with torch.no_grad():
        inputs = look_of(reference, views, range(len(SIZES)))
        expected = reference.model.get_image_features(**inputs, return_dict=True).pooler_output
    for ours, theirs, v in zip(seen(pair), expected, views, strict=True):
        assert len(ours) == len(model.placeholder(v.layout, "."))
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert np.ptp(expected[0].numpy()) > 0.3  # the comparison is about something


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_texts_with_pictures(pair, side):
    reference, model, params, views = pair
    tokens, valid = texts(model, views, side)
    with torch.no_grad():
        positions = torch.tensor(np.maximum(valid.cumsum(1) - 1, 0))
        expected = reference(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            position_ids=positions,
            **look_of(reference, views, ORDER),
        ).logits.numpy()
    found, _ = run(params[TEXT], model.text, tokens, valid, pictures_of(pair))
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)
    blind, _ = run(params[TEXT], model.text, tokens, valid)
    assert np.abs(blind - found)[valid].max() > 0.02  # the pictures are seen


def test_greedy_texts(pair):
    reference, model, params, views = pair
    tokens, valid = texts(model, views, "left")
    with torch.no_grad():
        expected = reference.generate(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            **look_of(reference, views, ORDER),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )[:, tokens.shape[1] :].numpy()
    cache = model.text.cache(len(tokens), tokens.shape[1] + NEW, jnp.float32)
    logits, cache = run(params[TEXT], model.text, tokens, valid, pictures_of(pair), cache)
    found = []
    for _ in range(NEW):
        ruled_out = jnp.where(jnp.arange(logits.shape[-1]) == 1, -jnp.inf, logits[:, -1])  # min_new_tokens
        found.append(np.asarray(jnp.argmax(ruled_out, axis=-1), np.int32))
        logits, cache = run(params[TEXT], model.text, found[-1][:, None], np.ones((len(tokens), 1), bool), None, cache)
    np.testing.assert_array_equal(np.stack(found, axis=1), expected)
