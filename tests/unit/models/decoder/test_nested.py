"""Decoders of larger models, whose configs leave out what their class knows."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jevomerge.models.decoder.nested import TextConfig, read_text
from jevomerge.models.fields import Fields


@pytest.mark.parametrize("given", [None, {}, {"model_type": "mistral"}, {"model_type": "qwen2"}])
def test_a_sparse_text_config_is_its_class_defaults(given):
    text = read_text(Fields({"text_config": given}, "config.json"), TextConfig({"model_type": "llama"}))
    theirs = CONFIG_MAPPING[(given or {}).get("model_type", "llama")]()
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(text.config, key) == getattr(theirs, key)
    assert text.config.num_key_value_heads == theirs.num_key_value_heads
    assert text.max_length == theirs.max_position_embeddings
