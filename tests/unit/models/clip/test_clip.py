"""config.json of CLIP against transformers."""

import dataclasses

import pytest
from transformers import CLIPConfig

from jevomerge.models.clip.clip import Clip
from jevomerge.models.clip.config import TextConfig
from jevomerge.models.fields import Fields
from jevomerge.models.vision.config import VisionConfig

FILES = {
    "nothing": {},
    "all": {
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "gelu", "eos_token_id": 2},
        "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14, "layer_norm_eps": 1e-6},
    },
    "old": {  # as the first that were published
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "gelu", "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 6},
        "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu"},
        "vision_config_dict": None,
    },
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_says_is_what_transformers_reads(name):
    ours, theirs = Clip.read(Fields({"model_type": "clip", **FILES[name]}, "config.json")), CLIPConfig(**FILES[name])
    assert ours.width == theirs.projection_dim
    for kind, mine, its in (
        (TextConfig, ours.text, theirs.text_config),
        (VisionConfig, ours.vision, theirs.vision_config),
    ):
        names = {f.name for f in dataclasses.fields(kind)} - {"clip", "projection_dim"}
        assert {n: getattr(mine, n) for n in names} == {n: getattr(its, n) for n in names}
