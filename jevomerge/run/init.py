"""`jevomerge init`: models and data -> a config with its task, which `plan` and `evolve` take as they are."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jevomerge.checkpoint.export import refuse_existing
from jevomerge.checkpoint.files import expanded, write_atomically
from jevomerge.checkpoint.lineage import front_matter
from jevomerge.checkpoint.source import Checkpoint, short_name
from jevomerge.config import RunConfig, read_config
from jevomerge.devices.signals import safe_point
from jevomerge.errors import InputError
from jevomerge.fitness.rows import read_rows
from jevomerge.fitness.schema import DataSource
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.planning.sharing import settled_sharing
from jevomerge.planning.timing import in_words, time_candidates
from jevomerge.search.setup import Setup, set_up

# Fields by the names that people give them, the likeliest first.
PROMPTS = ("question", "prompt", "instruction", "problem", "query", "input", "text", "context", "begin")
ANSWERS = ("answer", "output", "response", "completion", "target", "solution", "label", "end")
CHATS = ("messages", "conversations")
FEWEST, MOST = 8, 256  # rows in all, and of each split
NONE = "none"
GENES, PER_GENE = 48, 7  # at most so many, and evaluations for each; see experiments/guides/search.md


def init(
    models: Sequence[str],
    data: str,
    *,
    base: str | None = None,
    name: str = "my_merge",
    prompt: str | None = None,
    answer: str | None = None,
    output: str | Path = ".",
    observer: Observer = SILENT,
) -> Path:
    """Look at models and data, and write NAME.yaml and tasks/NAME.yaml: a search that fits them, with its budget.

    Args:
        models: folders or hub names, of one shape.
        data: a file of questions and answers, or a dataset's name on the hub.
        base: which of `models`, or beside them, the others were made from; None: whom their cards name, or a person.
        name: of the run.
        prompt: the template of a prompt, over the fields of a row; None: as their names suggest, or a person says.
        answer: likewise.
        output: the folder to write into.
        observer: is told what was found, and asked what had to be guessed.

    Returns:
        the config.

    Raises:
        InputError: for models and data that do not go together; nothing is written then.
    """
    folder = expanded(output)
    config, task = folder / f"{name}.yaml", folder / "tasks" / f"{name}.yaml"
    for path in (config, task):
        refuse_existing(path)
    observer.stage("reading models' headers and data")
    opened = [Checkpoint(model) for model in models]
    base = base or base_among(opened) or _base_asked(models, observer)
    merged = [model for model in models if model != base]
    if len(merged) + (base is not None) < 2:
        raise InputError("init: a merge takes two models or more")
    asked = ask(data, prompt, answer, observer)
    safe_point()  # Ctrl-C instead of an answer
    plan, setup = _fitting(_Plan(name, merged, base, asked, _layers_per_group(opened[0], len(merged))))
    observer.stage("timing a candidate")
    genes = len(setup.problem.names)
    evaluations = _budget(genes, setup.strategy.population_size)
    took = in_words(time_candidates(settled_sharing(setup)).of(evaluations))
    task.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(task, task_text(plan, task.parent))
    write_atomically(config, config_text(plan, folder, genes, evaluations, took))
    observer.line(f"{config}: {len(merged)} models, {genes} genes, {evaluations} evaluations: {took} here")
    observer.line(
        f"{task}: {asked.rows} rows, of which {asked.search} are for the search; asks {json.dumps(asked.prompt)}"
    )
    observer.line(f"Next: jevomerge evolve {config}")
    return config


# --- data ---------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What the data is, and how it is asked."""

    data: str
    rows: int
    search: int  # the first so many; the next ones are held out
    heldout: int
    prompt: str
    answer: str


def ask(data: str, prompt: str | None, answer: str | None, observer: Observer = SILENT) -> Asked:
    """Templates for the fields that the rows have, and where to split them.

    Raises:
        InputError: for too few rows, and for fields that tell nothing.
    """
    rows = read_rows(DataSource(path=_here(data), limit=None), "--data")
    if len(rows) < FEWEST:
        raise InputError(f"--data: {data} has {len(rows)} rows; a search and its judgement take {FEWEST} or more")
    fields = [name for name in rows[0] if all(row.get(name) not in (None, "") for row in rows)]
    prompt, answer = _templates(fields, prompt, answer, observer)
    if prompt is None or answer is None:
        raise InputError(
            f"--data: which fields of {', '.join(rows[0])} are the question and the answer? Give "
            '--prompt "{question}" --answer "{answer}"'
        )
    search = min(MOST, math.ceil(len(rows) * 2 / 3))
    return Asked(data, len(rows), search, min(MOST, len(rows) - search), prompt, answer)


def _templates(
    fields: Sequence[str], prompt: str | None, answer: str | None, observer: Observer
) -> tuple[str | None, str | None]:
    """Those that are given, else over fields that are guessed and asked for; None for what nobody knows."""
    if chat := next((name for name in CHATS if name in fields), None):
        return prompt or f"{{{chat}}}", answer or f"{{{chat}}}"
    by_name = {name.lower(): name for name in fields}
    end = next((by_name[name] for name in ANSWERS if name in by_name), None)
    begin = next((by_name[name] for name in PROMPTS if name in by_name and by_name[name] != end), None)
    if prompt is None and (begin := observer.ask("Which field is the question?", fields, begin)):
        question = f"{{{begin}}}"
        if begin.lower() == "instruction" and "input" in by_name:  # Alpaca's
            question += f"\n{{{by_name['input']}}}"
        prompt = f"Q: {question}\nA:"
    if answer is None and (end := observer.ask("Which field is the answer?", fields, end)):
        answer = f" {{{end}}}"
    return prompt, answer


# --- models -------------------------------------------------------------------------------------------------


