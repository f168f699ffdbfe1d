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

BLOCKS = {"sample_size": 16, "block_out_channels": (16, 32), "norm_num_groups": 8}
SDXL = BLOCKS | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32 + 48,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 40 + 6 * 8,
}
SD15 = BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": (1, 2),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
    "scaling_factor": 0.13025,
}
# SDXL as published: what its files say, without keys at their defaults.
PUBLISHED_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_embedding_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
PUBLISHED_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "sample_size": 1024,
}
SECOND_ENCODER = {
    "architectures": ["CLIPTextModelWithProjection"],
    "model_type": "clip_text_model",
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
FIRST_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
PUBLISHED = {
    "model_index.json": {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "unet/config.json": PUBLISHED_UNET,
    "vae/config.json": PUBLISHED_VAE,
    "text_encoder/config.json": FIRST_ENCODER,
    "text_encoder_2/config.json": SECOND_ENCODER,
    "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = [*sorted(ByteLevel.alphabet()), *(c + "</w>" for c in sorted(ByteLevel.alphabet()))]
BOS, EOS = len(WORDS), len(WORDS) + 1
TEXTS = (
    {
        "hidden_size": 32,
        "intermediate_size": 74,
        "num_hidden_layers": 3,
        "hidden_act": "quick_gelu",
        "projection_dim": 40,
    },
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


def files_of(folder: Path):
    """{name: JSON} of the files that say what a saved pipeline is."""
    names = ("model_index.json", "config.json", "scheduler_config.json")
    return {str(p.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob("*.json") if p.name in names}


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
