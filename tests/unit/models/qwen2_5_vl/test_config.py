"""config.json of Qwen2.5-VL as it is found: flat, nested, both; as its decoder alone has it, and back again."""

import json

import numpy as np
import pytest
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

from jevomerge import InputError
from jevomerge.models.families import nesting_of, read_model, read_seeing
from jevomerge.models.fields import Fields
from jevomerge.models.qwen2_5_vl.qwen2_5_vl import Qwen25VL
from jevomerge.schema import Notes
from tests.seeing import QWEN, TEXT

VISION_3B = {
    "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
    "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
}  # fmt: skip
FLAT = {  # the 3B's, as its authors wrote it
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": VISION_3B, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936,
}  # fmt: skip
NESTED = json.loads(Qwen2_5_VLConfig(**FLAT).to_json_string(use_diff=False))
BOTH = FLAT | {  # as transformers 4.52 and later saved it again
    "text_config": {k: v for k, v in FLAT.items() if k not in ("vision_config", "architectures")}
    | {"model_type": "qwen2_5_vl_text", "rope_scaling": {"type": "default", "rope_type": "default",
                                                         "mrope_section": [16, 24, 24]}},
}  # fmt: skip
SPARSE = {"model_type": "qwen2_5_vl", "text_config": {"num_hidden_layers": 2, "hidden_size": 3584,
                                                      "num_attention_heads": 28, "num_key_value_heads": 4}}  # fmt: skip
YARN = FLAT | {
    "rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4,
                     "original_max_position_embeddings": 32768},
}  # fmt: skip
CONFIGS = {"flat": FLAT, "nested": NESTED, "both": BOTH, "sparse": SPARSE, "yarn": YARN}
QWEN2 = {"model_type": "qwen2", "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 36,
         "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936}  # fmt: skip


def same(model, whole):
    """Whether a decoder is what transformers takes a config.json for."""
    ours, theirs = model.config, whole.text_config
    assert ours.tie_word_embeddings == whole.tie_word_embeddings
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key
    (kind,), rope = ours.kinds, theirs.rope_parameters
    assert (kind.rope.theta, kind.rope.rope_type) == (rope["rope_theta"], rope["rope_type"])
    assert (kind.window, model.max_length) == (None, theirs.max_position_embeddings)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_is_read_as_transformers_reads_it(name):
    values, notes = CONFIGS[name], Notes()
    alone = nesting_of(values).alone(values, "config.json")
    theirs = Qwen2_5_VLConfig(**json.loads(json.dumps(values)))
    same(read_model(alone, notes=notes), theirs)
    assert not list(notes)
    seeing = read_seeing(values)
    assert seeing.text == read_model(alone)
    assert seeing.sections == tuple(theirs.text_config.rope_parameters.get("mrope_section", [16, 24, 24]))


DECODERS = {
    "bare": QWEN2,  # without that for which the two classes take different values
    "old": QWEN2 | {"rms_norm_eps": 1e-3, "rope_theta": 7e5, "rope_scaling": None, "tie_word_embeddings": True},
    "new": QWEN2 | {"rope_parameters": {"rope_theta": 7e5, "rope_type": "default"}},
    "yarn": QWEN2 | {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 7e5},
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_another_decoder_takes_its_place(name, decoder):
    values, text = CONFIGS[name], DECODERS[decoder]
    nesting = nesting_of(values)
    again = nesting.around(values, text)
    assert read_model(nesting.alone(again, "")).config == read_model(text).config
    theirs = Qwen2_5_VLConfig(**json.loads(json.dumps(again)))
    same(read_model(text), theirs)
    assert theirs.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert (theirs.image_token_id, theirs.vision_config.depth) == (151655, 32)
    assert ("text_config" in again) == ("text_config" in values)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_decoder_in_its_place_is_the_same_model(name):
    values = CONFIGS[name]
    nesting = nesting_of(values)
    again = nesting.around(values, nesting.alone(values, ""))
    first, second = (json.loads(Qwen2_5_VLConfig(**json.loads(json.dumps(v))).to_json_string(use_diff=False))
                     for v in (values, again))  # fmt: skip
    for config in (first, second):
        del config["text_config"]["dtype"]  # it is the folder's that counts
        config["text_config"]["rope_parameters"].pop("type", None)
        config["text_config"]["rope_parameters"].setdefault("mrope_section", [16, 24, 24])
    assert {k: second["text_config"].get(k) for k in first["text_config"]} == first["text_config"]
    assert first["vision_config"] == second["vision_config"]


def test_how_large_the_released_3b_is():
    model = read_seeing(FLAT)
    assert sum(int(np.prod(s.leaf_shape)) for s in model.specs) == 3_754_622_976  # Qwen2.5-VL-3B's safetensors
    assert model.placeholder((36, 52), ".").count(".") == 18 * 26


BASE = {"model_type": "qwen2_5_vl", "vision_config": QWEN, "text_config": TEXT | {
    "model_type": "qwen2_5_vl_text", "rope_scaling": {"mrope_section": [1, 2, 3]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vision_config": QWEN | {"num_heads": 3}}, "hidden_size: 32` must be a multiple of 4 x num_heads, 3"),
        ({"vision_config": QWEN | {"window_size": 13}}, "window_size: 13` must be at least 2 patches of 7"),
        ({"vision_config": QWEN | {"fullatt_block_indexes": [3]}}, "fullatt_block_indexes: [3]`: the tower has 3"),
        ({"vision_config": QWEN | {"out_hidden_size": 50}}, "out_hidden_size: 50` is not the hidden_size of the dec"),
        ({"vision_config": QWEN | {"in_channels": 1}}, "in_channels: 1"),
        ({"vision_config": QWEN | {"depth": "3"}}, "vision_config: `depth: 3` must be"),
        ({"text_config": TEXT | {"rope_scaling": {"mrope_section": [2, 2]}}}, "`mrope_section: [2, 2]` must be three"),
        ({"text_config": TEXT | {"rope_scaling": None}}, "all 6 of a head"),
        ({"text_config": [3]}, "text_config: [3]` must be an object"),
        ({"image_token_id": "<image>"}, "image_token_id: <image>` must be a whole number"),
    ],
)
def test_what_is_not_supported_is_refused(values, words):
    with pytest.raises(InputError, match=r"^config\.json") as caught:
        Qwen25VL.read(Fields(BASE | values, "config.json"))
    assert words in str(caught.value)


def test_a_processor_of_other_patches_is_refused():
    with pytest.raises(InputError, match="are not those of the model's tower, 7, 2 and 2"):
        read_seeing(BASE).processor({"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14})
