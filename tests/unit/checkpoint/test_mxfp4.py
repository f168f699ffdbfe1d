"""Tensors of four bits against transformers' own conversion."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jevomerge.checkpoint.mxfp4 import unpacked
from jevomerge.checkpoint.safetensors_file import read_header
from jevomerge.errors import InputError

RNG = np.random.default_rng(0)
BLOCKS, SCALES = RNG.integers(0, 256, (3, 10, 2, 16), np.uint8), RNG.integers(110, 140, (3, 10, 2), np.uint8)


def test_they_are_what_transformers_makes_of_them(tmp_path):
    save_file({"experts.up_blocks": BLOCKS, "experts.up_scales": SCALES, "x": np.ones(2)}, tmp_path / "m.safetensors")
    found = unpacked(read_header(tmp_path / "m.safetensors"))
    assert found.keys() == {"experts.up", "x"}
    expected = convert_moe_packed_tensors(torch.tensor(BLOCKS), torch.tensor(SCALES)).float().numpy()
    assert found["experts.up"].shape == expected.shape == (3, 64, 10)
    np.testing.assert_array_equal(found["experts.up"].read().astype(np.float32), expected)
    part = (slice(1, 3), slice(8, 40), slice(2, 7))
    np.testing.assert_array_equal(found["experts.up"].read(index=part).astype(np.float32), expected[part])


def test_blocks_without_their_scales(tmp_path):
    save_file({"up_blocks": BLOCKS, "up_scales": SCALES[:1]}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="up_blocks has no _scales that belong to it"):
        unpacked(read_header(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "part",
    [(slice(1, 2), slice(0, 10), slice(0, 2), slice(0, 16)), (slice(0, 3), slice(4, 6), slice(1, 2), slice(3, 9))],
)
def test_parts_of_tensors_of_many_axes(part, tmp_path):
    save_file({"x": BLOCKS}, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(read_header(tmp_path / "m.safetensors")["x"].read(index=part), BLOCKS[part])
