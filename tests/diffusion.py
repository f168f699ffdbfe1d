"""Tiny random pipelines built by diffusers (the reference), and their parameters in our layout."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jevomerge.models.specs import unflatten

BLOCKS = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": (2, 4, 6),
}
SDXL = BLOCKS | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32 + 48,
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 40 + 6 * 8,
}
SD15 = BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
    "scaling_factor": 0.13025,
}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = [*sorted(ByteLevel.alphabet()), *(c + "</w>" for c in sorted(ByteLevel.alphabet()))]
BOS, EOS = len(WORDS), len(WORDS) + 1
TEXTS = (
    {"hidden_size": 32, "intermediate_size": 74, "num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "hidden_act": "gelu", "projection_dim": 40},
)


def tokenizer(folder: Path, **options):
    """Of bytes, without merges: it reads Japanese."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, **options)


def text_encoder(which: int, projected: bool):
    """Of a pipeline."""
    options = {"vocab_size": EOS + 1, "num_attention_heads": 4, "bos_token_id": BOS, "eos_token_id": EOS}
    config = CLIPTextConfig(**options, **TEXTS[which])
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def shaken(model, seed=0):
    """The model, random where it is initialised with ones and zeros: nothing of these would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


def make(folder: Path, *, xl: bool = True, first_projected: bool = False):
    """A pipeline like SDXL, or like Stable Diffusion 1.5."""
    torch.manual_seed(0)
    first = text_encoder(0, first_projected)
    common = {
        "vae": shaken(AutoencoderKL(**VAE)),
        "text_encoder": shaken(first),
        "tokenizer": tokenizer(folder / "words"),
        "unet": shaken(UNet2DConditionModel(**(SDXL if xl else SD15))),
        "scheduler": EulerDiscreteScheduler(**NOISE, timestep_spacing="trailing" if xl else "leading", steps_offset=1),
    }
    if xl:
        second = {
            "text_encoder_2": shaken(text_encoder(1, True)),
            "tokenizer_2": tokenizer(folder / "words", pad_token="!"),
        }
        pipeline = StableDiffusionXLPipeline(**common, **second, add_watermarker=False)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**common, **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(specs, model):
    """The parameters of a table, those of a torch module."""
    tensors = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    if isinstance(model, CLIPTextModel):  # transformers 5 leaves the prefix of every other file out
        tensors = {f"text_model.{name}": p for name, p in tensors.items()}
    assert set(tensors) == {name for spec in specs for name in spec.names()}
    leaves = {s.path: np.stack([tensors[name] for name in s.names()]).reshape(s.leaf_shape) for s in specs}
    return unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def nhwc(x):
    """A torch tensor of pictures as our array of them."""
    return jnp.asarray(x.detach().numpy().transpose(0, 2, 3, 1))
