"""The models and data that bench_vision makes for itself: random numbers in shapes like those of small real ones."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = 6  # questions, each about a picture of its own
QUESTION, ANSWER = 12, 4  # words
PICTURE, PAD = "<image>", "<pad>"
WORDS = ["<s>", "</s>", *(f"w{i}" for i in range(8190))]
TEXT = {
    "model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SIZE, PATCH = 224, 14
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 6, "image_size": SIZE, "patch_size": PATCH,
}  # fmt: skip
FEATURES = (SIZE // PATCH) ** 2  # of a picture
LLAVA = {
    "model_type": "llava", "vision_config": VISION, "text_config": TEXT | {"vocab_size": len(WORDS) + 64},
    "image_token_index": len(WORDS),
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE},
    "crop_size": {"height": SIZE, "width": SIZE},
}  # fmt: skip


def make(work: Path) -> None:
    """In `work`: `llava` and `text`, models; `pictures.jsonl` and `texts.jsonl`, questions of the same length."""
    if (work / "texts.jsonl").exists():
        return
    shutil.rmtree(work, ignore_errors=True)  # ours: left by an interrupted run
    write(work / "text", TEXT, WORDS, 0)
    write(work / "llava", LLAVA, [*WORDS, PICTURE, PAD], 1)
    (work / "llava" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    rng, pictures, texts = np.random.default_rng(0), [], []
    for i in range(ROWS + 1):  # a run wants a held-out one
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)).save(work / f"{i}.png")
        words = [f"w{n}" for n in rng.integers(0, 8190, FEATURES + QUESTION + ANSWER)]
        question, answer = " ".join(words[FEATURES:-ANSWER]), " ".join(words[-ANSWER:])
        pictures.append({"image": f"{i}.png", "question": f"{PICTURE} {question}", "answer": answer})
        texts.append({"question": " ".join(words[:-ANSWER]), "answer": answer})
    for name, rows in (("pictures", pictures), ("texts", texts)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(folder: Path, config: dict, words: list[str], seed: int) -> None:
    """A model as transformers initialises it, and a tokenizer whose tokens are words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(seed)
    sees = "vision_config" in config
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    kind.from_config(CONFIG_MAPPING[config["model_type"]](**config), dtype=torch.float32).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": WORDS[-1]}
    special |= {"additional_special_tokens": [PICTURE, PAD]} if sees else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
