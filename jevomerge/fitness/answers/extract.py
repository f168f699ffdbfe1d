"""From generated text to an answer, and how good it is."""

from __future__ import annotations

import re
from decimal import Decimal

import regex

from jevomerge.errors import InputError
from jevomerge.fitness.answers.language import probability
from jevomerge.fitness.answers.rouge import rouge_l_ja
from jevomerge.fitness.schema import Task

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
# The one that the paper's scores were made with (SakanaAI/evolutionary-model-merge, evomerge/eval/ja_mgsm.py): it reads
# "1,000" as 0, "-5" as 5 and "1/2" as 2.
SAKANA = re.compile(r"\d*\.?\d+")
NUMBERS = {"last_number": NUMBER, "sakana": SAKANA}
SECONDS = 2  # that a pattern may take for one text; a good one takes a millionth


def before_stop(task: Task, text: str) -> str:
    """The text up to the task's first stop string."""
    for stop in task.stop:
        text = text.split(stop, 1)[0]
    return text


def extract_answer(task: Task, text: str) -> str:
    """The answer in `text`, "" if there is none; `text` ends before the task's first stop string.

    Raises:
        InputError: for a pattern that does not come to an end.
    """
    text = before_stop(task, text)
    if task.pattern is not None:
        try:
            found = regex.findall(task.pattern, text, timeout=SECONDS)
        except TimeoutError:
            raise InputError(
                f"pattern: `{task.pattern}` takes more than {SECONDS} s for a text of {len(text)} letters, for there "
                "are too many ways to match it: leave out repetitions of what can match the same"
            ) from None
        last = found[-1] if found else ""
        return (last if isinstance(last, str) else last[0]).strip()
    if task.extract in NUMBERS:
        numbers = NUMBERS[task.extract].findall(text)
        return numbers[-1] if numbers else ""
    return text.strip()


def is_correct(task: Task, text: str, reference: str) -> bool:
    """Whether generated `text` answers as `reference` does; numbers compare by value ("1,000" is 1000)."""
    answer = extract_answer(task, text)
    if task.extract in NUMBERS:
        numbers = NUMBER.findall(before_stop(task, reference))  # the right one, whatever the text is read by
        return answer != "" and numbers != [] and _number(task, answer) == _number(task, numbers[-1])
    if task.pattern is not None:
        # A reference is either a whole answer text or the bare answer.
        expected = extract_answer(task, reference) or reference.strip()
        return answer != "" and answer == expected
    return answer == reference.strip()


def grade(task: Task, text: str, reference: str) -> float:
    """What generated `text` scores, from 0 to 1; 0 in another language than the task's."""
    if task.compare == "rouge_l_ja":
        score = rouge_l_ja(reference.strip(), extract_answer(task, text))
    else:
        score = float(is_correct(task, text, reference))
    if score and task.language is not None:
        score *= probability(before_stop(task, text), task.language) > 0.5
    return score


def other_criteria(task: Task) -> dict[str, Task]:
    """By name, the other ways in which texts of a task are judged: by its further extractors, and in any language."""
    name = task.extract or "pattern"
    ways = {name: task} | {e: task.model_copy(update={"extract": e, "pattern": None}) for e in task.also}
    anyhow = {f"{n}, any language": t.model_copy(update={"language": None}) for n, t in ways.items() if t.language}
    return {n: t for n, t in (ways | anyhow).items() if t is not task}


def _number(task: Task, text: str) -> float | Decimal:
    """Exactly, or as the paper's evaluation has it."""
    text = text.replace(",", "")
    return float(text) if task.extract == "sakana" else Decimal(text)
