"""Writes this folder: tiny models with different tokenizers, and what mergekit makes of them.

    python tests/data/tokenizers/record.py /path/to/mergekit-yaml        (recorded with mergekit 0.1.5)

`a` has spare rows, `b` another BPE, `c` is `a` with tokens added.  Written per recipe: the output's tokens in the
order of their ids, which are random in mergekit's unions, and its embedding and head.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
STORY = "once upon a time there was a little girl named lily; the cat sat on the mat and the dog ran to the house. "
CODE = "def f(x): return x + 1\nclass Cat: pass\nfor i in range(10): print(i)\nthe cat returned a range of things. "
TOOL = {"source": {"kind": "model_token", "model": "MODELS/a", "token_id": 5}}
THINK = {"source": {"kind": "model_token", "model": "MODELS/b", "token": "<|im_start|>"}}
RECIPES = {
    "union": {"tokenizer_source": "union"},
    "union_base": {"base_model": "MODELS/b", "tokenizer_source": "union"},
    "base": {"base_model": "MODELS/a", "tokenizer_source": "base"},
    "model": {"tokenizer_source": "MODELS/b"},
    "padded": {"base_model": "MODELS/a", "tokenizer": {"source": "union", "pad_to_multiple_of": 16}},
    "tokens": {
        "base_model": "MODELS/a",
        "tokenizer": {
            "source": "union",
            "tokens": {
                "<|im_end|>": {"source": "MODELS/c"},
                "<think>": THINK,
                "<|tool|>": TOOL,
                "<|new|>": THINK,
                "</think>": {"source": {"kind": "zero"}},
                "<s>": {"source": "MODELS/a", "force": True},
            },
        },
    },
}


def bpe(text: str, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=specials, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, rows: int, seed: int, **special: str) -> None:
    """A Llama of one layer with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    ids = {f"{role}_id": tokenizer.token_to_id(token) for role, token in special.items()}
    sizes = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, **sizes, **ids}
    config |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=1) + "\n")
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (rows, 4), "lm_head": (rows, 4), "model.norm": (4,)}
    layer = {f"self_attn.{x}_proj": (4, 4) for x in "qkvo"} | {"mlp.gate_proj": (8, 4), "mlp.up_proj": (8, 4)}
    layer |= {"mlp.down_proj": (4, 8), "input_layernorm": (4,), "post_attention_layernorm": (4,)}
    shapes |= {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    weights = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def record(name: str, recipe: dict, mergekit: str) -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    listed = [{"model": f"MODELS/{m}", "parameters": {"weight": w}} for m, w in weights.items()]
    text = yaml.safe_dump({"merge_method": "linear", "dtype": "float32", "models": listed, **recipe}, sort_keys=False)
    (HERE / "recipes" / f"{name}.yml").write_text(text)
    with tempfile.TemporaryDirectory() as temporary:
        path, out = Path(temporary) / "recipe.yml", Path(temporary) / "out"
        path.write_text(text.replace("MODELS", str(HERE / "models")))
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run([mergekit, path, out, "--quiet", "--no-write-model-card"], check=True, env=environment)
        tensors = load_file(out / "model.safetensors")
        vocabulary = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (HERE / "expected" / f"{name}.json").write_text(json.dumps(tokens, ensure_ascii=False) + "\n")
    kept = {k: tensors[k] for k in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(kept, HERE / "expected" / f"{name}.safetensors")


if __name__ == "__main__":
    for part in ("recipes", "expected"):
        (HERE / part).mkdir(exist_ok=True)
    a = bpe(STORY, ["<s>", "</s>", "<pad>"])
    save(HERE / "models" / "a", a, 128, 1, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    b = bpe(CODE, ["<|im_end|>", "<|im_start|>", "<s>"])
    save(HERE / "models" / "b", b, b.get_vocab_size(), 2, bos_token="<s>", eos_token="<|im_end|>")
    a.add_tokens(["<think>", "</think>"])
    a.add_special_tokens(["<|im_end|>", "<|tool|>"])
    save(HERE / "models" / "c", a, a.get_vocab_size(), 3, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>")
    for name, recipe in RECIPES.items():
        record(name, recipe, sys.argv[1])
