"""config.json against transformers: what its classes make of a file is what we make of it."""

import dataclasses
import functools
import importlib
import json

import numpy as np
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jevomerge.errors import InputError
from jevomerge.models.decoder.hf_config import DEFAULTS
from jevomerge.models.families import FAMILIES, read_model
from jevomerge.schema import Notes
from tests.hub_configs import CONFIGS, GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3, YARN

SMALL = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 8,
}  # fmt: skip


def rotary(config):
    """{layer type: (angles per position, scale)} by transformers' own module."""
    kind = type(config)
    module = importlib.import_module(kind.__module__.replace("configuration", "modeling"))
    made = getattr(module, kind.__name__.replace("TextConfig", "Config").replace("Config", "RotaryEmbedding"))(config)
    if hasattr(made, "inv_freq"):
        return dict.fromkeys(("full_attention", "sliding_attention"), (made.inv_freq, made.attention_scaling))
    types = set(config.layer_types)
    return {t: (getattr(made, f"{t}_inv_freq"), getattr(made, f"{t}_attention_scaling")) for t in types}


def check(values):
    """Whether we and transformers read the same model; returns ours."""
    theirs = CONFIG_MAPPING[values["model_type"]](**json.loads(json.dumps(values)))
    model = read_model(values)
    ours, names = model.config, [f.name for f in dataclasses.fields(model.config)]
    same = {n for n in names if n not in ("kinds", "layer_kinds", "head_dim", "hidden_act", "qk_norm", "embed_scale")}
    for name in same & vars(theirs).keys():
        assert getattr(ours, name) == getattr(theirs, name), name
    size = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == size
    assert ours.num_hidden_layers == theirs.num_hidden_layers
    assert model.max_length == theirs.max_position_embeddings
    types = getattr(theirs, "layer_types", None)
    window = getattr(theirs, "sliding_window", None)
    types = types or ["full_attention" if window is None else "sliding_attention"] * theirs.num_hidden_layers
    found = rotary(theirs)
    for kind, name in zip(ours.layer_kinds, types, strict=True):
        kind = ours.kinds[kind]
        assert kind.window == (window if name == "sliding_attention" else None)
        angles, scale = found[name]
        np.testing.assert_allclose(kind.rope.inverse_frequencies(size), angles.numpy(), rtol=2e-6)
        cos, _ = kind.rope.tables(np.zeros(1, np.int32), size)
        np.testing.assert_allclose(cos, scale, rtol=1e-6)
    return ours


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_as_people_have_them(name):
    check(CONFIGS[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_default_config_in_full_as_a_diff_and_in_the_old_spelling(family):
    made = CONFIG_MAPPING[family]()
    full, sparse = json.loads(made.to_json_string(use_diff=False)), {"model_type": family}
    old = dict(full)
    rope = old.pop("rope_parameters")
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    old |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": old.pop("dtype", None)}
    old |= {"rope_local_base_freq": local["rope_theta"]} if local else {}
    notes = Notes()
    models = [read_model(v, notes=notes) for v in (full, json.loads(made.to_json_string()), sparse, old)]
    assert len({m.config for m in models}) == 1
    assert not list(notes)
    check(full)
    check(sparse)


@pytest.mark.parametrize("family", FAMILIES)
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
    if family == "gemma3_text" and "rope_parameters" in changes:
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


@pytest.mark.parametrize("family", FAMILIES)
def test_our_defaults_are_those_of_transformers(family):
    made = CONFIG_MAPPING[family]()
    fields = {f.name: f.default for f in dataclasses.fields(made)}
    fields |= {"sliding_window_pattern": 6} if family == "gemma3_text" else {}  # by its __post_init__
    assert {key: fields[key] for key in DEFAULTS[family]} == dict(DEFAULTS[family])
    # And those that we do not list are off: nothing that is read here has a default that we forgot.
    read = functools.reduce(set.union, (set(d) for d in DEFAULTS.values())) | {"attention_bias", "mlp_bias"}
    unlisted = {key: fields[key] for key in read - DEFAULTS[family].keys() if key in fields}
    assert all(value in (None, False) for value in unlisted.values())
