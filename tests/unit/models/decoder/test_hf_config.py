"""config.json against transformers: what its classes make of a file is what we make of it."""

import dataclasses
import functools
import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import jevomerge.models
from jevomerge.errors import InputError
from jevomerge.models.decoder.hf_config import DEFAULTS
from jevomerge.models.families import FAMILIES, read_model
from jevomerge.schema import Notes
from tests.hub_configs import CONFIGS, GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3, YARN

SMALL = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 8,
}  # fmt: skip


NOPE = ("cohere2", "exaone4")  # families whose full layers know no positions
EPS = {"layer_norm_eps", "norm_epsilon", "norm_eps"}  # what families with another norm call it


def rotary(config):
    """{layer type: (angles per position, scale)} by transformers' own module."""
    kind = type(config)
    module = importlib.import_module(kind.__module__.replace("configuration", "modeling"))
    names = (kind.__name__.replace("Config", "RotaryEmbedding").replace("Text", text) for text in ("Text", ""))
    made = next(getattr(module, name) for name in names if hasattr(module, name))(config)
    if hasattr(made, "inv_freq"):
        return dict.fromkeys(("full_attention", "sliding_attention"), (made.inv_freq, made.attention_scaling))
    types = set(config.layer_types)
    return {t: (getattr(made, f"{t}_inv_freq"), getattr(made, f"{t}_attention_scaling")) for t in types}


def check(values):
    """Whether we and transformers read the same model; returns ours."""
    theirs = CONFIG_MAPPING[values["model_type"]](**json.loads(json.dumps(values)))
    model = read_model(values)
    ours, names = model.config, [f.name for f in dataclasses.fields(model.config)]
    same = {n for n in names if n not in ("kinds", "layer_kinds", "head_dim", "hidden_act", "logit_scale")}
    if theirs.model_type == "qwen3_5_moe_text":  # has no MLP of its own
        same.discard("intermediate_size")
    for name in same & vars(theirs).keys():
        if getattr(theirs, name) is not None:  # nothing, where it follows from others
            assert getattr(ours, name) == getattr(theirs, name), name
    for name in EPS & vars(theirs).keys():
        assert ours.rms_norm_eps == getattr(theirs, name)
    size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == size
    assert ours.num_hidden_layers == theirs.num_hidden_layers
    assert model.max_length == theirs.max_position_embeddings
    types = getattr(theirs, "layer_types", None)
    window = getattr(theirs, "sliding_window", None)
    types = types or ["full_attention" if window is None else "sliding_attention"] * theirs.num_hidden_layers
    found = rotary(theirs)
    turning = getattr(theirs, "no_rope_layers", None) or [True] * len(types)
    for kind, name, turns in zip(ours.layer_kinds, types, turning, strict=True):
        kind = ours.kinds[kind]
        assert kind.window == (window if name == "sliding_attention" else None)
        if kind.mixer == "delta":
            assert name == "linear_attention"
            continue
        if kind.rope is None:  # the models' own code says it
            assert not turns or (theirs.model_type in NOPE and window is not None and name == "full_attention")
            continue
        angles, scale = found[name]
        np.testing.assert_allclose(kind.rope.inverse_frequencies(size), angles.numpy(), rtol=2e-6)
        cos, _ = kind.rope.tables(np.zeros(1, np.int32), size)
        np.testing.assert_allclose(cos, scale, rtol=1e-6)
    return ours


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_as_people_have_them(name):
    check(CONFIGS[name])


# The defaults of Gemma 4 are a model that is not read, those of GLM-4.5 turn halves of 21 numbers.
WHOLE = [family for family in FAMILIES if family not in ("gemma4_text", "glm4_moe")]


@pytest.mark.parametrize("family", WHOLE)
def test_a_default_config_in_full_as_a_diff_and_in_the_old_spelling(family):
    made = CONFIG_MAPPING[family]()
    full, sparse = json.loads(made.to_json_string(use_diff=False)), {"model_type": family}
    old = dict(full)
    rope = old.pop("rope_parameters")
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    theta, partial = (
        ("rotary_emb_base", "rotary_pct") if family == "gpt_neox" else ("rope_theta", "partial_rotary_factor")
    )
    old |= {theta: rope["rope_theta"], "rope_scaling": None, "torch_dtype": old.pop("dtype", None)}
    if rope.get("rope_type", rope.get("type")) != "default":
        old["rope_scaling"] = rope
    if "partial_rotary_factor" in rope:
        old[partial] = rope["partial_rotary_factor"]
    old |= {"rope_local_base_freq": local["rope_theta"]} if local else {}
    notes = Notes()
    models = [read_model(v, notes=notes) for v in (full, json.loads(made.to_json_string()), sparse, old)]
    assert len({m.config for m in models}) == 1
    assert not list(notes)
    check(full)
    check(sparse)


