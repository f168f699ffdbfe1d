"""The pipelines that bench_diffusion makes for itself: random numbers in SDXL's structure, and prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("a", "b", "c")
UNET = "unet/diffusion_pytorch_model.safetensors"
LENGTH = 24  # tokens of a prompt
WORDS = ["<s>", "</s>", *(f"w{i}" for i in range(256))]
TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": LENGTH, "projection_dim": 32, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "cross_attention_dim": 64, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8,
}  # fmt: skip
SDXL: dict[str, Any] = COMMON | {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
UNETS = {
    "mini": COMMON | {  # of japanese_diffusion_mini
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "block_out_channels": (16, 32),
        "transformer_layers_per_block": (1, 1), "attention_head_dim": (2, 4), "norm_num_groups": 8,
    },
    "31M": SDXL | {
        "block_out_channels": (64, 128, 256), "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 4),
    },
    "360M": SDXL | {
        "block_out_channels": (128, 256, 512), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (2, 4, 8),
    },
}  # fmt: skip
PROMPTS = {"mini": 60, "31M": 4}  # of U-Nets that draw


def make(work: Path, name: str) -> list[Path]:
    """The folders of three siblings with this U-Net, which are made unless they are there."""
    out = work / name
    if not out.exists():
        partial = out.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # ours: left by an interrupted run
        (write if name in PROMPTS else write_unets)(partial, name)
        partial.rename(out)
    return [out / source for source in NAMES]


def write_unets(folder: Path, name: str) -> None:
    """Nothing but U-Nets, in float16."""
    from safetensors.numpy import save_file

    from jevomerge.models.diffusion.parts import read_config, shapes

    config = json.loads(json.dumps({"_class_name": "UNet2DConditionModel"} | UNETS[name]))
    wanted = shapes(read_config("unet", config, "config.json"))
    for seed, source in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        (folder / source / "unet").mkdir(parents=True)
        (folder / source / "unet" / "config.json").write_text(json.dumps(config))
        tensors = {k: (0.02 * rng.standard_normal(shape, np.float32)).astype(np.float16) for k, shape in wanted.items()}
        save_file(tensors, folder / source / UNET, {"format": "pt"})


def write(folder: Path, name: str) -> None:
    """Pipelines in float32 whose weights differ from the first one's by noise, as fine-tunes, and `prompts.jsonl`."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from tokenizers import Tokenizer, processors
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **special)
    pipeline = StableDiffusionXLPipeline(
        vae=None, unet=UNet2DConditionModel(**UNETS[name]), tokenizer=fast, tokenizer_2=fast,
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **TEXT)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", **TEXT)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
    )  # fmt: skip
    first = {key: weight.clone() for key, weight in pipeline.unet.state_dict().items()}
    for source in NAMES:
        noisy = {key: weight + 0.02 * torch.randn(weight.shape) * (source != NAMES[0]) for key, weight in first.items()}
        pipeline.unet.load_state_dict(noisy)
        pipeline.save_pretrained(folder / source)
    rng = np.random.default_rng(0)
    rows = [{"prompt": " ".join(f"w{n}" for n in rng.integers(0, 256, 9))} for _ in range(PROMPTS[name] + 1)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
