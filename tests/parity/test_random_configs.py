"""Random configs of five families: logits and greedy texts, with lists of ends, against transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.tokenizers.load import load_tokenizer
from tests.parity.test_families import logits
from tests.unit.tokenizers.test_load import ours, theirs

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")  # which have most keys in common
COUNT = 12  # of each family
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}  # for all alike


def draw(family, rng):
    """Some of a family's keys, some of them in the spelling of transformers 4; the rest is left to its class."""

    def maybe(**choices):
        chosen = {key: rng.choice(len(values)) for key, values in choices.items() if rng.random() < 0.6}
        return {key: choices[key][i] for key, i in chosen.items()}

    groups, layers = int(rng.choice([1, 2, 4])), int(rng.integers(1, 5))
    values = {
        "model_type": family, "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_attention_heads": 4, "num_hidden_layers": layers, "num_key_value_heads": groups,
        "eos_token_id": [2, *rng.choice(512, int(rng.integers(0, 40)), replace=False).tolist()],
    }  # fmt: skip
    values |= maybe(rms_norm_eps=[1e-5, 1e-3], tie_word_embeddings=[True, False], attention_bias=[False])
    values |= maybe(max_position_embeddings=[64, 4096], use_cache=[False, True], use_mrope=[False], num_beams=[1])
    ropes = [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True},
        {"rope_type": "yarn", "factor": 2, "beta_fast": 8, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5},
        None,
    ]  # fmt: skip
    values |= maybe(rope_scaling=ropes, rope_theta=[500, 1e6])
    if family in ("llama", "qwen3"):
        values |= maybe(attention_bias=[True, False])
    if family == "llama":
        values |= maybe(mlp_bias=[True, False])
    if family == "mistral":
        values |= maybe(sliding_window=[3, 6, None])
    if family.startswith("qwen"):
        values |= maybe(use_sliding_window=[True, False], sliding_window=[3, 9, None], max_window_layers=[0, 1, 2, 7])
    if family == "gemma3_text":
        values |= maybe(sliding_window=[3, 9], sliding_window_pattern=[1, 2, 3], query_pre_attn_scalar=[16, 256])
        values |= maybe(rope_local_base_freq=[100.0, 1e5])
    return values


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(COUNT))
def test_random_config(family, seed, stories260k, tmp_path):
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    values = draw(family, rng)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**json.loads(json.dumps(values))))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.eval().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))  # as it was drawn
    if seed % 3:
        (tmp_path / "generation_config.json").unlink()
    shutil.copyfile(stories260k / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    checkpoint = Checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = rng.integers(0, 512, (2, 24), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    found, _ = logits(checkpoint, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)
    tokenizer = load_tokenizer(tmp_path)
    assert ours(tmp_path, tokenizer) == theirs(tmp_path, tokenizer)[0]
