"""Tiny random models of several parts, and text models of the same shape, with tokenizers."""

import json
import re

import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = [f"w{i}" for i in range(88)] + ["<s>", "</s>"]
IMAGE, ROWS = 90, 96  # the picture's token behind those of the text models, and rows without a token
TEXT = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 14, "patch_size": 7,
}  # fmt: skip
LAYOUTS = {  # what the parts were and are called: (as transformers saves a new model, as others did)
    "2024": lambda name: name.replace("vision_tower.", "vision_tower.vision_model.", 1),
    "new": lambda name: name,
    "in memory": lambda name: (
        name.removeprefix("language_model.")
        if "lm_head" in name
        else "model." + name.replace("language_model.model.", "language_model.", 1)
    ),
}


def write_tokenizer(folder, words):
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "w0"}
    special |= {"additional_special_tokens": [w for w in words if w.startswith("<") and w not in WORDS]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)


def randomised(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return model.eval()


def write_text_model(folder, seed, model_type="mistral", **more):
    config = CONFIG_MAPPING[model_type](vocab_size=len(WORDS), **(TEXT | {"rope_theta": 10000.0} | more))
    randomised(AutoModelForCausalLM.from_config(config), seed).save_pretrained(folder)
    write_tokenizer(folder, WORDS)


def write_qwen(folder, seed, layout="hub"):
    """A Qwen2.5-VL, as on the hub (config.json without a `text_config`) or as transformers 5 has it in memory."""
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 7, "window_size": 28,
        "fullatt_block_indexes": [1], "out_hidden_size": TEXT["hidden_size"],
    }  # fmt: skip
    text = TEXT | {"vocab_size": ROWS, "rope_theta": 1e6}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 1]}
    tokens = dict(zip(("image", "video", "vision_start", "vision_end"), range(IMAGE, ROWS), strict=False))
    flat = {"vision_config": vision, **{f"{kind}_token_id": i for kind, i in tokens.items()}, **text}
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING["qwen2_5_vl"](**json.loads(json.dumps(flat))))
    randomised(model, seed).save_pretrained(folder)
    if layout == "hub":
        whole = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **flat}
        (folder / "config.json").write_text(json.dumps(whole))
    else:
        tensors = load_file(folder / "model.safetensors")
        called = {n: re.sub("^visual", "model.visual", re.sub("^model", "model.language_model", n)) for n in tensors}
        save_file({called[n]: x for n, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder, [*WORDS, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    values = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 7, "min_pixels": 784, "max_pixels": 3000}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def write_vlm(folder, seed, model_type="llava", layout="new", **more):
    text = TEXT | {"model_type": "mistral", "vocab_size": ROWS, "rope_theta": 1e6, "sliding_window": None}
    config = CONFIG_MAPPING[model_type](vision_config=dict(VISION), text_config=text, image_token_index=IMAGE, **more)
    randomised(AutoModelForImageTextToText.from_config(config), seed).save_pretrained(folder)
    tensors = {LAYOUTS[layout](name): x for name, x in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder, [*WORDS, "<image>", "<pad>"])
    size = {"size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"} | size))
