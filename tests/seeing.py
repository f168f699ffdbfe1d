"""Tiny random models that see, built by transformers (the reference), saved as ordinary folders."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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
}


def make(name: str, folder: Path, seed: int = 0):
    """Save a random model into `folder` and return it."""
    model_type, vision, text, extra = MODELS[name]
    config = CONFIG_MAPPING[model_type](
        vision_config=dict(vision), text_config=dict(text), image_token_index=IMAGE, **extra
    )
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
