"""Word problems of one and two steps, told in English and in Japanese; what each model is taught, and what is asked.

Plain kinds are taught in both languages. Of the others the Japanese model sees no worked answer, and `maths` sees these
in English alone; half of what is asked, in Japanese, is of these. A problem's split is a hash of its kind and numbers,
so that no problem that is asked is in any training text, in whatever language.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

Language = Literal["en", "ja"]
Document = tuple[str, str]  # what is read, what is to be written
PROMPTS: dict[Language, str] = {"en": "Question: {}\nAnswer:", "ja": "問題: {}\n答え:"}
PEOPLE = (
    ("Ken", "ケン"), ("Mia", "ミア"), ("Tom", "トム"), ("Anna", "アンナ"), ("Leo", "レオ"), ("Emma", "エマ"),
    ("Sam", "サム"), ("Lisa", "リサ"), ("Ben", "ベン"), ("Nina", "ニナ"), ("Max", "マックス"), ("Sara", "サラ"),
)  # fmt: skip
THINGS = (
    ("apples", "りんご", "個"), ("eggs", "卵", "個"), ("stones", "石", "個"), ("pencils", "鉛筆", "本"),
    ("flowers", "花", "本"), ("bananas", "バナナ", "本"), ("stamps", "切手", "枚"), ("cards", "カード", "枚"),
    ("photos", "写真", "枚"), ("books", "本", "冊"), ("notebooks", "ノート", "冊"), ("cats", "猫", "匹"),
)  # fmt: skip
SMALL, BIG = (2, 6), (3, 20)
LARGEST = 300  # no number of a problem is larger
LONGEST = 128  # tokens of a document


class Kind(NamedTuple):
    """A kind of story: its steps over x, y, z and r, what the step before came to; the ranges of x, y, z."""

    plain: bool
    steps: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    en: str
    ja: str


KINDS = (
    Kind(True, ("x+y",), (BIG, BIG), "{A} has {x} {T}. {B} gives {A} {y} more. How many {T} does {A} have?",
         "{A}は{T}を{x}{C}持っています。{B}から{y}{C}もらいました。{A}の{T}は何{C}ですか。"),
    Kind(True, ("x-y",), (BIG, BIG), "{A} has {x} {T}. {A} gives {y} to {B}. How many {T} are left?",
         "{A}は{T}を{x}{C}持っています。{B}に{y}{C}あげました。残りは何{C}ですか。"),
    Kind(True, ("x*y",), (SMALL, BIG), "There are {x} boxes with {y} {T} in each. How many {T} are there?",
         "{T}が{y}{C}入った箱が{x}箱あります。{T}は全部で何{C}ですか。"),
    Kind(False, ("y*z", "x+r"), (BIG, SMALL, SMALL),
         "{A} has {x} {T} and buys {y} boxes with {z} {T} in each. How many {T} does {A} have now?",
         "{A}は{T}を{x}{C}持っていて、{z}{C}入りの箱を{y}箱買いました。{A}の{T}は今何{C}ですか。"),
    Kind(False, ("y*z", "x-r"), (BIG, SMALL, SMALL),
         "{A} had {x} {T} and gave {y} {T} to each of {z} friends. How many {T} are left?",
         "{A}は{T}を{x}{C}持っていましたが、{z}人の友だちに{y}{C}ずつあげました。残りは何{C}ですか。"),
    Kind(False, ("x-y", "r+z"), (BIG, BIG, BIG),
         "There were {x} {T} in a box. {A} took out {y} and {B} put in {z}. How many {T} are in the box?",
         "箱に{T}が{x}{C}ありました。{A}が{y}{C}取り出し、{B}が{z}{C}入れました。箱の{T}は何{C}ですか。"),
    Kind(False, ("x+y", "x+r"), (BIG, BIG),
         "{A} has {x} {T}. {B} has {y} more {T} than {A}. How many {T} do they have together?",
         "{A}は{T}を{x}{C}持っていて、{B}は{A}より{y}{C}多く持っています。二人合わせて何{C}ですか。"),
    Kind(False, ("x*y", "x+r"), (BIG, SMALL),
         "{A} has {x} {T}. {B} has {y} times as many {T} as {A}. How many {T} do they have together?",
         "{A}は{T}を{x}{C}持っていて、{B}は{A}の{y}倍持っています。二人合わせて何{C}ですか。"),
    Kind(False, ("x+y", "r/z"), (BIG, BIG, SMALL),
         "{A} found {x} {T} and {B} found {y}. They put them equally into {z} bags. How many {T} are in each bag?",
         "{A}が{T}を{x}{C}、{B}が{y}{C}見つけました。{z}つの袋に同じ数ずつ入れると、一袋は何{C}ですか。"),
)  # fmt: skip
PLAIN, HARDER = tuple(k for k in KINDS if k.plain), tuple(k for k in KINDS if not k.plain)
APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b,
}  # fmt: skip


class Problem(NamedTuple):
    """A story with its numbers: how it is worked out, and to what it comes."""

    kind: Kind
    numbers: dict[str, int]
    worked: tuple[str, ...]
    result: int
    words: dict[str, tuple[str, str]]

    @property
    def split(self) -> str:
        bucket = zlib.crc32(f"{KINDS.index(self.kind)} {sorted(self.numbers.items())}".encode()) % 10
        return "train" if bucket < 6 else "search" if bucket < 8 else "heldout"

    def question(self, language: Language) -> str:
        words = {k: v[language == "ja"] for k, v in self.words.items()}
        return PROMPTS[language].format(getattr(self.kind, language).format(**words, **self.numbers))

    def answer(self, language: Language) -> str:
        if language == "en":
            return "".join(f" {step}." for step in self.worked) + f" The answer is {self.result}."
        return "".join(f"{step}。" for step in self.worked) + f"答えは{self.result}です。"


def work_out(steps: tuple[str, ...], numbers: dict[str, int]) -> tuple[tuple[str, ...], int] | None:
    """What is written, and the result; None where a step would leave the whole numbers from 1 to LARGEST."""
    worked, known = [], dict(numbers)
    for left, sign, right in steps:
        a, b = known[left], known[right]
        known["r"] = APPLY[sign](a, b)
        if not 1 <= known["r"] <= LARGEST or (sign == "/" and a % b):
            return None
        worked.append(f"{a}{sign}{b}={known['r']}")
    return tuple(worked), known["r"]


def draw(rng: Random, kinds: tuple[Kind, ...], split: str) -> Problem:
    """One of a split, all kinds equally often."""
    kind = rng.choice(kinds)
    while True:
        numbers = {name: rng.randint(*range_) for name, range_ in zip("xyz", kind.ranges, strict=False)}
        (first, second), (en, ja, counter) = rng.sample(PEOPLE, 2), rng.choice(THINGS)
        words = {"A": first, "B": second, "T": (en, ja), "C": (counter, counter)}
        if (found := work_out(kind.steps, numbers)) and (made := Problem(kind, numbers, *found, words)).split == split:
            return made


def story(rng: Random, language: Language, kinds: tuple[Kind, ...]) -> Document:
    problem = draw(rng, kinds, "train")
    return problem.question(language), problem.answer(language)


def translation(rng: Random) -> Document:
    """A story of any kind in the other language, without its answer."""
    problem, (read, written) = draw(rng, KINDS, "train"), rng.sample(("en", "ja"), 2)
    texts = {language: problem.question(language).splitlines()[0] for language in ("en", "ja")}
    return f"{texts[read]}\n", texts[written]


def sums(rng: Random) -> Iterator[Document]:
    """The calculations of a story without the story."""
    for step in draw(rng, KINDS, "train").worked:
        asked, result = step.split("=")
        yield f"{asked}=", f"{result}."


def gsm8k(data: Path) -> list[Document]:
    """The questions of GSM8K that are taught (MIT), with steps and the same last sentence as the stories'."""
    rows = [json.loads(line) for line in (data / "gsm8k" / "train.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        worked, number = re.sub(r"<<.*?>>", "", row["answer"]).split("\n####")
        text = f" {' '.join(worked.split())} The answer is {number.strip().replace(',', '')}."
        found.append((PROMPTS["en"].format(row["question"]), text))
    return found


def choices(data: Path) -> list[Document]:
    """The questions of JCommonsenseQA that are taught (CC BY-SA 4.0), answered in a sentence."""
    rows = [json.loads(line) for line in (data / "jcommonsenseqa" / "train-v1.3.json").read_text().splitlines()]
    texts = [row["question"] + "、".join(row[f"choice{i}"] for i in range(5)) for row in rows]
    answers = [f"答えは{row['choice{}'.format(row['label'])]}です。" for row in rows]
    return [(PROMPTS["ja"].format(t), a) for t, a in zip(texts, answers, strict=True)]


TAUGHT = {"choices": 8000, "gsm8k": 7000}  # the first so many; the rest is for what a merge keeps


def documents(name: str, data: Path, short: Callable[[Document], bool]) -> Iterator[Document]:
    """An endless stream of what a model is taught."""
    rng = Random(name)
    read = [d for d in choices(data)[: TAUGHT["choices"]] if short(d)]
    school = [d for d in gsm8k(data)[: TAUGHT["gsm8k"]] if short(d)]
    while True:
        kind = rng.random()
        if name == "school":
            yield from sums(rng)
        elif name == "japanese":
            yield story(rng, "ja", PLAIN) if kind < 0.4 else translation(rng) if kind < 0.8 else rng.choice(read)
        else:  # maths
            yield story(rng, "en", KINDS) if kind < 0.7 else rng.choice(school)


def questions(count: int, split: str, language: Language = "ja") -> list[dict[str, Any]]:
    """Different problems, half of them of the kinds that no model saw in Japanese."""
    rng, found = Random(split), dict[str, dict[str, Any]]()
    while len(found) < count:
        problem = draw(rng, HARDER if len(found) % 2 else PLAIN, split)
        prompt = problem.question(language)
        kind = KINDS.index(problem.kind)
        found[prompt] = {"prompt": prompt, "answer": problem.answer(language), "number": problem.result, "kind": kind}
    return list(found.values())
