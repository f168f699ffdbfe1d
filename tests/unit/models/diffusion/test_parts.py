"""Tables of the parts of SDXL as published: names and shapes by diffusers and transformers on the meta device."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jevomerge.models.diffusion.parts import read_config, shapes, specs
from jevomerge.models.diffusion.pipeline import Pipeline
from jevomerge.models.diffusion.unet import Condition, denoise
from jevomerge.models.specs import heads_of, shardings, unflatten
from jevomerge.models.tree import Tree
from jevomerge.schema import Notes
from tests.diffusion import PUBLISHED, SDXL
from tests.unit.devices.test_mesh import mesh_of


def theirs(part, values):
    with torch.device("meta"):
        if part == "text_encoder_2":
            return CLIPTextModelWithProjection(CLIPTextConfig(**values))
        return (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(values)


@pytest.mark.parametrize(
    ("part", "parameters"), [("unet", 2_567_463_684), ("vae", 83_653_863), ("text_encoder_2", 694_659_840)]
)
def test_tables_of_sdxl(part, parameters):
    notes, values = Notes(), PUBLISHED[f"{part}/config.json"]
    ours = shapes(read_config(part, values, "config.json", notes))
    assert ours == {name: tuple(p.shape) for name, p in theirs(part, values).state_dict().items()}
    assert sum(map(math.prod, ours.values())) == parameters
    assert not list(notes)


def test_what_stands_in_a_stack_and_in_a_component():
    table = specs(read_config("unet", PUBLISHED["unet/config.json"], "config.json"))
    stacks = {spec.block: spec.leading for spec in table if spec.block}
    assert len(stacks) == 11
    assert stacks["up_blocks.0.attentions.2.transformer_blocks"] == (10,)
    count = {c: sum(s.count for s in table if s.component == c) for c in {s.component for s in table}}
    assert count == {
        "self_attention": 350,  # 70 blocks, 4 matrices and a bias; with the next Sakana's group `attn`, of 700
        "cross_attention": 350,
        "mlp": 280,
        "norms": 512,
        "embeddings": 42,
        "conv": 146,
    }


def test_sdxl_as_published():
    model = Pipeline.read(PUBLISHED)
    assert (model.pooled_from, model.zeros_for_empty) == (2, True)
    assert model.latents(1024, 768) == (128, 96, 4)
    assert len(model.specs) < 1000  # leaves: blocks of a transformer are one
    assert sum(s.count for s in model.specs) == 1680 + 248 + 196 + 517
    assert {s.template.split(".")[0] for s in model.specs} == {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_a_unet_may_be_split_over_devices():
    """By what its matrices and filters make; it says the same."""
    config = read_config("unet", json.loads(json.dumps(SDXL)), "config.json")
    table, mesh, rng = specs(config), mesh_of(1, 2), np.random.default_rng(0)
    leaves = {s.path: (0.3 * rng.standard_normal(s.leaf_shape)).astype(np.float32) for s in table}
    x = jnp.asarray(rng.standard_normal((1, 8, 8, config.in_channels)), jnp.float32)
    told = Condition(jnp.ones((1, 3, 80)), jnp.ones((1, 40)), jnp.ones((1, 6)))

    def run(where):
        params = unflatten({path: jax.device_put(leaf, where.get(path)) for path, leaf in leaves.items()})
        return jax.jit(lambda params: denoise(Tree(params), config, x, jnp.float32(9), told))(params)

    split = shardings(mesh, table)
    assert sum("model" in where.spec for where in split.values()) > 0.9 * len(split)
    assert heads_of(table) % 8 == 0
    np.testing.assert_allclose(run(split), run({}), rtol=1e-4, atol=1e-4)
