"""From generated text to an answer, and whether it is the right one."""

from __future__ import annotations

import re

from jevomerge.config import Task

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def extract_answer(task: Task, text: str) -> str:
    """The answer in `text`, "" if there is none; `text` ends before the task's first stop string."""
    for stop in task.stop:
        text = text.split(stop, 1)[0]
    if task.pattern is not None:
        found = re.findall(task.pattern, text)
        last = found[-1] if found else ""
        return (last if isinstance(last, str) else last[0]).strip()
    if task.extract == "last_number":
        numbers = NUMBER.findall(text)
        return numbers[-1] if numbers else ""
    return text.strip()


def is_correct(task: Task, text: str, reference: str) -> bool:
    """Whether generated `text` answers as `reference` does; numbers compare by value ("1,000" is 1000)."""
    answer = extract_answer(task, text)
    if task.extract == "last_number":
        return answer != "" and _number(answer) == _number(extract_answer(task, reference))
    if task.pattern is not None:
        # A reference is either a whole answer text or the bare answer.
        expected = extract_answer(task, reference) or reference.strip()
        return answer != "" and answer == expected
    return answer == reference.strip()


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
