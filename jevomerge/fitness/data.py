"""Examples of a task: read, rendered, tokenised."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.schema import DataSource, Task
from jevomerge.fitness.task import Document

SEPARATORS = {".tsv": "\t", ".csv": ","}


def read_rows(source: DataSource, where: str) -> list[dict[str, Any]]:
    """The rows of a data source, in order."""
    import datasets  # imported late: it takes seconds

    suffix = Path(source.path).suffix
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(suffix)
    try:
        datasets.disable_progress_bars()
        if source.columns is not None and suffix not in SEPARATORS:
            raise ValueError("`columns` are those of a local .tsv or .csv file")
        if suffix in SEPARATORS:
            rows = read_table(Path(source.path), SEPARATORS[suffix], source.columns)
        elif kind and Path(source.path).exists():
            rows = list(datasets.load_dataset(kind, data_files=source.path, split="train", keep_in_memory=True))
        elif kind or Path(source.path).is_absolute():
            raise FileNotFoundError(f"{source.path} does not exist")
        else:
            rows = list(datasets.load_dataset(source.path, source.name, split=source.split))
    except Exception as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: {source.path} cannot be read: {message}") from error
    if source.rows:
        rows = rows[slice(*source.rows)]
    rows = rows[: source.limit]
    if not rows:
        raise InputError(f"{where}: {source.path} has no rows (rows: {source.rows}, limit: {source.limit})")
    return rows


def read_table(path: Path, separator: str, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    """The lines of a TSV or CSV file as texts by column; in a TSV file quotes are text.

    Raises:
        ValueError: for a line that has more or fewer fields than there are columns.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter=separator, quoting=quoting)
        names = list(columns) if columns is not None else next(lines, [])
        rows = []
        for fields in filter(None, lines):
            if len(fields) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(fields)} fields for the columns {', '.join(names)}")
            rows.append(dict(zip(names, fields, strict=True)))
    return rows


def load_examples(task: Task, split: str, tokenizer: Any) -> tuple[list[dict[str, Any]], list[Example]]:
    """The rows of a task's `search` or `heldout` split, and the examples that they are.

    Prompt and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
    For likelihoods the answer ends with the tokenizer's end-of-text token: ending is part of answering.
    """
    where = f"task {task.name}, {split}"
    source: DataSource = getattr(task, split)
    rows, examples = read_rows(source, where), []
    for i, row in enumerate(rows):
        try:
            prompt, answer = task.prompt.format(**row), task.answer.format(**row)
        except (KeyError, IndexError) as error:
            raise InputError(f"{where}: row {i} has no field {error}; it has {', '.join(row)}") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{where}: the prompt or answer template does not fit row {i}: {error}") from None
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        examples.append(
            Example(
                prompt,
                answer,
                tokenizer(prompt)["input_ids"],
                tokenizer(answer, add_special_tokens=False)["input_ids"] + end,
            )
        )
        if not examples[-1].answer_tokens:
            raise InputError(f"{where}: row {i} has an empty answer")
        if not examples[-1].prompt_tokens:
            raise InputError(f"{where}: row {i} has an empty prompt; put some text into the template")
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
