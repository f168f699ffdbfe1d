"""Word problems in two languages: one problem, two tellings, one expression.

Everything that is said about a problem is said here once, so that the English and the Japanese telling of the same
problem differ in language only. `Fact` is the unit of arithmetic (3+4), `Problem` the unit of text (who, what, how).
"""

import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

Language = Literal["en", "ja"]
Split = Literal["train", "search", "heldout"]

NAMES = (
    ("Ken", "ケン"), ("Mia", "ミア"), ("Tom", "トム"), ("Anna", "アンナ"), ("Leo", "レオ"), ("Emma", "エマ"),
    ("Sam", "サム"), ("Lisa", "リサ"), ("Ben", "ベン"), ("Nina", "ニナ"), ("Max", "マックス"), ("Sara", "サラ"),
    ("Noah", "ノア"), ("Ruby", "ルビー"), ("Dan", "ダン"), ("Kate", "ケイト"),
)  # fmt: skip
# A Japanese noun takes its own counter: a small thing that no English text can teach.
THINGS = (
    ("apples", "りんご", "個"), ("lemons", "レモン", "個"), ("eggs", "卵", "個"), ("stones", "石", "個"),
    ("pencils", "鉛筆", "本"), ("flowers", "花", "本"), ("bananas", "バナナ", "本"), ("bottles", "びん", "本"),
    ("stamps", "切手", "枚"), ("cards", "カード", "枚"), ("plates", "皿", "枚"), ("photos", "写真", "枚"),
    ("books", "本", "冊"), ("notebooks", "ノート", "冊"), ("cats", "猫", "匹"), ("frogs", "かえる", "匹"),
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """One way to tell a problem. The base model's text has the `easy` ones only."""

    operator: Literal["+", "-", "*"]
    easy: bool
    en: str
    ja: str


TEMPLATES = (
    Template("+", True, "{A} has {x} {T}. {B} gives {A} {y} more. How many {T} does {A} have?",
             "{A}は{T}を{x}{C}持っています。{B}から{y}{C}もらいました。{A}の{T}は何{C}ですか。"),
    Template("+", False, "{A} found {x} {T} and {B} found {y}. How many {T} are there together?",
             "{A}が{T}を{x}{C}、{B}が{y}{C}見つけました。合わせて何{C}ですか。"),
    Template("+", False, "There were {x} {T} in a box. {A} put in {y} more. How many are in the box?",
             "箱に{T}が{x}{C}ありました。{A}がもう{y}{C}入れました。箱には何{C}ありますか。"),
    Template("+", False, "{A} got {y} {T} today after getting {x} yesterday. How many in two days?",
             "{A}は昨日{x}{C}、今日{y}{C}の{T}をもらいました。二日で何{C}もらいましたか。"),
    Template("-", True, "{A} has {x} {T}. {A} gives {y} to {B}. How many {T} are left?",
             "{A}は{T}を{x}{C}持っています。{B}に{y}{C}あげました。残りは何{C}ですか。"),
    Template("-", False, "{A} had {x} {T} but lost {y} of them. How many does {A} have now?",
             "{A}の{T}は{x}{C}でしたが、{y}{C}なくしました。今は何{C}ありますか。"),
    Template("-", False, "{A} has {x} {T}. {B} has {y} fewer. How many {T} does {B} have?",
             "{A}は{T}を{x}{C}持ち、{B}はそれより{y}{C}少ないです。{B}は何{C}持っていますか。"),
    Template("-", False, "{A} needs {x} {T} and already has {y}. How many more are needed?",
             "{A}には{T}が{x}{C}必要で、もう{y}{C}あります。あと何{C}いりますか。"),
    Template("*", True, "There are {x} boxes with {y} {T} in each. How many {T} are there?",
             "{T}が{y}{C}入った箱が{x}箱あります。{T}は何{C}ですか。"),
    Template("*", False, "{A} gets {y} {T} every day for {x} days. How many {T} is that?",
             "{A}は毎日{T}を{y}{C}ずつ{x}日間もらいました。全部で何{C}ですか。"),
    Template("*", False, "{x} children have {y} {T} each. How many {T} do they have?",
             "{x}人の子どもが{T}を{y}{C}ずつ持っています。みんなで何{C}ですか。"),
    Template("*", False, "{A} has {y} {T} and {B} has {x} times as many. How many does {B} have?",
             "{A}は{T}を{y}{C}、{B}はその{x}倍持っています。{B}の{T}は何{C}ですか。"),
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A calculation, and which part of the multiplication or addition table it belongs to.

    Facts that give each other away (3+4, 4+3, 7-3, 7-4) form a family and are always in the same part: "known" is
    what the base model was taught, the other two only the mathematicians were.
    """

    operator: str
    x: int
    y: int

    @property
    def result(self) -> int:
        return {"+": self.x + self.y, "-": self.x - self.y, "*": self.x * self.y}[self.operator]

    @property
    def text(self) -> str:
        return f"{self.x}{self.operator}{self.y}"

    @property
    def family(self) -> str:
        pair = (self.result, self.y) if self.operator == "-" else (self.x, self.y)
        return f"{self.operator == '*'} {sorted(pair)}"

    @property
    def part(self) -> Literal["known", "search", "heldout"]:
        bucket = zlib.crc32(self.family.encode()) % 10
        return "known" if bucket < 4 else "search" if bucket < 7 else "heldout"


def facts() -> tuple[Fact, ...]:
    """The whole table: sums of 2..12, the differences they give, products of 2..9."""
    sums = [(x, y) for x in range(2, 13) for y in range(2, 13)]
    products = [(x, y) for x in range(2, 10) for y in range(2, 10)]
    return (
        *(Fact("+", x, y) for x, y in sums),
        *(Fact("-", x + y, y) for x, y in sums),
        *(Fact("*", x, y) for x, y in products),
    )


@dataclass(frozen=True)
class Problem:
    """A story about a fact. Its split is a hash of its text: no list of used problems has to be kept."""

    template: Template
    fact: Fact
    first: tuple[str, str]
    second: tuple[str, str]
    thing: tuple[str, str, str]

    @property
    def split(self) -> Split:
        bucket = zlib.crc32(self.question("en").encode()) % 10
        return "train" if bucket < 8 else "search" if bucket == 8 else "heldout"

    def _words(self, language: Language) -> dict[str, object]:
        i = ("en", "ja").index(language)
        return {
            "A": self.first[i],
            "B": self.second[i],
            "T": self.thing[i],
            "C": self.thing[2],
            "x": self.fact.x,
            "y": self.fact.y,
        }

    def question(self, language: Language) -> str:
        return getattr(self.template, language).format(**self._words(language))

    def expression(self, language: Language) -> str:
        """The calculation, not carried out."""
        return {"en": f" We get {self.fact.text}", "ja": f"式は{self.fact.text}"}[language]

    def answer(self, language: Language) -> str:
        end = f" {self.thing[0]}." if language == "en" else f"{self.thing[2]}です。"
        return f"{self.expression(language)}={self.fact.result}{end}"


def draw(rng: Random, table: tuple[Fact, ...], split: Split, easy_only: bool = False) -> Problem:
    """A problem of `split` about a fact of `table`, all its operators equally often."""
    while True:
        operator = rng.choice(sorted({f.operator for f in table}))
        template = rng.choice([t for t in TEMPLATES if t.operator == operator and (t.easy or not easy_only)])
        fact = rng.choice([f for f in table if f.operator == operator])
        first, second = rng.sample(NAMES, 2)
        problem = Problem(template, fact, first, second, rng.choice(THINGS))
        if problem.split == split:
            return problem
