"""Small random image pipelines on disk, siblings of one, in folders and as single files, and LoRAs for them."""

import json
import shutil

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from jevomerge.models.diffusion.ldm import unet_names
from jevomerge.models.diffusion.parts import read_config, shapes

UNET = "unet/diffusion_pytorch_model.safetensors"
SMALL = {  # the blocks of SDXL's U-Net and all of its 1,680 names, but few channels
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "block_out_channels": [4, 8, 12], "attention_head_dim": [1, 1, 1],
    "norm_num_groups": 4, "cross_attention_dim": 12, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
}  # fmt: skip
FILES = {
    "unet": UNET, "vae": "vae/diffusion_pytorch_model.safetensors", "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}  # fmt: skip


MINI = {  # draws grey pictures of 8 x 8 without an autoencoder
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 1, "out_channels": 1,
    "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1,
    "block_out_channels": [8], "attention_head_dim": 2, "norm_num_groups": 4,
    "cross_attention_dim": 8,
}  # fmt: skip
MINI_TEXT = {
    "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24, "vocab_size": 514,
    "eos_token_id": 513,
}  # fmt: skip
MINI_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip


def tensors(folder, part="unet"):
    return load_file(folder / FILES[part])


def write_siblings(folder, names=("base", "a", "b"), **options):
    """Pipelines of one structure; the weights of all but the first differ from its own by noise."""
    from tests.diffusion import make  # imported late: torch and diffusers take seconds

    make(folder, **options).save_pretrained(folder / names[0])
    shutil.rmtree(folder / "words")
    for seed, name in enumerate(names[1:]):
        shutil.copytree(folder / names[0], folder / name)
        rng = np.random.default_rng(seed)
        for file in FILES.values():
            if (path := folder / name / file).exists():
                noisy = {k: x + 0.05 * rng.standard_normal(x.shape, np.float32) for k, x in load_file(path).items()}
                save_file(noisy, path, {"format": "pt"})
    return folder


def write_yaml(path, recipe):
    path.write_text(yaml.safe_dump(recipe))
    return path


def linear(*weights, **more):
    """A recipe of the models base, a, b, ... with these weights."""
    models = [
        {"model": name, "parameters": {"weight": w}} for name, w in zip(("base", "a", "b"), weights, strict=False)
    ]
    return {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "dtype": "float32", **more}


def write_lora(path, unet, modules, names="kohya", rank=3, alpha=None, dtype=np.float32):
    """A LoRA of some modules of a U-Net, {name: array}, as one of the programs writes it, and what it adds."""
    rng = np.random.default_rng(7)
    ldm, file, deltas = unet_names(unet), {}, {}
    for module in modules:
        shape = unet[f"{module}.weight"].shape
        down = rng.standard_normal((rank, *shape[1:])).astype(dtype)
        up = (0.1 * rng.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)))).astype(dtype)
        product = up.astype(np.float64).reshape(shape[0], rank) @ down.astype(np.float64).reshape(rank, -1)
        deltas[f"{module}.weight"] = (product * (rank if alpha is None else alpha) / rank).reshape(shape)
        theirs = ldm[f"{module}.weight"].removesuffix(".weight")
        before, a, b = {
            "kohya": (f"lora_unet_{theirs.replace('.', '_')}", "lora_down", "lora_up"),
            "kohya of diffusers": (f"lora_unet_{module.replace('.', '_')}", "lora_down", "lora_up"),
            "diffusers": (f"unet.{module}", "lora.down", "lora.up"),
            "peft": (f"unet.{module}", "lora_A", "lora_B"),
        }[names]
        file |= {f"{before}.{a}.weight": down, f"{before}.{b}.weight": up}
        file |= {} if alpha is None else {f"{before}.alpha": np.array(alpha, dtype)}
    save_file(file, path)
    return deltas


def write_unets(folder, config, names=("base", "a", "b"), scale=0.1, dtype=np.float32):
    """Folders with a random U-Net of a config.json each, and nothing else."""
    wanted = shapes(read_config("unet", config, "config.json"))
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        (folder / name / "unet").mkdir(parents=True)
        (folder / name / "unet" / "config.json").write_text(json.dumps(config))
        tensors = {k: (scale * rng.standard_normal(shape)).astype(dtype) for k, shape in wanted.items()}
        save_file(tensors, folder / name / UNET, {"format": "pt"})
    return folder


def write_minis(folder, names=("base", "a", "b")):
    """Whole pipelines of MINI, made without torch, whose weights have nothing in common."""
    symbols = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    symbols += [chr(256 + i) for i in range(256 - len(symbols))]  # of the bytes that are no symbols, as in GPT-2
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    roles = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    files = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "vae": [None, None], "unet": ["diffusers", MINI["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", MINI_SCHEDULER["_class_name"]],
        },
        "unet/config.json": MINI, "text_encoder/config.json": MINI_TEXT,
        "scheduler/scheduler_config.json": MINI_SCHEDULER,
        "tokenizer/vocab.json": {word: i for i, word in enumerate(words)},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **roles},
    }  # fmt: skip
    for seed, name in enumerate(names):
        for file, values in files.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(json.dumps(values))
        (folder / name / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
        rng = np.random.default_rng(seed)
        for part, config in (("unet", MINI), ("text_encoder", MINI_TEXT)):
            wanted = shapes(read_config(part, config, part)).items()
            made = {
                k: (float("norm" in k and "weight" in k) + 0.3 * rng.standard_normal(n)).astype(np.float32)
                for k, n in wanted
            }
            save_file(made, folder / name / FILES[part], {"format": "pt"})
    return folder
