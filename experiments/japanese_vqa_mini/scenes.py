"""Scenes of coloured shapes: told in English and in Japanese, drawn as pictures, and asked about with known answers."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import numpy as np

Language = Literal["en", "ja"]
Split = Literal["train", "search", "heldout"]
Words = tuple[str, str]  # in English, in Japanese
LANGUAGES: tuple[Language, ...] = ("en", "ja")

PLACES: tuple[Words, ...] = (
    ("upper left", "左上"), ("upper right", "右上"), ("lower left", "左下"), ("lower right", "右下"),
)  # fmt: skip
COLOURS: tuple[Words, ...] = (
    ("red", "赤"), ("green", "緑"), ("blue", "青"), ("yellow", "黄"), ("purple", "紫"), ("white", "白"),
)  # fmt: skip
SHAPES: tuple[Words, ...] = (
    ("circle", "丸"), ("square", "四角"), ("triangle", "三角"), ("cross", "十字"), ("ring", "輪"), ("diamond", "菱形"),
)  # fmt: skip
VOCABULARIES = {"place": PLACES, "colour": COLOURS, "shape": SHAPES}


class Kind(NamedTuple):
    """What is asked about which of the four places, given another one."""

    relation: Literal["at", "beside", "over", "opposite"]
    asked: Literal["colour", "shape", "place"]


RELATIONS = ("at", "beside", "over", "opposite")  # numbers that tell two places' apart: left and right 1, up and down 2
LOOK_UP = (Kind("at", "colour"), Kind("at", "shape"))
MAP = tuple(Kind(relation, "place") for relation in RELATIONS[1:])  # can be answered without any scene
KINDS = tuple(Kind(relation, "colour") for relation in RELATIONS)  # what is asked in the end
PHRASES = {  # of a relation, for places above and below
    "at": (("{}", "{}"), ("{}", "{}")),
    "beside": (("beside {}", "beside {}"), ("{}の隣", "{}の隣")),
    "over": (("below {}", "above {}"), ("{}の下", "{}の上")),
    "opposite": (("opposite {}", "opposite {}"), ("{}の向かい", "{}の向かい")),
}
ASKING = {
    "colour": (" What colour is {}?", "{}は何色ですか。"),
    "shape": (" What shape is {}?", "{}はどんな形ですか。"),
    "place": (" Which place is {}?", "{}はどこですか。"),
}
SENTENCE: Words = (" {}: {} {}.", "{}に{}の{}。")
DESCRIBE: Words = (" Describe.", "説明して。")


class Thing(NamedTuple):
    """What is in a cell: indices into the vocabularies."""

    place: int
    colour: int
    shape: int


@dataclass(frozen=True)
class Scene:
    """Things by their places. Its split is a hash of it: no list of used scenes has to be kept."""

    things: tuple[Thing, ...]

    @property
    def split(self) -> Split:
        bucket = zlib.crc32(repr([tuple(t) for t in self.things]).encode()) % 10
        return "train" if bucket < 8 else "search" if bucket == 8 else "heldout"

    def tell(self, language: Language, rng: Random | None = None) -> tuple[str, ...]:
        """A sentence for every thing, in the order of the places; with an `rng` in any order."""
        i = LANGUAGES.index(language)
        things = self.things if rng is None else rng.sample(self.things, len(self.things))
        return tuple(SENTENCE[i].format(PLACES[p][i], COLOURS[c][i], SHAPES[s][i]) for p, c, s in things)


@dataclass(frozen=True)
class Question:
    """One question about a scene; its words, and those of its answer."""

    kind: Kind
    given: int  # place
    answer: int  # index into a vocabulary

    def text(self, language: Language) -> str:
        i = LANGUAGES.index(language)
        phrase = PHRASES[self.kind.relation][i][self.given // 2].format(PLACES[self.given][i])
        return ASKING[self.kind.asked][i].format(phrase)

    def reply(self, language: Language) -> str:
        words = VOCABULARIES[self.kind.asked][self.answer]
        return f" {words[0]}." if language == "en" else f"{words[1]}です。"


def draw(rng: Random, split: Split, fewest: int = 1, most: int = 4) -> Scene:
    """A scene of `split`."""
    while True:
        places = sorted(rng.sample(range(len(PLACES)), rng.randint(fewest, most)))
        scene = Scene(tuple(Thing(p, rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES))) for p in places))
        if scene.split == split:
            return scene


def ask(rng: Random, scene: Scene, kinds: Sequence[Kind]) -> Question:
    """A question about a thing of the scene, of a kind drawn among `kinds`."""
    kind, thing = rng.choice(kinds), rng.choice(scene.things)
    return Question(kind, thing.place ^ RELATIONS.index(kind.relation), getattr(thing, kind.asked))


# --- pictures -----------------------------------------------------------------------------------------------

SIZE, CELL = 32, 16  # pixels along a side of a picture, of one of its four cells
RGB = np.array(
    [(220, 50, 40), (50, 170, 60), (50, 90, 220), (225, 205, 50), (150, 60, 170), (235, 235, 235)], np.float32
)
COVERED: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (  # pixels of each shape, about its middle
    lambda x, y: np.hypot(x, y) < 1,
    lambda x, y: np.maximum(abs(x), abs(y)) < 0.88,
    lambda x, y: (y < 0.8) & (2 * abs(x) - 0.9 < y),
    lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1.1),
    lambda x, y: (np.hypot(x, y) < 1.1) & (np.hypot(x, y) > 0.6),
    lambda x, y: abs(x) + abs(y) < 1.15,
)
GREY, NOISE = 60.0, 10.0


def render(rng: np.random.Generator, scenes: Sequence[Scene]) -> np.ndarray:
    """(N, 32, 32, 3) uint8: shapes of varying size and place in their cells, varying shades, noise everywhere."""
    owner, place, colour, shape = np.array([(n, *thing) for n, scene in enumerate(scenes) for thing in scene.things]).T
    count = len(owner)

    def varying(low: float, high: float, *more: int) -> np.ndarray:
        return rng.uniform(low, high, (count, *more)).astype(np.float32)

    y, x = ((at - CELL / 2 + 0.5 + varying(-1.5, 1.5, 1, 1)) for at in np.mgrid[:CELL, :CELL].astype(np.float32))
    mask = np.zeros((count, CELL, CELL), bool)
    radius = varying(4.5, 6.0, 1, 1)
    for i, covered in enumerate(COVERED):
        mask[shape == i] = covered(*(at[shape == i] / radius[shape == i] for at in (x, y)))
    shade = RGB[colour] * varying(0.8, 1.05, 1) + varying(-10, 10, 3)
    cells = np.full((len(scenes), 4, CELL, CELL, 3), GREY, np.float32)
    cells += rng.uniform(-20, 20, (len(scenes), 1, 1, 1, 1)).astype(np.float32)
    cells[owner, place] = np.where(mask[..., None], shade[:, None, None], cells[owner, place])
    whole = cells.reshape(-1, 2, 2, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, SIZE, SIZE, 3)
    noise = NOISE * rng.standard_normal(whole.shape, np.float32)
    return np.clip(whole + noise, 0, 255).astype(np.uint8)
