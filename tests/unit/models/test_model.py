"""How the features of pictures get into texts."""

import jax.numpy as jnp
import numpy as np

from jevomerge.models.model import Pictures

TOKENS = np.array([[7, 9, 9, 3, 9], [4, 5, 6, 7, 8], [9, 9, 2, 2, 2]], np.int32)


def test_features_take_the_places_of_their_token_in_order():
    rng = np.random.default_rng(0)
    x, features = (rng.normal(size=(3, n, 4)).astype(np.float32) for n in (5, 3))
    expected = x.copy()
    for row, texts in enumerate(TOKENS):
        for feature, at in enumerate(np.flatnonzero(texts == 9)):
            expected[row, at] = features[row, feature]
    found = Pictures(jnp.asarray(features), jnp.asarray(9, jnp.int32)).place(jnp.asarray(x), jnp.asarray(TOKENS))
    np.testing.assert_array_equal(found, expected)


def test_too_few_features_do_not_pass_in_silence():
    place = Pictures(jnp.ones((3, 2, 4)), jnp.asarray(9, jnp.int32)).place
    found = np.asarray(place(jnp.zeros((3, 5, 4)), jnp.asarray(TOKENS)))
    assert np.isnan(found[0, 4]).all()
    assert np.isnan(found).sum() == 4


def test_a_text_goes_on_behind_the_largest_turn_of_a_picture():
    """Three features in the place of tokens 1, 2 and 4: those after them are turned as far as their largest pair."""
    shifts = jnp.asarray(np.array([[[0, 0], [-1, 0], [-4, -2]]] * 3, np.int32))
    pictures = Pictures(jnp.ones((3, 3, 4)), jnp.asarray(9, jnp.int32), shifts)
    found = pictures.shift(jnp.asarray(TOKENS))
    np.testing.assert_array_equal(found[0], [[0, 0], [0, 0], [-1, 0], [0, 0], [-4, -2]])
    np.testing.assert_array_equal(found[1], np.zeros((5, 2)))
    np.testing.assert_array_equal(found[2], [[0, 0], [-1, 0], [0, 0], [0, 0], [0, 0]])
    assert Pictures(pictures.features, pictures.token).shift(jnp.asarray(TOKENS)) is None
