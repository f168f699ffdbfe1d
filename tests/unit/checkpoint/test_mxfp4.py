"""Tensors of four bits against transformers' own conversion."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jevomerge.checkpoint.mxfp4 import unpacked
from jevomerge.checkpoint.safetensors_file import read_header
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from tests.families import make

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


def test_a_folder_of_four_bits_is_read_and_written_as_sixteen(tmp_path):
    make("gpt_oss", tmp_path, torch.bfloat16)
    tensors, packed = load_file(tmp_path / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, rows = tensors.pop(name).shape
        blocks, scales = (experts, rows, inside // 32, 16), (experts, rows, inside // 32)
        packed[name] = RNG.integers(0, 256, blocks, np.uint8), RNG.integers(110, 140, scales, np.uint8)
        tensors |= {f"{name}_blocks": packed[name][0], f"{name}_scales": packed[name][1]}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    checkpoint = Checkpoint(tmp_path)
    assert len(packed) == 8
    for name, pair in packed.items():
        expected = convert_moe_packed_tensors(*map(torch.tensor, pair)).float().numpy()
        np.testing.assert_array_equal(checkpoint.tensor(name).astype(np.float32), expected)
    assert "quantization_config" not in checkpoint.model.files["config.json"]
    assert checkpoint.dtype() == "bfloat16"
    assert checkpoint.fingerprint() == Checkpoint(tmp_path).fingerprint()
    assert not [note for note in checkpoint.notes if "quantization" in note]