def base_among(models: Sequence[Checkpoint]) -> str | None:
    """The one that the cards of all others say they were made from."""
    for one in models:
        others = [m for m in models if m is not one]
        if others and all(one.name in map(short_name, _made_from(m)) for m in others):
            return one.reference
    return None


def _base_asked(models: Sequence[str], observer: Observer) -> str | None:
    """Where cards say nothing; without a base models are averaged, each with its weights."""
    named = observer.ask("Which model were the others made from?", [*models, NONE], NONE)
    return None if named == NONE else named


def _made_from(model: Checkpoint) -> list[str]:
    named = front_matter(model.folder).get("base_model")
    return [str(name) for name in (named if isinstance(named, list) else [named]) if name]


def _layers_per_group(model: Checkpoint, models: int) -> int:
    """How many layers share a gene, for at most GENES in all with three components each."""
    layers = len(model.model.kinds)
    return math.ceil(layers / max(1, min(layers, GENES // (3 * models))))


def _budget(genes: int, generation: int) -> int:
    """Evaluations in whole generations, for so many genes."""
    return math.ceil(max(PER_GENE * genes, 100) / generation) * generation


# --- files --------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """All that goes into the two files."""

    name: str
    models: Sequence[str]
    base: str | None
    asked: Asked
    layers_per_group: int
    tokens: str | None = None  # `tokenizer_source`

    def config(self) -> RunConfig:
        """As it will be read, its paths those of this process."""
        asked = self.asked
        data = _here(asked.data)
        windows = {"search": [0, asked.search], "heldout": [asked.search, asked.search + asked.heldout]}
        task: dict[str, Any] = {"name": self.name, "prompt": asked.prompt, "answer": asked.answer}
        task |= {split: {"path": data, "rows": rows} for split, rows in windows.items()}
        found = read_config({"name": self.name, "recipe": self.recipe(), "genome": self.genome(), "tasks": [task]})
        assert isinstance(found, RunConfig)
        return found

    def recipe(self) -> dict[str, Any]:
        """What is merged, and how."""
        method = (
            {"merge_method": "linear"}
            if self.base is None
            else {"merge_method": "task_arithmetic", "base_model": self.base}
        )
        tokens = {} if self.tokens is None else {"tokenizer_source": self.tokens}
        return {**method, "models": [{"model": model} for model in self.models], **tokens}

    def genome(self) -> dict[str, Any]:
        """A weight for each model, group of layers and component."""
        return {"weight": {"range": [0, 1], "layers_per_group": self.layers_per_group, "by": "component"}}


def _fitting(plan: _Plan) -> tuple[_Plan, Setup]:
    """What the search would run on, with vocabularies made one if they have to be."""
    try:
        return plan, set_up(plan.config())
    except InputError as error:
        if "`tokenizer_source`" not in str(error):
            raise
    united = plan._replace(tokens="union")
    return united, set_up(united.config())


def task_text(plan: _Plan, folder: Path) -> str:
    """tasks/NAME.yaml."""
    asked = plan.asked
    data = _from(folder, asked.data)
    stop = asked.search + asked.heldout
    return f"""# What judges. Every key: configs/README.md of jevomerge.
name: {_yaml(plan.name)}
search: {{path: {_yaml(data)}, rows: [0, {asked.search}]}}  # what evolution sees; shuffle rows that are sorted
heldout: {{path: {_yaml(data)}, rows: [{asked.search}, {stop}]}}  # scored once, at the end
prompt: {_yaml(asked.prompt)}
answer: {_yaml(asked.answer)}
score: likelihood  # mean log-probability per token of the answer; never all the same, so a search can begin with it
# score: match     # whether greedy decoding would write the answer, from one forward pass
# score: generation
# extract: last_number  # or exact, or `pattern: "answer is (\\\\d+)"`
# max_new_tokens: 256
"""


def config_text(plan: _Plan, folder: Path, genes: int, evaluations: int, took: str) -> str:
    """NAME.yaml."""
    recipe = plan.recipe()
    lines = [f"  merge_method: {recipe['merge_method']}"]
    if plan.base is not None:
        lines.append(f"  base_model: {_yaml(_from(folder, plan.base))}")
    models = [f"    - model: {_yaml(_from(folder, model))}" for model in plan.models]
    tokens = [] if plan.tokens is None else [f"  tokenizer_source: {plan.tokens}  # their vocabularies differ"]
    merged = "\n".join([*lines, "  models:", *models, *tokens])
    return f"""# Written by `jevomerge init`; every key: configs/README.md of jevomerge.
#   jevomerge plan {plan.name}.yaml      what it needs
#   jevomerge evolve {plan.name}.yaml    {took} on the machine where this was written
name: {_yaml(plan.name)}
recipe:
{merged}
genome:
  # {genes} genes: one for each model, group of layers, and attention, MLP, norms; `weight: [0, 1]`: one a model
  weight: {{range: [0, 1], layers_per_group: {plan.layers_per_group}, by: component}}
tasks:
  - tasks/{plan.name}.yaml
search: {{evaluations: {evaluations}}}  # about {PER_GENE} for each gene
# seeds: 5  # run it so often, and compare
"""


def _here(reference: str) -> str:
    """A path as seen from here; a hub name stays."""
    path = expanded(reference)
    return str(path) if os.path.exists(path) else reference


def _from(folder: Path, reference: str) -> str:
    """A path as seen from a file in `folder`; a hub name stays."""
    path = expanded(reference)
    return os.path.relpath(path.absolute(), folder.absolute()) if os.path.exists(path) else reference


def _yaml(text: str) -> str:
    """A text as YAML, on one line; quoted where it has to be."""
    return text if re.fullmatch(r"[A-Za-z./][\w./@+-]*", text) else json.dumps(text, ensure_ascii=False)
