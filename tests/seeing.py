"""Tiny random models that see, built by transformers (the reference) and saved as ordinary folders, and texts."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from jevomerge.models.model import Pictures, apply, unembed
from jevomerge.models.specs import unflatten

IMAGE, PAD = 90, 2
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": 30}  # 2 pixels unseen
TEXT = {
    "model_type": "mistral",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GEMMA = TEXT | {"model_type": "gemma3_text", "sliding_window": 64, "query_pre_attn_scalar": 12}
NEXT = {"image_grid_pinpoints": PINPOINTS}
IDEFICS3 = CLIP | {"model_type": "idefics3_vision"}
QWEN = {
    "model_type": "qwen2_5_vl_vision",
    "hidden_size": 32,
    "intermediate_size": 40,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 7,
    "window_size": 28,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 48,
}
MODELS = {
    "llava": ("llava", CLIP, TEXT, {}),
    "llava-last-full": ("llava", CLIP, TEXT, {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
    "llava-several": ("llava", CLIP, TEXT, {"vision_feature_layer": [-4, 1, -1], "multimodal_projector_bias": False}),
    "llava-siglip": ("llava", SIGLIP, TEXT, {}),  # the first patch is dropped as if it were a class token
    "llava-siglip-full": ("llava", SIGLIP, TEXT, {"vision_feature_select_strategy": "full"}),
    "llava-gemma": ("llava", CLIP, GEMMA, {}),
    "llava_next": ("llava_next", CLIP, TEXT, NEXT),
    "llava_next-several": ("llava_next", CLIP, TEXT, NEXT | {"vision_feature_layer": [-1, -2]}),
    "llava_next-siglip": (
        "llava_next",
        SIGLIP | {"image_size": 28},
        TEXT | {"model_type": "qwen2"},
        NEXT | {"vision_feature_select_strategy": "full", "projector_hidden_act": "gelu_pytorch_tanh"},
    ),
    "idefics3": ("idefics3", IDEFICS3, TEXT | {"model_type": "llama"}, {"scale_factor": 2, "image_token_id": IMAGE}),
    "smolvlm": (
        "smolvlm",
        IDEFICS3 | {"model_type": "smolvlm_vision"},
        TEXT | {"model_type": "llama", "tie_word_embeddings": True},
        {"scale_factor": 4, "image_token_id": IMAGE, "tie_word_embeddings": True},
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        QWEN,
        TEXT | {"model_type": "qwen2_5_vl_text", "rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 2, 3]}},
        {"image_token_id": IMAGE, "video_token_id": 91},
    ),
}


def make(name: str, folder: Path, seed: int = 0):
    """Save a random model into `folder` and return it."""
    model_type, vision, text, extra = MODELS[name]
    extra = extra if "image_token_id" in extra else extra | {"image_token_index": IMAGE}
    config = CONFIG_MAPPING[model_type](vision_config=dict(vision), text_config=dict(text), **extra)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # transformers initialises norms to one and biases to zero: nothing would show
        for key, p in model.named_parameters():
            small = p.ndim < 2 or "norm" in key
            p.copy_(torch.randn_like(p) * (0.15 if small else 0.25 / max(1, p.shape[-1] ** 0.5 / 4)))
    model.save_pretrained(folder)
    return model


def load(specs, tensors):
    """The parameters of a table, from {name in the file: array}."""
    leaves = {}
    for s in specs:
        stored = [jnp.asarray(tensors[name], jnp.float32) for name in s.names()]
        leaves[s.path] = jnp.stack(stored).reshape(s.leaf_shape) if s.stack else stored[0]
    return unflatten(leaves)


def tensors_of(folder: Path):
    """{name: array} of a folder's weights."""
    return load_file(folder / "model.safetensors")


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Colours that change slowly, under noise."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width][..., None]
    waves = 120 + 90 * np.sin(0.1 * x + 0.07 * y * (1 + np.arange(3)))
    return Image.fromarray(np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8))


ROWS = [[0], [], [3, 2], [1]]  # which pictures each text has
NEW = 6


def texts(counts, side):
    """Texts with `counts[i]` features for picture i, padded: (B, T) tokens and validity."""
    rng = np.random.default_rng(1)
    rows = []
    for pictures in ROWS:
        row = [0, *rng.integers(3, 80, 3)]
        for i in pictures:
            row += [IMAGE] * counts[i] + list(rng.integers(3, 80, 4))
        rows.append(row)
    longest = max(map(len, rows))
    tokens, valid = np.full((len(rows), longest), PAD, np.int32), np.zeros((len(rows), longest), bool)
    for t, v, row in zip(tokens, valid, rows, strict=True):
        at = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        t[at], v[at] = row, True
    return tokens, valid


def pictures_of(features, shifts):
    """What stands for the pictures of these texts; `shifts`: of each text's, None with plain positions."""
    rows = [np.concatenate([features[i] for i in row]) if row else np.zeros((0, features[0].shape[1])) for row in ROWS]
    most = max(map(len, rows))
    padded = [
        None if given is None else jnp.stack([np.pad(r, ((0, most - len(r)), (0, 0))).astype(dtype) for r in given])
        for given, dtype in ((rows, np.float32), (shifts, np.int32))
    ]
    return Pictures(padded[0], jnp.asarray(IMAGE, jnp.int32), padded[1])


@functools.partial(jax.jit, static_argnums=1)
def run(params, model, tokens, valid, pictures=None, cache=None):
    hidden, cache = apply(params, model, tokens, valid, cache, pictures=pictures)
    return unembed(params, model, hidden), cache


def compare_logits(reference, inputs, params, model, features, side, shifts=None):
    """Of texts padded on one side; `inputs` may say what positions are to transformers."""
    tokens, valid = texts(list(map(len, features)), side)
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            **{"position_ids": torch.tensor(np.maximum(valid.cumsum(1) - 1, 0))} | inputs,
        ).logits.numpy()
    found, _ = run(params, model, tokens, valid, pictures_of(features, shifts))
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)
    blind, _ = run(params, model, tokens, valid)
    assert np.abs(blind - found)[valid].max() > 0.02  # the pictures are seen


def compare_greedy(reference, inputs, params, model, features, shifts=None):
    """Texts of `NEW` tokens, from left-padded prompts."""
    tokens, valid = texts(list(map(len, features)), "left")
    with torch.no_grad():
        expected = reference.generate(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            **inputs,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )[:, tokens.shape[1] :].numpy()
    cache = model.cache(len(tokens), tokens.shape[1] + NEW, jnp.float32)
    logits, cache = run(params, model, tokens, valid, pictures_of(features, shifts), cache)
    found = []
    for _ in range(NEW):
        ruled_out = jnp.where(jnp.arange(logits.shape[-1]) == 1, -jnp.inf, logits[:, -1])  # min_new_tokens
        found.append(np.asarray(jnp.argmax(ruled_out, axis=-1), np.int32))
        logits, cache = run(params, model, found[-1][:, None], np.ones((len(tokens), 1), bool), None, cache)
    np.testing.assert_array_equal(np.stack(found, axis=1), expected)
