"""Qwen3.5 as people have it: in folders with eyes and with what predicts later tokens, and in paths."""

import json

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.models.model import apply, unembed
from jevomerge.models.route import Route
from jevomerge.problems.path import write_folded
from jevomerge.problems.stack import Stack
from tests.families import DELTA, SIZES, make

TOKENS = np.random.default_rng(0).integers(0, 90, (2, 12), dtype=np.int32)
VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
KINDS = ("image", "video", "vision_start", "vision_end")
MTP = {"mtp.fc.weight": np.ones((3, 2), np.float32), "mtp.layers.0.mlp.up_proj.weight": np.zeros(2, np.float32)}


def make_seeing(folder):
    torch.manual_seed(3)
    ids = {f"{kind}_token_id": 90 + i for i, kind in enumerate(KINDS)}
    text = SIZES | DELTA | {"head_dim": 16, "mtp_num_hidden_layers": 1}
    config = CONFIG_MAPPING["qwen3_5"](text_config=text, vision_config=VISION, **ids)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | MTP, file, {"format": "pt"})


def logits(params, model, route=None):
    found, _ = apply(params, model, TOKENS, np.ones_like(TOKENS, bool), route=route)
    return np.asarray(unembed(params, model, found))


def test_a_text_model_is_merged_into_a_language_part(tmp_path):
    """One in bfloat16 that has neither eyes nor predictors, into a folder that has both, which stay as they are."""
    make_seeing(tmp_path / "seeing")
    make("qwen3_5", tmp_path / "text", torch.bfloat16, seed=1)
    models = [{"model": str(tmp_path / m), "parameters": {"weight": w}} for m, w in (("text", 1), ("seeing", 3))]
    jm.merge_folder({"merge_method": "linear", "models": models}, tmp_path / "out")
    seeing, out = (load_file(tmp_path / m / "model.safetensors") for m in ("seeing", "out"))
    parts = {"/".join(name.split(".")[:2]) for name in out if np.array_equal(out[name], seeing[name])}
    assert out.keys() == seeing.keys()
    assert {"model/visual", "mtp/fc", "mtp/layers"} <= parts
    assert not np.array_equal(out["lm_head.weight"], seeing["lm_head.weight"])
    assert out["lm_head.weight"].dtype == np.float32
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"all {len(MTP) + sum('visual' in n for n in out)} tensors are those of seeing, unchanged" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    source = Checkpoint(tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits(source.load(), source.model), expected, atol=1e-4, rtol=1e-4)


def test_a_path_through_hybrids_opens_in_transformers(tmp_path):
    """Exported with its scales folded into delta nets, attention and mixtures."""
    for i in range(2):
        make("qwen3_next", tmp_path / str(i), seed=i)
        path = tmp_path / str(i) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-12}))
    stack = Stack([Checkpoint(tmp_path / str(i)) for i in range(2)])
    route = Route.of([0, 5, 3, 1, 7, 6, 2], [0.9, -0.5, 1.2, -1.0, 0.8, 1.1, 0.7])
    (tmp_path / "out").mkdir()
    write_folded(tmp_path / "out", stack.model, stack.model.fold(route), stack.read, "float32")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits(stack.load(), stack.model, route), expected, atol=1e-4, rtol=1e-4)
