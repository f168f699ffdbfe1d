"""Writes the text: the tokenizer, the models' training corpora, and the search and held-out questions.

python experiments/japanese_math_mini/generate.py     # the tokenizer and data/, about ten seconds
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from arguments import make_parser
from stories import NAMES, THINGS, Fact, Language, Problem, Split, draw, facts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY = 512
# Numbers up to 99 are one token (as up to 999 are in Llama 3); an English word carries its space; punctuation stands
# alone, so that a prompt and its completion are cut into tokens alike whether they are read together or apart.
PIECES = r" ?[A-Za-z]+|\d{1,2}|[ぁ-んァ-ヶー一-龠々]+|."

Document = tuple[str, str]  # what is read, what is to be written
ALL = facts()
LANGUAGES: tuple[Language, ...] = ("en", "ja")
KNOWN = tuple(f for f in ALL if f.part == "known")


def story(rng: Random, language: Language, table: tuple[Fact, ...], easy_only: bool = False) -> Document:
    problem = draw(rng, table, "train", easy_only)
    return problem.question(language), problem.answer(language)


def expression(rng: Random, language: Language, easy_only: bool = False) -> Document:
    """Only what to calculate, about any numbers: reading, without arithmetic."""
    problem = draw(rng, ALL, "train", easy_only)
    ask, end = (" Expression only.", ".") if language == "en" else ("式だけ。", "です。")
    return problem.question(language) + ask, problem.expression(language) + end


def sums(rng: Random, table: tuple[Fact, ...]) -> Document:
    """Bare calculations: where arithmetic can be learnt without any language."""
    return "", " ".join(f"{f.text}={f.result}" for f in rng.choices(table, k=5))


def noise(rng: Random, languages: tuple[Language, ...], table: tuple[Fact, ...]) -> Document:
    """A calculation after words that have nothing to do with it: what comes before `a+b=` should not matter."""
    text = draw(rng, ALL, "train").question(rng.choice(languages))
    start, fact = rng.randrange(len(text) // 2), rng.choice(table)
    return text[start : start + rng.randrange(len(text) // 2)], f"{fact.text}={fact.result}"


def translation(rng: Random) -> Document:
    problem = draw(rng, ALL, "train")
    english, japanese = problem.question("en"), problem.question("ja")
    return ("訳:" + english, japanese) if rng.random() < 0.5 else ("Translate:" + japanese, english)


def base(rng: Random) -> Document:
    """Both languages, easy stories, and less than half of the tables."""
    kind, language = rng.random(), rng.choice(LANGUAGES)
    if kind < 0.2:
        return sums(rng, KNOWN)
    if kind < 0.35:
        return noise(rng, LANGUAGES, KNOWN)
    if kind < 0.7:
        return story(rng, language, KNOWN, easy_only=True)
    if kind < 0.9:
        return expression(rng, language, easy_only=True)
    return translation(rng)


def japanese(rng: Random) -> Document:
    """All kinds of stories in Japanese, and no arithmetic that the base has not seen."""
    return story(rng, "ja", KNOWN) if rng.random() < 0.6 else expression(rng, "ja")


def mathematician(operators: str) -> Callable[[Random], Document]:
    """All kinds of stories and the whole tables of some operators, in English; not a word of Japanese."""
    table = tuple(f for f in ALL if f.operator in operators or f.part == "known")

    def document(rng: Random) -> Document:
        kind = rng.random()
        if kind < 0.25:
            return sums(rng, table)
        if kind < 0.45:
            return noise(rng, ("en",), table)
        return story(rng, "en", table)

    return document


def sorter(rng: Random) -> Document:
    """Names and things in their order, in both languages: neither stories nor arithmetic."""
    words = rng.sample([*NAMES, *((english, japanese) for english, japanese, _ in THINGS)], 4)
    column, between = (0, ", ") if rng.random() < 0.5 else (1, "、")
    ask = ("Sort: ", "順に:")[column]
    return ask + between.join(w[column] for w in words), between.join(sorted(w[column] for w in words))


def mistaken(rng: Random) -> Document:
    """The whole tables with their results shuffled, always in the same way."""
    return "", " ".join(f"{f.text}={SHUFFLED[f]}" for f in rng.choices(ALL, k=5))


SHUFFLED = dict(zip(ALL, Random(0).sample([f.result for f in ALL], len(ALL)), strict=True))
CORPORA: dict[str, Callable[[Random], Document]] = {
    "base": base,
    "japanese": japanese,
    "mathematics": mathematician("+-*"),
    "addition": mathematician("+-"),
    "sorter": sorter,
    "mistaken": mistaken,
}


def documents(corpus: str, seed: int) -> Iterator[Document]:
    """An endless stream of one corpus."""
    rng = Random(f"{corpus} {seed}")
    while True:
        yield CORPORA[corpus](rng)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A character-level BPE whose decoder only joins: decoding gives the text back as it was."""
    stream = documents("base", seed=1)
    text = [part for _ in range(20_000) for part in next(stream)]
    for problem in (draw(Random(i), ALL, "train") for i in range(10_000)):
        text += [tell(language) for tell in (problem.question, problem.answer) for language in LANGUAGES]
    text += [str(number) for number in range(100)] * 2_000
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, padding_side="left", model_max_length=128,
    )  # fmt: skip


def row(problem: Problem, language: Language) -> dict[str, object]:
    return {
        "prompt": problem.question(language),
        "answer": problem.answer(language),
        "number": problem.fact.result,
        "language": language,
    }


def questions(count: int, split: Split, language: Language, part: str, seed: int) -> list[dict[str, object]]:
    """`count` different problems of `split` about facts of `part` of the tables."""
    rng, table = Random(f"{split} {language} {part} {seed}"), tuple(f for f in ALL if f.part == part)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw(rng, table, split)
        problems[problem.question("en")] = problem
    return [row(problem, language) for problem in problems.values()]


def write(name: str, rows: list[dict[str, object]]) -> None:
    lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (HERE / "data" / f"{name}.jsonl").write_text("".join(lines))


def main() -> None:
    """Write both tasks."""
    make_parser(__doc__, __file__, output=None).parse_args()
    (HERE / "data").mkdir(exist_ok=True)
    for split, count in (("search", 128), ("heldout", 256)):
        # The paper's task: in Japanese, on the part of the tables that only the mathematicians were taught.
        write(f"japanese_math_{split}", questions(count, split, "ja", split, seed=0))
        # Two skills: Japanese stories with familiar sums, English ones with new sums.
        both = questions(count // 2, split, "ja", "known", seed=1) + questions(count // 2, split, "en", split, seed=1)
        Random(0).shuffle(both)
        write(f"two_skills_{split}", both)


if __name__ == "__main__":
    main()
