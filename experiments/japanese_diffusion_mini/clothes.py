"""Pictures of clothes (Fashion-MNIST, Xiao et al., 2017), and what they are called in English and in Japanese.

python experiments/japanese_diffusion_mini/clothes.py     # writes data/, the prompts of the task
"""

import gzip
import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from arguments import make_parser
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

Language = Literal["en", "ja"]
Split = Literal["train", "t10k"]  # as the files are called
DATA = Path(__file__).parent / "data"
FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))  # of Debian's package
SIZE = 8  # pixels along each side, of 28
SUFFIX = {False: "", True: "_outlines"}  # of files, by whether they are of drawings
LENGTH = 24  # tokens of a prompt, one for each character, and its ends

WORDS: dict[Language, tuple[tuple[str, ...], ...]] = {  # by class
    "en": (
        ("t-shirt", "tee", "top"), ("trousers", "pants", "slacks"), ("pullover", "sweater", "jumper"),
        ("dress", "frock", "gown"), ("coat", "jacket", "overcoat"), ("sandal", "slipper", "mule"),
        ("shirt", "blouse", "button-up"), ("sneaker", "trainer", "plimsoll"), ("bag", "handbag", "purse"),
        ("ankle boot", "boot", "bootie"),
    ),
    "ja": (
        ("Tシャツ", "半袖", "ティーシャツ"), ("ズボン", "パンツ", "スラックス"), ("セーター", "プルオーバー", "ニット"),
        ("ドレス", "ワンピース", "婦人服"), ("コート", "上着", "外套"), ("サンダル", "草履", "つっかけ"),
        ("シャツ", "ブラウス", "ワイシャツ"), ("スニーカー", "運動靴", "ズック"), ("かばん", "バッグ", "手提げ"),
        ("ブーツ", "長靴", "深靴"),
    ),
}  # fmt: skip
FRAMES: dict[Language, tuple[str, ...]] = {
    "en": ("{}", "one {}", "photo of {}", "{} on black"),
    "ja": ("{}", "{}の写真", "黒い背景の{}", "これは{}です"),
}
CLASSES = len(WORDS["en"])


class Pictures(NamedTuple):
    """N grey pictures from -1, black, to 1, as (N, SIZE, SIZE, 1), and their classes."""

    pixels: np.ndarray
    labels: np.ndarray


@cache
def pictures(split: Split, drawn: bool) -> Pictures:
    """All of a split, or drawings of them."""
    if drawn:
        pixels, labels = pictures(split, False)
        return Pictures(outlines(pixels), labels)

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((FOLDER / f"{split}-{name}.gz").read_bytes()), np.uint8, offset=header)

    large = read("images-idx3-ubyte", 16).reshape(-1, 28, 28)
    small = np.stack([Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BOX) for x in large])
    return Pictures(small[..., None].astype(np.float32) / 127.5 - 1, read("labels-idx1-ubyte", 8).astype(np.int32))


def outlines(pixels: np.ndarray) -> np.ndarray:
    """The same pictures as drawings of their edges."""
    y, x = (np.diff(pixels, axis=axis, append=-1.0) for axis in (1, 2))
    return np.clip(2 * np.hypot(y, x) - 1, -1, 1).astype(np.float32)


def asked() -> dict[str, list[dict[str, Any]]]:
    """Japanese prompts and their classes: of each class's words each in two frames to search with, in two held out."""
    found: dict[str, list[dict[str, Any]]] = {"search": [], "heldout": []}
    for number, words in enumerate(WORDS["ja"]):
        for (i, word), (j, frame) in itertools.product(enumerate(words), enumerate(FRAMES["ja"])):
            found["heldout" if (i + j) % 2 else "search"].append({"prompt": frame.format(word), "class": number})
    return found


def prompts(language: Language) -> list[list[str]]:
    """By class, all words in all frames."""
    pairs = [list(itertools.product(words, FRAMES[language])) for words in WORDS[language]]
    return [[frame.format(word) for word, frame in of_class] for of_class in pairs]


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character of all prompts, between <bos> and <eos>."""
    english, japanese = (set("".join(text for of in prompts(language) for text in of)) for language in ("en", "ja"))
    special = ["<bos>", "<eos>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(english), *sorted(japanese - english)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(special)
    ends = [("<bos>", 0), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>",
        model_max_length=LENGTH,
    )  # fmt: skip


def encoded(texts: list[str]) -> np.ndarray:
    """(N, LENGTH) tokens, padded as CLIP's."""
    ids: list[list[int]] = make_tokenizer()(texts, padding="max_length", max_length=LENGTH)["input_ids"]
    return np.array(ids, np.int32)


def main() -> None:
    make_parser(__doc__, __file__, output=None).parse_args()
    DATA.mkdir(exist_ok=True)
    for split, rows in asked().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (DATA / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
