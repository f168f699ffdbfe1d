"""Where a text ends, against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jevomerge.models.clip import text
from jevomerge.models.clip.config import read_text
from jevomerge.models.diffusion.parts import specs
from jevomerge.models.fields import Fields
from jevomerge.models.tree import Tree
from tests.diffusion import load


@pytest.mark.parametrize("end", [2, 9])  # 2: what old files say, whatever the tokenizer's is
def test_the_end_of_a_text(end):
    sizes = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "projection_dim": 4}
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, num_attention_heads=2, eos_token_id=end)).eval()
    config = read_text(Fields(theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}, "config.json"))
    tokens = np.array([[0, 11, 2, 9, 2, 9], [0, 9, 11, 2, 2, 9], [9, 2, 3, 3, 11, 11]], np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).text_embeds
    tree, ids = Tree(load(specs(config), theirs)), jnp.asarray(tokens)
    found = text.pooled(tree, config, ids, text.read(tree, config, ids, 0)[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(expected.numpy()) > 0.1
