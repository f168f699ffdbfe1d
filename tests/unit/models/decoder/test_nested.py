"""Decoders of larger models, whose configs leave out what their class knows."""

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from jevomerge.models.decoder.nested import completed


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config])
def test_sparse_text_configs_are_completed_as_transformers_does(kind):
    whole = completed({"model_type": kind.model_type})
    assert len(whole) > 6
    for key, value in whole.items():
        assert getattr(kind(), key) == value
