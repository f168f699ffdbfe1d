"""Other things that the models can do: up to 128 questions of each kind of text, none of them in a training text."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import generate
from generate import Document
from stories import Fact, Language, draw

import jevomerge as jm
from jevomerge.fitness.schema import Task

NEW = tuple(f for f in generate.ALL if f.part == "heldout")
[TWO_SKILLS] = jm.read_tasks(generate.HERE.parents[1] / "configs" / "tasks" / "mini_two_skills.yaml")
STORIES = {"pattern": TWO_SKILLS.pattern}
NUMBER, EXACT = {"pattern": r"^(\d+)"}, {"extract": "exact", "max_new_tokens": 40}


def stories(language: Language, part: str) -> list[Document]:
    rows = generate.questions(128, "heldout", language, part, seed=2)
    return [(str(r["prompt"]), str(r["answer"])) for r in rows]


def sums(facts: Sequence[Fact]) -> list[Document]:
    return [(f"{f.text}=", str(f.result)) for f in facts]


def sums_after_words(rng: Random, facts: tuple[Fact, ...]) -> list[Document]:
    pairs = (generate.noise(rng, ("ja",), facts) for _ in range(128))
    return [(words + text.split("=")[0] + "=", text.split("=")[1]) for words, text in pairs]


def tasks(folder: Path) -> list[Task]:
    """The questions, written to `folder`, as tasks."""
    rng = Random(0)
    problems = [draw(rng, generate.ALL, "heldout") for _ in range(128)]
    ja = [(p.question("ja") + "式だけ。", p.expression("ja") + "です。") for p in problems]
    en = [(p.question("en") + " Expression only.", p.expression("en") + ".") for p in problems]
    kinds: dict[str, tuple[list[Document], dict[str, Any]]] = {
        "Japanese stories, known sums": (stories("ja", "known"), STORIES),
        "English stories, known sums": (stories("en", "known"), STORIES),
        "English stories, new sums": (stories("en", "heldout"), STORIES),
        "Japanese, expression only": (ja, EXACT),
        "English, expression only": (en, EXACT),
        "bare sums, known": (sums(generate.KNOWN), NUMBER),
        "bare sums, new": (sums(NEW), NUMBER),
        "new sums after Japanese words": (sums_after_words(rng, NEW), NUMBER),
        "translation into Japanese": ([("訳:" + p.question("en"), p.question("ja")) for p in problems], EXACT),
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, (documents, judged) in kinds.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in documents))
        texts = {"prompt": "{prompt}", "answer": "{answer}", "search": str(path), "heldout": str(path)}
        values = {"name": name, "score": "generation", "max_new_tokens": 16, **texts, **judged}
        made.append(Task.model_validate(values))
    return made
