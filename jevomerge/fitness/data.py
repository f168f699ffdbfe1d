"""Examples of a task: rendered and tokenised."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.pictures import Eyes, Picture, images_of, placed
from jevomerge.fitness.rows import Row, read_rows
from jevomerge.fitness.schema import DataSource, OwnScore, Task
from jevomerge.fitness.task import Document
from jevomerge.fitness.template import render, value_of


def load_examples(task: Task, split: str, tokenizer: Any, eyes: Eyes | None = None) -> tuple[list[Row], list[Example]]:
    """The rows of a task's `search` or `heldout` split, and the examples that they are; `eyes` look at pictures.

    Prompt and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
    For likelihoods the answer ends with the tokenizer's end-of-text token: ending is part of answering.
    """
    where = f"task {task.name}, {split}"
    source: DataSource = getattr(task, split)
    if task.private and not os.path.exists(Path(source.path).expanduser()):
        raise InputError(
            f"{where}: private: {source.path} is not a file here; one of the hub is kept in a cache on disk"
        )
    rows, examples = read_rows(source, where), []
    folder = Path(source.path).expanduser().parent
    for number, row in enumerate(rows, (source.rows or (0,))[0]):
        place = f"{where}: {source.path}, row {number} (the first is 0)"
        try:
            prompt, answer = render(task.prompt, row), render(task.answer, row)
            pictures = () if eyes is None else pictures_of(task, row, eyes, folder, place)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
        text = prompt if eyes is None else placed(prompt, pictures, place)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        examples.append(
            Example(
                prompt,
                answer,
                tokenizer(text, verbose=False)["input_ids"],  # whether it is too long is asked later
                tokenizer(answer, verbose=False, add_special_tokens=False)["input_ids"] + end,
                pictures,
                sum(p.text.count(eyes.token) for p in pictures) if eyes else 0,
            )
        )
        if eyes is not None:
            eyes.check(examples[-1].prompt_tokens, examples[-1].features, place)
        if not examples[-1].answer_tokens or not (answer.strip() or isinstance(task.score, OwnScore)):
            raise InputError(f"{place}: the answer is empty")
        if not examples[-1].prompt_tokens:
            raise InputError(f"{place}: the prompt is empty; put some text into the template")
    return rows, examples


def pictures_of(task: Task, row: Row, eyes: Eyes, folder: Path, where: str) -> tuple[Picture, ...]:
    """The pictures of a row; paths are relative to `folder`.

    Raises:
        ValueError: for a field that is not there.
        InputError: for what is no picture.
    """
    templates = (task.image,) if isinstance(task.image, str) else task.image or ()
    given = [value for template in templates for value in images_of(value_of(template, row))]
    return tuple(eyes.picture(value, folder, f"{where}, picture {i}") for i, value in enumerate(given))


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
