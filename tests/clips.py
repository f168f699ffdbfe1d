"""Tiny random CLIPs built by transformers (the reference), saved as folders and with OpenCLIP's names."""

import torch
from transformers import CLIPConfig, CLIPModel

from jevomerge.models.clip.open_clip import TRANSPOSED, open_clip_name
from tests.diffusion import BOS, EOS, shaken, tokenizer

SIDE = 24  # of the pictures that it looks at
# Heads of 64 channels, as files without a config.json have.
TEXT = {
    "vocab_size": EOS + 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 24,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}


def make(folder, act="quick_gelu", width=40, end=EOS):
    """A model, its tokenizer beside it."""
    torch.manual_seed(0)
    text, vision = TEXT | {"hidden_act": act, "eos_token_id": end}, VISION | {"hidden_act": act}
    model = shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)))
    with torch.no_grad():  # initialised so small that what a model says of one picture it says of all
        for p in model.parameters():
            if p.ndim > 1:
                p *= 6
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer(folder / "words").save_pretrained(folder)
    return model


def with_open_clips_names(model):
    """Its tensors as OpenCLIP has them."""
    found = {}
    tensors = {n: x for n, x in model.state_dict().items() if not n.endswith("position_ids")}
    for name in sorted(tensors, key=lambda n: open_clip_name(n)[1] or 0):
        theirs, third = open_clip_name(name)
        x = tensors[name].T if name in TRANSPOSED else tensors[name]
        found[theirs] = x if third in (None, 0) else torch.cat([found[theirs], x])
    return {name: x.contiguous() for name, x in found.items()}
