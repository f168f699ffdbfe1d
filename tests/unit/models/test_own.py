"""A user's own trees and functions as models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jevomerge.models.own import leaf_paths, own_model

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(4, 2, rngs=rngs)])
        self.drop = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x):
        return self.rest[0](self.drop(nnx.relu(self.first(x))))


def test_an_nnx_module_computes_what_it_computed():
    net = Net(nnx.Rngs(0))
    model, params = own_model(net), nnx.state(net, nnx.Param)
    assert model.paths == ("first.bias", "first.kernel", "rest.0.bias", "rest.0.kernel")
    again = model.as_given(model.as_dict(params))
    np.testing.assert_array_equal(model.apply(again, X), net(X))


@pytest.mark.parametrize("whole", [False, True])
def test_a_linen_module_with_its_parameters_or_its_variables(whole):
    net = nn.Dense(4)
    variables = net.init(jax.random.key(0), X)
    params = variables if whole else variables["params"]
    model = own_model(net, params)
    np.testing.assert_array_equal(model.apply(params, X), net.apply(variables, X))
    assert model.paths == (("params.bias", "params.kernel") if whole else ("bias", "kernel"))


def test_a_plain_function_of_any_tree():
    tree = [jnp.ones((3, 2)), {"b": (jnp.zeros(2),)}]
    model = own_model(lambda p, x: x @ p[0] + p[1]["b"][0][None], tree)
    assert [s.path for s in model.specs] == ["0", "1.b.0"]
    assert jax.tree.structure(model.as_given(model.as_dict(tree))) == jax.tree.structure(tree)
    assert {model: 1}[model] == 1  # a static argument of jitted functions


def test_layers_are_stacked_where_that_is_said():
    tree = {"blocks": {"w": jnp.ones((4, 3, 2))}, "out": jnp.ones(2)}
    blocks, out = own_model(lambda p: p, tree, stacked={"blocks.*": 0}).specs
    assert (blocks.shape, blocks.stack, blocks.names()[3]) == ((3, 2), (("layer", 4),), "blocks.3.w")
    assert (out.shape, out.stack) == ((2,), ())
    assert own_model(lambda p: p, tree).specs[0].shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"n": jnp.arange(3)}, "n is int32; only floating-point"),
        ({"n": 1.0}, "n is float; only floating-point"),
        ({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, r"two leaves are called a\.b"),
        ({"a": {"0": jnp.ones(1)}, "a.0": {"c": jnp.ones(1)}}, r"two leaves are called a\.0, or one inside"),
    ],
)
def test_what_cannot_be_merged_is_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        own_model(lambda p: p, tree)


def test_another_tree_is_refused():
    model = own_model(lambda p: p, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="its tree is"):
        model.as_dict({"b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"a has shape \[3\], the model's \[2\]"):
        model.as_dict({"a": jnp.ones(3)})
    assert model.unlike(own_model(lambda p: p, {"a": jnp.ones(2)})) == {"the function": False}
    assert leaf_paths(nnx.state(Net(nnx.Rngs(1)), nnx.Param))[0] == list(own_model(Net(nnx.Rngs(0))).paths)
