"""Writes the text: the tokenizers, the models' training documents, and the search and held-out questions.

python experiments/japanese_vqa_mini/generate.py     # data/, in seconds
"""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from arguments import make_parser
from PIL import Image
from scenes import (
    DESCRIBE,
    GREY,
    KINDS,
    LANGUAGES,
    LOOK_UP,
    MAP,
    SIZE,
    Kind,
    Language,
    Question,
    Scene,
    Split,
    ask,
    draw,
    render,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data"
# Word by word: a place is one word in either language, and an English word carries its space.
JAPANESE = "左上|右上|左下|右下|四角|三角|十字|菱形|何色|どんな形|どこ|向かい|ですか|です|説明して"
PIECES = rf" ?(?:(?:upper|lower) (?:left|right)|[A-Za-z]+)|{JAPANESE}|."
TURNS = 5  # about one scene; a row of training may have room for fewer
IMAGE = "<image>"
COUNTS: dict[Split, int] = {"search": 128, "heldout": 256}
SEEDS: dict[Split, int] = {"search": 1, "heldout": 2}  # of the pictures

Turn = tuple[str, tuple[str, ...]]  # what is read, the sentences that are to be written


class Document(NamedTuple):
    """A scene, as sentences or (None) as a picture, and turns; None: a scene of which there is only the picture."""

    scene: Scene | None
    context: tuple[str, ...] | None
    turns: list[Turn]


def turns(
    rng: Random, scene: Scene, languages: Sequence[Language], kinds: Sequence[Kind], describe: float
) -> list[Turn]:
    """Questions and, as often as `describe`, descriptions."""
    found = list[Turn]()
    while len(found) < TURNS:
        language = rng.choice(languages)
        if rng.random() < describe:
            found.append((DESCRIBE[LANGUAGES.index(language)], scene.tell(language)))
        else:
            question = ask(rng, scene, kinds)
            found.append((question.text(language), (question.reply(language),)))
    return found


def told(languages: Sequence[Language], kinds: Sequence[Kind], describe: float) -> Callable[[Random, int], Document]:
    """Documents about scenes that are told, the things in any order."""

    def document(rng: Random, most: int) -> Document:
        scene = draw(rng, "train", most=most)
        context = scene.tell(rng.choice(languages), rng)
        return Document(scene, context, turns(rng, scene, languages, kinds, describe))

    return document


def shown(kinds: Sequence[Kind], describe: float) -> Callable[[Random, int], Document]:
    """Documents about pictures, in English."""

    def document(rng: Random, most: int) -> Document:
        scene = draw(rng, "train", most=most)
        return Document(scene, None, turns(rng, scene, ("en",), kinds, describe))

    return document


CORPORA: dict[str, Callable[[Random, int], Document]] = {
    "base": told(LANGUAGES, (*LOOK_UP, *MAP), 0.2),
    "japanese": told(("ja",), KINDS, 0.1),
    "captions": shown((), 1.0),
    "llava": shown(KINDS, 0.1),
}


def documents(corpus: str, seed: int) -> Iterator[Callable[[int], Document]]:
    """An endless stream of one corpus; each document is made when it is known how many things it may have."""
    rng = Random(f"{corpus} {seed}")
    while True:
        yield lambda most: CORPORA[corpus](rng, most)


def make_tokenizer(image: bool = False) -> PreTrainedTokenizerFast:
    """Of all models, or with the tokens that only the one that sees has; decoding only joins."""
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    rng = Random(0)
    made = itertools.islice(documents_of_all(rng), 2_000)
    pieces = sorted({piece for text in made for piece, _ in cut.pre_tokenize_str(text)})
    special = ["<bos>", "<eos>", "<unk>"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.Fuse()
    tokenizer.add_special_tokens(special + ([IMAGE, "<pad>"] if image else []))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    more = {"pad_token": "<pad>", "extra_special_tokens": {"image_token": IMAGE}} if image else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, padding_side="left", model_max_length=128, **more,
    )  # fmt: skip


def documents_of_all(rng: Random) -> Iterator[str]:
    """Texts in which all words occur."""
    while True:
        scene = draw(rng, "train")
        for language in LANGUAGES:
            yield from scene.tell(language, rng)
            yield DESCRIBE[LANGUAGES.index(language)]
            for kind in (*LOOK_UP, *MAP, *KINDS):
                question = ask(rng, scene, [kind])
                yield question.text(language) + question.reply(language)


def questions(split: Split, count: int) -> list[dict[str, Any]]:
    """Different scenes of `split` with two to four things, a question about each, the kinds as often as each other."""
    rng = Random(f"{split} questions")
    scenes: dict[Scene, Question] = {}
    while len(scenes) < count:
        scene = draw(rng, split, fewest=2)
        scenes[scene] = ask(rng, scene, [KINDS[len(scenes) % len(KINDS)]])
    pictures = render(np.random.default_rng(SEEDS[split]), list(scenes))
    return [
        {
            "image": {"bytes": png(picture), "path": None},
            "question": question.text("ja"),
            "answer": question.reply("ja"),
            "english_question": question.text("en"),
            "english_answer": question.reply("en"),
            "description": "".join(scene.tell("ja")),
            "kind": " ".join(question.kind),
        }
        for (scene, question), picture in zip(scenes.items(), pictures, strict=True)
    ]


def png(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", optimize=True)
    return content.getvalue()


def write_data(folder: Path, change: str | None = None) -> None:
    """Both splits; `blind`: all pictures are grey; `shuffled`: each is another one's."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        rows = questions(split, count)
        pictures = [row["image"] for row in rows]
        if change == "blind":
            pictures = [{"bytes": png(np.full((SIZE, SIZE, 3), GREY, np.uint8)), "path": None}] * count
        if change == "shuffled":
            pictures = [*pictures[1:], pictures[0]]
        rows = [row | {"image": picture} for row, picture in zip(rows, pictures, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def main() -> None:
    """Write the questions as they are."""
    make_parser(__doc__, __file__, output=None).parse_args()
    write_data(DATA)


if __name__ == "__main__":
    main()