NO_RMS = dict.fromkeys(("olmo", "cohere", "starcoder2", "nemotron"), ("rms_norm_eps",))
UNASKED = NO_RMS | dict.fromkeys(
    ("cohere2", "stablelm", "gpt_neox"), ("rms_norm_eps", "head_dim", "num_key_value_heads")
)


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
        {"rope_scaling": {"type": "linear", "factor": 3}, "rope_theta": 7000},
        {"rope_scaling": YARN | {"beta_fast": 16, "truncate": True}, "max_position_embeddings": 77},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 2}},
        {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 0.01, "tie_word_embeddings": True},
        {"tie_word_embeddings": False, "use_sliding_window": True},
    ],
)
def test_changes_of_a_default_config(family, changes):
    scaling = changes.get("rope_scaling") or changes.get("rope_parameters") or {}
    if family == "phi3" and scaling:
        pytest.skip("Phi scales in another way")
    changes = {k: v for k, v in changes.items() if k not in UNASKED.get(family, ())}
    if family.endswith("_moe") and "use_sliding_window" in changes:
        pytest.skip("refused: see below")
    if family in ("ministral", "mixtral", "hunyuan_v1_dense"):  # whose yarn in transformers wants it
        changes = {"head_dim": 8} | changes
    if family in ("gemma3_text", "olmo3") and "rope_parameters" in changes:
        changes = {"rope_parameters": {"full_attention": changes["rope_parameters"]}}
    check({"model_type": family} | SMALL | changes)


def test_a_rope_that_is_spelled_twice_is_the_old_one():
    twice = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}
    assert check(LLAMA | twice).kinds[0].rope.factor == 2.0


def test_phis_place_for_the_first_length():
    outside = {"original_max_position_embeddings": 512, "rope_scaling": YARN}
    theirs = CONFIG_MAPPING["llama"](**LLAMA | outside)
    angles = rotary(theirs)["full_attention"][0]
    ours = read_model(LLAMA | outside).config.kinds[0].rope
    np.testing.assert_allclose(ours.inverse_frequencies(128), angles.numpy(), rtol=2e-6)


INERT = {
    "use_mrope": False, "min_length": 0, "max_length": 20, "repetition_penalty": 1.0, "num_beams": 1, "top_k": 50,
    "early_stopping": False, "torchscript": False, "use_bfloat16": False, "pruned_heads": {}, "tf_legacy_loss": False,
    "model_max_length": 4096, "num_beam_groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0, "top_p": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "typical_p": 1.0,
    "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False, "temperature": 1.0,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False, "suppress_tokens": None,
    "exponential_decay_length_penalty": None, "begin_suppress_tokens": None, "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False, "sep_token_id": None, "decoder_start_token_id": None, "is_decoder": False,
    "add_cross_attention": False, "is_encoder_decoder": False, "chunk_size_feed_forward": 0, "do_sample": False,
    "output_attentions": False, "output_hidden_states": False, "return_dict": True, "problem_type": None,
    "task_specific_params": None, "finetuning_task": None, "prefix": None, "tokenizer_class": "LlamaTokenizer",
    "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "num_experts": 0, "logit_scale": 1.0,
    "embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_implementation": "eager", "attention_chunk_size": None,
    "quantization_config": None, "partial_rotary_factor": 1.0, "max_sequence_length": 2048, "_flash_attn": True,
    "pretraining_tp": 4, "bos_token_id": 7, "classifier_dropout": 0.3, "mup_scale": 3.0,
    "architectures": None, "id2label": {"0": "A"}, "torch_dtype": "float16", "rope_interleaved": False,
}  # fmt: skip


@pytest.mark.parametrize("key", INERT)
def test_keys_that_change_nothing(key):
    assert check(LLAMA | {key: INERT[key]}) == read_model(LLAMA).config


