"""Tasks of lm-evaluation-harness: as a fitness, and as the final judge of a model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import logging
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jevomerge.errors import InputError
from jevomerge.fitness.batches import Example
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.rollouts.generation import Generation
from jevomerge.fitness.rollouts.likelihood import Likelihood
from jevomerge.fitness.rollouts.rollout import Rollout
from jevomerge.fitness.rows import choose
from jevomerge.fitness.schema import Harness, HarnessRows, HarnessTask
from jevomerge.fitness.task import Document, Material
from jevomerge.tokenizers.load import padding

SEED = 1234  # of the harness's own draws of few-shot examples
BOOTSTRAPS = 1000  # for the standard error of what is not a mean; the harness's 100,000 take long in one process


def require() -> None:
    """Refuse to go on without the package."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "tasks of lm-evaluation-harness need lm-eval, which is not installed: pip install 'jevomerge[harness]'"
        )
    import datasets  # imported late: it takes seconds

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every setting that is at its default


@functools.cache
def manager(include_path: str | None, shipped: bool) -> Any:
    """The harness's index of tasks; that of the thousands that it ships takes long."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=shipped)


def find(harness: Harness) -> dict[str, Any]:
    """The tasks by name that the harness knows under a name, their data read: one, or those of a group.

    Raises:
        InputError: if there is none, or its data cannot be read.
    """
    require()
    if harness.include_path is not None and not Path(harness.include_path).is_dir():
        raise InputError(f"harness.include_path: {harness.include_path} is not a folder")
    index = manager(harness.include_path, False) if harness.include_path else None
    if index is None or harness.task not in index.all_tasks:
        index = manager(harness.include_path, True)
    if harness.task not in index.all_tasks:
        where = (
            f" nor in {harness.include_path}" if harness.include_path else "; `include_path` names a folder of others"
        )
        raise InputError(f"harness.task: lm-eval has no task {harness.task}{where}")
    try:
        tasks: dict[str, Any] = index.load([harness.task])["tasks"]
    except Exception as error:  # data sets, templates and code of tasks can fail in any way
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"harness.task: {harness.task} cannot be loaded: {type(error).__name__}: {message}") from error
    for task in tasks.values():  # as the harness's own command does it
        if harness.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=harness.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return tasks


def with_pictures(tasks: Mapping[str, Any]) -> bool:
    """Whether there are pictures in one of them."""
    return any(getattr(task, "MULTIMODAL", False) for task in tasks.values())


# --- as a fitness -------------------------------------------------------------------------------------------


class LoadedTask:
    """A task of the harness that scores candidates: the mean over documents of one of its metrics."""

    bounds = answers = likelihood = None  # a metric may be anything, and a document several requests
    apart, private, compared = True, False, False
    notes = ()

    def __init__(
        self, task: HarnessTask, tokenizer: Any, max_length: int | None, eyes: Callable[[], Eyes] | None = None
    ):
        """Read the task and its data; `eyes` are asked for if it has pictures.

        Raises:
            InputError: for a task or a metric that cannot be a fitness.
        """
        require()
        from jevomerge.fitness.harness.encoder import Encoder

        self.given, self.name, self.weight = task, task.name, task.weight
        found = find(task.harness)
        if len(found) > 1:
            raise InputError(f"harness.task: {task.harness.task} is a group; name one of {', '.join(found)}")
        (self.task,) = found.values()
        sees = eyes() if eyes is not None and with_pictures(found) else None
        self.encoder = Encoder(tokenizer, max_length, sees)
        self.filter = self._filter()
        self.metric, self.sign = self._metric()
        self.rollout: Rollout = Likelihood(padding(tokenizer), sees)
        if self.task.OUTPUT_TYPE == "generate_until":
            asked = self.encoder.prompt("", self.task.config.generation_kwargs or {})
            self.rollout = Generation(tokenizer, asked.limit, asked.until, asked.penalty, sees)

    def _filter(self) -> Any:
        """The filters that texts go through before they are judged."""
        known = {f.name: f for f in self.task._filters}
        name = self.given.harness.filter or next(iter(known))
        if name not in known:
            raise InputError(f"harness.filter: `{name}` is none of {', '.join(known)}")
        return known[name]

    def _metric(self) -> tuple[str, int]:
        """The name of the metric, and the sign that makes higher better."""
        from lm_eval.api.metrics import mean

        known, harness = self.task.aggregation(), self.given.harness
        name = harness.metric or next(iter(known))
        if name not in known:
            raise InputError(f"harness.metric: `{name}` is none of {', '.join(known)}")
        if known[name] is not mean:
            means = ", ".join(n for n, f in known.items() if f is mean)
            raise InputError(
                f"harness.metric: `{name}` is not a mean over documents, which a fitness has to be; "
                + (f"choose {means}, or " if means else "")
                + "use the task in `jevomerge evaluate` alone"
            )
        lower = harness.lower_is_better
        if lower == "auto":
            lower = not self.task.higher_is_better()[name]
        return name, -1 if lower else 1

    def material(self, split: str) -> Material:
        """The documents of `search` or `heldout`, as the harness would ask a model about them."""
        rows: HarnessRows | None = getattr(self.given, split)
        if rows is None:
            raise InputError(
                f"task {self.name}: to be a fitness it needs `{split}`: which documents, such as "
                "{split: validation, rows: [0, 100]}"
            )
        try:
            return self._material(rows)
        except InputError as error:
            raise InputError(f"task {self.name}, {split}: {error}") from None

    def _material(self, rows: HarnessRows) -> Material:
        task, harness = self.task, self.given.harness
        task.set_fewshot_seed(seed=SEED)
        before = task.config.test_split
        if rows.split is not None:
            if rows.split not in task.dataset:
                raise InputError(f"split: `{rows.split}` is none of {', '.join(task.dataset)}")
            task.set_config(key="test_split", value=rows.split)
        try:
            wanted = choose(len(task.eval_docs), rows.rows, rows.limit)
            with quiet():
                task.build_all_requests(
                    samples=wanted,
                    system_instruction=harness.system,
                    apply_chat_template=harness.chat_template,
                    fewshot_as_multiturn=True,
                    chat_template=self.encoder.apply_chat_template if harness.chat_template else None,
                    tokenizer_name=self.encoder.tokenizer_name,
                )
            instances = task.instances
        finally:
            task.set_config(key="test_split", value=before)
        kinds = {i.request_type for i in instances}
        if len(kinds) > 1 or any(i.repeats != 1 for i in instances):
            raise InputError("a task that asks in several ways, or repeatedly, cannot be a fitness")
        requests = getattr(self.encoder, kinds.pop())(instances, disable_tqdm=True)
        if isinstance(self.rollout, Generation):
            given = (self.rollout.max_new_tokens, self.rollout.penalty)
            if any((r.limit, r.penalty) != given for r in requests):
                raise InputError("a task whose documents are decoded in different ways cannot be a fitness")
            if any(r.until != self.rollout.stop for r in requests):
                self.rollout = dataclasses.replace(self.rollout, stop=())  # no string ends all texts
        examples = [[r.example] if hasattr(r, "example") else r for r in requests]
        groups: list[list[int]] = [[] for _ in wanted]
        for i, instance in enumerate(instances):
            groups[instance.doc_id].append(i)
        order = [e for group in groups for i in group for e in examples[i]]
        counts = [sum(len(examples[i]) for i in group) for group in groups]
        if not all(counts):
            raise InputError(f"document {wanted[counts.index(0)]} has nothing to score")
        documents = [self._document(instances[group[0]].doc, examples[group[0]][0]) for group in groups]

        def read(numbers: Sequence[int], outputs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
            asked = ([(instances[i], requests[i], len(examples[i])) for i in groups[d]] for d in numbers)
            return list(map(self._read, asked, outputs))

        return Material(order, np.concatenate([[0], np.cumsum(counts)]), documents, read)

    def also(self, documents: Sequence[Document], texts: Sequence[str]) -> Mapping[str, float]:
        """By nothing else."""
        return {}

    def _document(self, doc: Any, example: Example) -> Document:
        """A document without its few-shot examples, as people read it."""
        target = self.task.doc_to_target(doc)
        if isinstance(target, int) and self.task.config.doc_to_choice is not None:
            target = self.task.doc_to_choice(doc)[target]
        text = self.task.doc_to_text(doc)
        prompt = text if isinstance(text, str) and text else json.dumps(doc, ensure_ascii=False, default=str)
        answer = target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)
        return Document(prompt, answer, example.pictures)

    def _read(self, requests: Sequence[tuple[Any, Any, int]], outputs: Sequence[Any]) -> tuple[float, float]:
        """The metric of a document; ties are broken by how likely the right one of several choices is."""
        from jevomerge.fitness.harness.encoder import answer

        remaining = iter(outputs)
        for instance, request, count in requests:
            found = answer(request, [next(remaining) for _ in range(count)])
            if isinstance(found, tuple) and not math.isfinite(found[0]):
                return math.nan, math.nan
            rolling = instance.request_type == "loglikelihood_rolling"
            instance.resps = [found[0] if rolling else found]
        instances = [instance for instance, *_ in requests]
        self.filter.apply(instances)
        filtered = [i.filtered_resps[self.filter.name] for i in instances]
        value = self.task.process_results(instances[0].doc, filtered)[self.metric]
        if not isinstance(value, numbers.Real | np.bool_):
            raise InputError(f"harness.metric: `{self.metric}` of a document is {value!r}, not a number")
        return self.sign * float(value), self._likelihood(instances)

    def _likelihood(self, instances: Sequence[Any]) -> float:
        """Log-probability of the right choice among the choices, 0 where there are none."""
        doc = instances[0].doc
        if self.task.OUTPUT_TYPE != "multiple_choice" or self.task.multiple_input:
            return 0.0
        choices, right = self.task.doc_to_choice(doc), self.task.doc_to_target(doc)
        right = choices.index(right) if right in choices else right
        if not isinstance(right, int) or not 0 <= right < len(choices):
            return 0.0
        totals = np.array([i.resps[0][0] for i in instances[: len(choices)]])
        return float(totals[right] - np.logaddexp.reduce(totals))


# --- as the final judge -------------------------------------------------------------------------------------


def evaluate(harness: Harness, model: Any, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """{task: {"metric,filter": value, "metric_stderr,filter": its standard error}}, as the harness computes them.

    Args:
        harness: a task or a group of tasks.
        model: a `HarnessModel`.
        limit: only so many documents of each task.
    """
    tasks = find(harness)
    from lm_eval.evaluator import evaluate as judged

    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork, which JAX does not survive
    with quiet():
        found = judged(
            lm=model,
            task_dict={"tasks": tasks},
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            system_instruction=harness.system,
            apply_chat_template=harness.chat_template,
            fewshot_as_multiturn=True,
            log_samples=False,
        )
    results: dict[str, dict[str, Any]] = found["results"]
    return results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's progress bars, of which it starts one per task and kind of request."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
