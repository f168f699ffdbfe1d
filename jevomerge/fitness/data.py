"""Examples of a task: rendered and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.rows import Row, read_rows
from jevomerge.fitness.schema import DataSource, OwnScore, Task
from jevomerge.fitness.task import Document
from jevomerge.fitness.template import render


def load_examples(task: Task, split: str, tokenizer: Any) -> tuple[list[Row], list[Example]]:
    """The rows of a task's `search` or `heldout` split, and the examples that they are.

    Prompt and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
    For likelihoods the answer ends with the tokenizer's end-of-text token: ending is part of answering.
    """
    where = f"task {task.name}, {split}"
    source: DataSource = getattr(task, split)
    rows, examples = read_rows(source, where), []
    for number, row in enumerate(rows, (source.rows or (0,))[0]):
        place = f"{where}: {source.path}, row {number} (the first is 0)"
        try:
            prompt, answer = render(task.prompt, row), render(task.answer, row)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        examples.append(
            Example(
                prompt,
                answer,
                tokenizer(prompt, verbose=False)["input_ids"],  # whether it is too long is asked later
                tokenizer(answer, verbose=False, add_special_tokens=False)["input_ids"] + end,
            )
        )
        if not examples[-1].answer_tokens or not (answer.strip() or isinstance(task.score, OwnScore)):
            raise InputError(f"{place}: the answer is empty")
        if not examples[-1].prompt_tokens:
            raise InputError(f"{place}: the prompt is empty; put some text into the template")
    return rows, examples


def refuse_overlap(task: str, search: Sequence[Document], heldout: Sequence[Document]) -> None:
    """Held-out examples must not be among those the search sees."""
    seen = {(e.prompt, e.answer) for e in search}
    if common := sum((e.prompt, e.answer) in seen for e in heldout):
        raise InputError(
            f"task {task}: {common} of {len(heldout)} held-out examples are also in the search split; "
            "give the two splits different rows"
        )


def fingerprint(examples: Sequence[Any]) -> str:
    """A digest of the examples, by which a resumed run knows that its data is still the same."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.prompt, example.answer)).encode())
    return digest.hexdigest()[:16]