def test_what_no_class_reads_is_noted_once_and_what_is_off_is_not():
    notes = Notes()
    read_model(LLAMA | INERT | {"mup_scale": 3.0, "tensor_model": "x"}, "m/config.json", notes)
    (note,) = notes
    assert note.startswith("m/config.json: model_max_length, max_window_layers, max_sequence_length, mup_scale, tensor")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LLAMA | {"hidden_act": "gelu"}, "`hidden_act: gelu` is not supported"),
        (GEMMA3 | {"hidden_activation": "relu"}, "`hidden_activation: relu` is not supported"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping: 50.0` is not supported"),
        (GEMMA3 | {"final_logit_softcapping": 30.0}, "`final_logit_softcapping: 30.0` is not supported"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "`use_bidirectional_attention: True` is not supported"),
        (GEMMA3 | {"sliding_window": None}, "there is no `sliding_window`"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "`partial_rotary_factor: 0.5` is not supported"),
        (LLAMA | {"per_layer_config": {"1": {"head_dim": 8}}}, "`per_layer_config: "),
        (LLAMA | {"sliding_window": 64}, "`sliding_window: 64` is not supported"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "`layer_types: "),
        (LLAMA | {"num_local_experts": 8}, "`num_local_experts: 8` is not supported"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 24}, "layer type `sliding_attention` is not supported"),
        (QWEN2 | {"layer_types": ["full_attention"] * 3}, "layer_types names 3 layers, not 24"),
        (QWEN3 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type `dynamic` is not supported"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_scaling: `factor` is missing"),
        (LLAMA | {"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "`partial_rotary_factor: 0.5` is not"),
        (GEMMA3 | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "an object each for full_attention"),
        (LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\); .* 16-bit model"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        (LLAMA | {"quantization_config": {"load_in_4bit": True}}, r"quantised \(bitsandbytes\)"),
        (LLAMA | {"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
        ({"model_type": "gemma4_text"}, "`hidden_size_per_layer_input: 256` is not supported"),
        (
            {
                "model_type": "gemma4_text",
                "hidden_size_per_layer_input": 0,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 5,
                "moe_intermediate_size": 8,
            },
            "top_k_experts",
        ),
        ({"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}, "num_kv_shared"),
        ({"model_type": "qwen3_moe", "use_sliding_window": True}, "`use_sliding_window: True` is not supported"),
        ({"model_type": "qwen3_moe", "num_experts_per_tok": 200}, "at most num_experts, 128"),
        ({"model_type": "qwen3_5_text", "layer_types": ["conv"] * 32}, "each linear_attention or full_attention"),
        ({"model_type": "phi3", "rope_scaling": {"type": "llama3"}}, "rope_type `llama3` is not supported"),
        ({"model_type": "glm", "partial_rotary_factor": 1.5}, "a share, at most 1"),
        ({"model_type": "cohere", "use_qk_norm": True}, "`use_qk_norm: True` is not supported"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "a list of 36 ones and zeros"),
        ({"model_type": "nemotron_h"}, "Mamba2"),
        ({"model_type": "gemma3n_text"}, "per-layer embeddings"),
        ({"model_type": "deepseek_v3"}, "latent attention"),
        ({"model_type": "llama4_text"}, "chunked attention"),
        (LLAMA | {"compression_config": {"format": "pack"}}, "quantised"),
    ],
)
def test_what_changes_the_function_is_refused_by_name(values, expected):
    with pytest.raises(InputError, match=expected):
        read_model(values)


NUMERIC = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "sliding_window",
]  # fmt: skip


@pytest.mark.parametrize("key", NUMERIC)
@pytest.mark.parametrize("value", ["64", [64], {}, 0, -1, True, float("nan"), float("inf"), 10**30])
def test_numbers_that_are_none(key, value):
    if value == 10**30 and key in ("rms_norm_eps", "rope_theta"):
        return
    with pytest.raises(InputError, match=f"`{key}: .*must be"):
        read_model(MISTRAL | {key: value})


@pytest.mark.parametrize("key", [key for key in NUMERIC if key not in ("rms_norm_eps", "rope_theta")])
def test_whole_numbers_have_no_fraction(key):
    with pytest.raises(InputError, match=f"`{key}: 64.0` must be a whole number"):
        read_model(MISTRAL | {key: 64.0})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LLAMA | {"rope_scaling": "linear"}, "`rope_scaling: linear` must be an object"),
        (LLAMA | {"rope_scaling": {"type": 3}}, "`rope_type: 3` must be a string"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling: `factor: 2` must be a number"),
        (GEMMA3 | {"rope_parameters": {"full_attention": "x"}}, "rope_parameters: `full_attention: x` must be an"),
        (LLAMA | {"tie_word_embeddings": "false"}, "`tie_word_embeddings: false` must be true or false"),
        (LLAMA | {"attention_bias": 1}, "`attention_bias: 1` must be true or false"),
        (QWEN2 | {"layer_types": "full_attention"}, "`layer_types: full_attention` must be a list of strings"),
        (LLAMA | {"num_key_value_heads": 7}, "`num_key_value_heads: 7` must be a divisor of num_attention_heads, 32"),
        (LLAMA | {"head_dim": 7}, "`head_dim: 7` must be an even number"),
        (LLAMA | {"num_hidden_layers": 10**9}, "`num_hidden_layers: 1000000000` must be a whole number from 1 to"),
        (LLAMA | {"hidden_act": ["silu"]}, "`hidden_act: "),
        (LLAMA | {"model_type": ["llama"]}, "`model_type: .* must be a string"),
        ({}, "`model_type` is missing"),
    ],
)
def test_values_of_another_type(values, expected):
    with pytest.raises(InputError, match=expected):
        read_model(values)


PATTERNS = {  # by their __post_init__
    "gemma3_text": {"sliding_window_pattern": 6}, "cohere2": {"sliding_window_pattern": 4},
    "gpt_neox": {"rotary_pct": 0.25}, "gemma4_text": {"global_head_dim": 512},
    **{family: {"eos_token_id": [151329, 151336, 151338]} for family in ("glm", "glm4")},
    **{family: {"full_attention_interval": 4} for family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_our_defaults_are_those_of_transformers(family):
    made = CONFIG_MAPPING[family]()
    fields = {f.name: f.default for f in dataclasses.fields(made)}
    made = {**(made.rope_parameters or {}), **vars(made)}  # what its __post_init__ makes of nothing
    fields |= {key: made[key] for key in ("rope_theta", "partial_rotary_factor") if key in DEFAULTS[family]}
    fields |= PATTERNS.get(family, {})
    assert {key: fields[key] for key in DEFAULTS[family]} == dict(DEFAULTS[family])
    # And those that we do not list are off: nothing that is read here has a default that we forgot.
    read = functools.reduce(set.union, (set(d) for d in DEFAULTS.values())) | {"attention_bias", "mlp_bias"}
    unlisted = {key: fields[key] for key in read - DEFAULTS[family].keys() if key in fields}
    assert all(value in (None, False) for value in unlisted.values())


def test_every_family_stands_in_the_table():
    table = (Path(jevomerge.models.__file__).parent / "README.md").read_text()
    named = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `")))
    assert sorted({*named} - {"model_type"}) == sorted(FAMILIES)
    assert len(FAMILIES) >= 34


LIKE_KNOWN_MODELS = {  # with as many parameters as these have, in billions
    "Qwen3-30B-A3B": ({"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128}, 30.53),
    "gpt-oss-20b": ({"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32}, 20.91),
    "Phi-4-mini": (
        {"model_type": "phi3", "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064,
         "partial_rotary_factor": 0.75, "tie_word_embeddings": True}, 3.84,
    ),
    "Gemma 2 9B": (
        {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "intermediate_size": 14336,
         "num_attention_heads": 16, "num_key_value_heads": 8}, 9.24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKE_KNOWN_MODELS)
def test_tables_of_known_models(name):
    values, billions = LIKE_KNOWN_MODELS[name]
    count = sum(math.prod(spec.leaf_shape) for spec in read_model(values).specs)
    assert round(count / 1e9, 2) == billions


def test_layers_that_a_config_cannot_name():
    """GLM-4.5 has its dense layers first; Gemma 4 names the sizes of its other heads once."""
    glm = read_model({"model_type": "glm4_moe", "head_dim": 128, "num_hidden_layers": 3})
    assert glm.resized([0, 0, 1]).files["config.json"]["first_k_dense_replace"] == 2
    stack = glm.resized([0, 1, 0])  # what a path leads through need not be one
    with pytest.raises(InputError, match="dense layers first"):
        stack.files
    gemma = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "num_hidden_layers": 6}
    written = json.loads(CONFIG_MAPPING["gemma4_text"](**gemma).to_json_string())
    model = read_model(written)
    assert model == read_model(gemma)
    again = model.resized([1, 0, 1, 0]).files["config.json"]
    assert read_model(again).config == model.resized([1, 0, 1, 0]).config
    assert "per_layer_config" not in again
