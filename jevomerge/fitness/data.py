"""Examples of a task: rendered and tokenised."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.chat import opened, turns_of
from jevomerge.fitness.pictures import MARK, Eyes, Picture, images_of
from jevomerge.fitness.rows import Row, read_rows
from jevomerge.fitness.schema import DataSource, Task
from jevomerge.fitness.task import Document
from jevomerge.fitness.tasks import AnyTask
from jevomerge.fitness.template import render, value_of


def refuse_cached(task: AnyTask, split: str) -> None:
    """Raise InputError for private data that is not a file here."""
    path = getattr(task, split).path
    if task.private and not os.path.exists(Path(path).expanduser()):
        raise InputError(
            f"task {task.name}, {split}: private: {path} is not a file here; one of the hub is kept in a cache on disk"
        )


def load_examples(task: Task, split: str, tokenizer: Any, eyes: Eyes | None = None) -> tuple[list[Row], list[Example]]:
    """The rows of a task's `search` or `heldout` split, and the examples that they are; `eyes` look at pictures.

    Of a field that is a chat a prompt has all but the assistant's last turn, and an answer that turn.
    Prompt and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
    For likelihoods the answer ends with the tokenizer's end-of-text token: ending is part of answering.
    """
    where = f"task {task.name}, {split}"
    source: DataSource = getattr(task, split)
    refuse_cached(task, split)
    rows, examples = read_rows(source, where), []
    folder = Path(source.path).expanduser().parent
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for number, row in enumerate(rows, (source.rows or (0,))[0]):
        place = f"{where}: {source.path}, row {number} (the first is 0)"
        try:
            prompt, special = prompt_of(task, row, tokenizer, eyes)
            answer = answer_of(task, row)
            given = [] if eyes is None else images_in(task, row, expected=MARK in prompt or eyes.token in prompt)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
        text: str = prompt
        pictures: tuple[Picture, ...] = ()
        if eyes is not None:
            pictures = tuple(eyes.picture(value, folder, f"{place}, picture {i}") for i, value in enumerate(given))
            prompt = eyes.marked(prompt, pictures)
            text = eyes.placed(prompt, pictures, place)
        example = Example(
            prompt,
            answer,
            tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"],  # whether too long is asked later
            tokenizer(answer, verbose=False, add_special_tokens=False)["input_ids"] + end,
        )
        if not example.answer_tokens or not (answer.strip() or not isinstance(task.score, str)):
            raise InputError(f"{place}: the answer is empty")
        if not example.prompt_tokens:
            raise InputError(f"{place}: the prompt is empty; put some text into the template")
        examples.append(example if eyes is None else eyes.shown(example, pictures, place))
    if eyes is not None and not any(e.pictures for e in examples):
        raise InputError(f"{where}: {source.path}: no row has a picture where `image` says, {task.image}")
    return rows, examples


def prompt_of(task: Task, row: Row, tokenizer: Any, eyes: Eyes | None) -> tuple[str, bool]:
    """The prompt of a row, and whether the tokenizer adds its special tokens to it.

    A chat template writes those itself; where processors of vision-language models add them nevertheless, we do.

    Raises:
        ValueError: for a row that has none.
    """
    if not (turns := turns_of(value_of(task.prompt, row))):
        return render(task.prompt, row), True
    prompt = opened(turns, tokenizer)
    begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return prompt, eyes is not None and not begun


def answer_of(task: Task, row: Row) -> str:
    """The reference answer in a row; of a chat the last turn.

    Raises:
        ValueError: for a row that has none.
    """
    if not (turns := turns_of(value_of(task.answer, row))):
        return render(task.answer, row)
    if turns[-1]["role"] != "assistant":
        raise ValueError("the last turn of the chat is not the assistant's, so it holds no answer")
    return str(turns[-1]["content"])


def images_in(task: Task, row: Row, expected: bool) -> list[Any]:
    """The pictures of a row as they are given; it may be without, unless some are `expected`.

    Raises:
        ValueError: for a field that is not there.
    """
    try:
        templates = (task.image,) if isinstance(task.image, str) else task.image or ()
        return [value for template in templates for value in images_of(value_of(template, row))]
    except ValueError:
        if expected:
            raise
        return []


def refuse_overlap(task: str, search: Sequence[Document], heldout: Sequence[Document]) -> None:
    """Held-out examples must not be among those the search sees."""

    def content(document: Document) -> tuple[str, ...]:
        return (document.prompt, document.answer, *(picture.digest for picture in document.pictures))

    seen = set(map(content, search))
    if common := sum(content(document) in seen for document in heldout):
        raise InputError(
            f"task {task}: {common} of {len(heldout)} held-out examples are also in the search split; "
            "give the two splits different rows"
        )


def fingerprint(examples: Sequence[Any]) -> str:
    """A digest of the examples, by which a resumed run knows that its data is still the same."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.prompt, example.answer)).encode())
        for picture in getattr(example, "pictures", ()):
            digest.update(picture.digest.encode())
    return digest.hexdigest()[:16]
