"""Examples of a task: read, rendered, tokenised, and laid out in batches of few shapes."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from jevomerge.errors import InputError
from jevomerge.fitness.extract import grade
from jevomerge.fitness.rollout import Batch
from jevomerge.fitness.schema import DataSource, Task

SEPARATORS = {".tsv": "\t", ".csv": ","}


class Example(NamedTuple):
    """One example as text and as tokens."""

    prompt: str
    answer: str
    prompt_tokens: list[int]
    answer_tokens: list[int]


class Record(NamedTuple):
    """A document of a task as people read it."""

    prompt: str
    answer: str


class Material(NamedTuple):
    """One split of a task: D documents, the examples that a model is given for each, and what they come to."""

    examples: list[Example]
    first: np.ndarray  # (D + 1,) ints: document d has examples[first[d] : first[d + 1]]
    records: list[Record]
    # From the number of a document and what a model made of its examples (the text it wrote, or the mean
    # log-probability of the answer and whether greedy decoding would write it): the score, and what breaks ties.
    read: Callable[[int, Sequence[Any]], tuple[float, float]]


class Judged(Protocol):
    """What a `Task` and a task of the harness have in common once their data is read."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def weight(self) -> float: ...  # noqa: D102

    @property
    def score(self) -> str: ...  # noqa: D102 likelihood, match or generation

    @property
    def max_new_tokens(self) -> int: ...  # noqa: D102

    @property
    def stop(self) -> tuple[str, ...]: ...  # noqa: D102 what ends a text, in the order in which it is cut


class Ready(Judged, Protocol):
    """A task that reads its own data."""

    def material(self, split: str) -> Material:
        """Its documents in `search` or `heldout`."""


class Layout(NamedTuple):
    """The static shape of a batch: everything of one layout shares one compiled program."""

    rows: int
    length: int  # T
    answer_slots: int  # A, or the room for new tokens


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


def load_examples(task: Task, split: str, tokenizer: Any) -> list[Example]:
    """The examples of a task's `search` or `heldout` split.

    Prompt and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
    For likelihoods the answer ends with the tokenizer's end-of-text token: ending is part of answering.
    """
    where = f"task {task.name}, {split}"
    source: DataSource = getattr(task, split)
    examples = []
    for i, row in enumerate(read_rows(source, where)):
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
    return examples


def own_material(task: Task, split: str, tokenizer: Any) -> Material:
    """A split of a task of our own: each document is one example."""
    examples = load_examples(task, split, tokenizer)

    def read(document: int, outputs: Sequence[Any]) -> tuple[float, float]:
        if task.score == "generation":
            return grade(task, outputs[0], examples[document].answer), 0.0
        mean, match = outputs[0]
        return (mean, match) if task.score == "likelihood" else (match, mean)

    return Material(examples, np.arange(len(examples) + 1), [Record(e.prompt, e.answer) for e in examples], read)


def refuse_overlap(task: Judged, search: Sequence[Example | Record], heldout: Sequence[Example | Record]) -> None:
    """Held-out examples must not be among those the search sees."""
    seen = {(e.prompt, e.answer) for e in search}
    if common := sum((e.prompt, e.answer) in seen for e in heldout):
        raise InputError(
            f"task {task.name}: {common} of {len(heldout)} held-out examples are also in the search split; "
            "give the two splits different rows"
        )


def plan_layouts(
    task: Judged,
    search: Sequence[Example],
    others: Sequence[Example],
    tokens_per_batch: int,
    at_once: int | None = None,
    pieces: int = 1,
) -> list[Layout]:
    """A few batch shapes, by growing length, into which every example fits.

    Lengths fall into buckets whose widths double, unless padding all of them to the longest costs less than a
    quarter more tokens than that; a bucket is as long as its longest example, rounded up to 8.  All examples
    share the shapes, but the number of rows fits what a candidate is scored on: the search split, or the
    `at_once` examples of a minibatch, in `pieces` or more.
    """
    generates = task.score == "generation"
    examples = [*search, *others]
    lengths = np.array([len(e.prompt_tokens) + (0 if generates else len(e.answer_tokens)) for e in examples])
    answers = np.array([task.max_new_tokens if generates else len(e.answer_tokens) for e in examples])
    buckets = np.ceil(np.log2(np.maximum(lengths, 16))).astype(int)
    longest = {bucket: lengths[buckets == bucket].max() for bucket in np.unique(buckets)}
    if lengths.size * lengths.max() < 1.25 * sum(longest[bucket] for bucket in buckets):
        buckets = np.zeros_like(buckets)
    layouts = []
    for bucket in np.unique(buckets):
        inside = buckets == bucket
        length = int(-(-lengths[inside].max() // 8) * 8)
        slots = int(answers[inside].max())
        count = float(inside[: len(search)].sum())
        if at_once is not None and at_once < len(search):
            count *= at_once / len(search)
            count += 2 * math.sqrt(count)  # the share of a random minibatch varies
        count = max(count, inside.sum() / 8)  # a bucket that the search hardly meets is for the others
        most = max(1, tokens_per_batch // (length + (slots if generates else 0)))
        rows = math.ceil(count / max(math.ceil(count / most), min(pieces, math.ceil(count))))  # full ones of equal size
        layouts.append(Layout(rows, length, slots))
    return layouts


def make_batches(
    task: Judged, examples: Sequence[Example], layouts: Sequence[Layout], pad: int, shuffled: bool = False
) -> list[tuple[Layout, np.ndarray, Batch]]:
    """[(layout, (rows,) index of each row's example or -1 for padding, batch)].

    `shuffled`: the examples of a layout come in a random order, which is always the same.
    """
    generates = task.score == "generation"
    texts = [e.prompt_tokens + ([] if generates else e.answer_tokens) for e in examples]
    strata, batches = strata_of(task, examples, layouts), []
    for stratum, layout in enumerate(layouts):
        inside = np.flatnonzero(strata == stratum)
        if shuffled:
            inside = np.random.default_rng(stratum).permutation(inside)
        for start in range(0, len(inside), layout.rows):
            index = np.full(layout.rows, -1)
            chosen = inside[start : start + layout.rows]
            index[: len(chosen)] = chosen
            tokens = np.full((layout.rows, layout.length), pad, np.int32)
            valid = np.zeros(tokens.shape, bool)
            answer_length = np.zeros(layout.rows, np.int32)
            for row, i in enumerate(chosen):
                tokens[row, layout.length - len(texts[i]) :] = texts[i]
                valid[row, layout.length - len(texts[i]) :] = True
                answer_length[row] = 0 if generates else len(examples[i].answer_tokens)
            valid[len(chosen) :, -1] = True  # padding rows hold one token: an empty row has no softmax
            arrays: tuple[Any, ...] = (tokens, valid, answer_length)  # NumPy's, for any mesh
            batches.append((layout, index, Batch(*arrays)))
    return batches


def strata_of(task: Judged, examples: Sequence[Example], layouts: Sequence[Layout]) -> np.ndarray:
    """(n,) the index of the layout that each example is scored in: the shortest one that holds it."""
    generates = task.score == "generation"
    lengths = [len(e.prompt_tokens) + (0 if generates else len(e.answer_tokens)) for e in examples]
    return np.searchsorted([layout.length for layout in layouts], lengths)


def fingerprint(examples: Sequence[Example]) -> str:
    """A digest of the examples, by which a resumed run knows that its data is still the same."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.prompt, example.answer)).encode())
    return digest.hexdigest()[:16]
