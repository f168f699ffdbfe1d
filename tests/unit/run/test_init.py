"""`jevomerge init`: what it writes is what `plan` and `evolve` take, and says the truth about models and data."""

import json
import os
import pty
import re
import select
import shutil
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.fitness.rows import read_rows
from jevomerge.observers.terminal import Terminal
from jevomerge.run.init import ask
from jevomerge.search.setup import set_up

ROWS = [{"id": i, "begin": f"Once upon a time, there was a {w}", "end": " who liked to play."} for i, w in enumerate(
    ["boy", "girl", "dog", "cat", "bird", "frog", "fish", "bear", "man"]
)]  # fmt: skip


@pytest.fixture(scope="module")
def models(request, tmp_path_factory):
    """A trained model, and two that are near it and say so."""
    folder = tmp_path_factory.mktemp("models")
    base = request.path.parents[2] / "data" / "stories260k"
    shutil.copytree(base, folder / "base")
    for seed, name in enumerate(("one", "two")):
        shutil.copytree(base, folder / name)
        rng = np.random.default_rng(seed)
        weights = load_file(base / "model.safetensors")
        noisy = {k: v + 0.02 * rng.normal(size=v.shape).astype(v.dtype) for k, v in weights.items()}
        save_file(noisy, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "README.md").write_text("---\nbase_model: someone/base\n---\n")
    return folder


def written(folder, name, rows):
    path = folder / name
    fields = list(rows[0])
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join([",".join(fields), *(",".join(f'"{r[f]}"' for f in fields) for r in rows)]))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_what_it_writes_is_taken_as_it_is(kind, models, tmp_path, capsys, monkeypatch):
    data = written(tmp_path, f"rows.{kind}", ROWS)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    arguments = [*(str(models / m) for m in ("base", "one", "two")), "--data", "../rows." + kind, "--name", "mine"]
    assert main(["init", *arguments, "--debug"]) == 0
    said = capsys.readouterr().out
    config = read_run(work / "mine.yaml")
    assert config.recipe is not None
    assert (config.recipe.merge_method, [m.model for m in config.recipe.models]) == (
        "task_arithmetic", [str(models / "one"), str(models / "two")]
    )  # fmt: skip
    assert config.recipe.base_model == str(models / "base")  # as the others' cards say
    setup = set_up(config)
    genes = len(setup.problem.names)
    assert setup.config.search.evaluations >= 7 * genes
    assert setup.config.search.evaluations % setup.strategy.population_size == 0
    examples = setup.judge.examples
    assert [len(examples[split]["mine"]) for split in ("search", "heldout")] == [6, 3]
    assert [e.prompt for e in examples["search"]["mine"]] == [f"Q: {r['begin']}\nA:" for r in ROWS[:6]]
    assert read_rows(config.tasks[0].search, "")[0]["begin"] == ROWS[0]["begin"]
    assert re.search(
        rf"{genes} genes, {setup.config.search.evaluations} evaluations: about \d+ (sec|min).* here\n", said
    )
    assert data.exists()
    capsys.readouterr()
    assert main(["init", *arguments]) == 2  # nothing is overwritten
    assert "mine.yaml exists" in capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch):
    """Gives this process a terminal, in which something has been typed; returns what it shows."""
    master, slave = pty.openpty()
    with open(slave, closefd=False) as reads, open(slave, "w") as writes:

        def shown():
            writes.flush()
            found = b""
            while select.select([master], [], [], 0.2)[0]:  # it may come in parts
                found += os.read(master, 1 << 16)
            return found.decode()

        def typed(text):
            os.write(master, text.encode())
            monkeypatch.setattr(sys, "stdin", reads)
            monkeypatch.setattr(sys, "stdout", writes)
            return shown

        yield typed
    os.close(master)


def test_in_a_terminal_what_it_would_guess_is_asked(models, tmp_path, monkeypatch, terminal):
    """Eight rows of Parquet whose fields tell half, and models without cards."""
    written(tmp_path, "rows.parquet", [{"a": r["begin"], "label": r["end"]} for r in ROWS[:8]])
    shutil.copytree(models, tmp_path / "models", ignore=lambda *_: ["README.md"])
    monkeypatch.chdir(tmp_path / "models")
    shown = terminal("base\nb\na\n\n")
    arguments = ["--data", "../rows.parquet", "--output", str(tmp_path)]
    assert main(["init", "base", "one", "two", *arguments, "--debug"]) == 0
    said = re.sub(r"\x1b\[[0-9;]*m", "", shown())
    assert "the others made from? [base/one/two/none] (none): " in said
    assert said.count("Which field is the question? [a/label]: ") == 2  # `b` is none
    assert "Which field is the answer? [a/label] (label): " in said
    config = read_run(tmp_path / "my_merge.yaml")
    assert config.recipe is not None
    assert config.recipe.base_model == str(tmp_path / "models" / "base")
    assert (config.tasks[0].prompt, config.tasks[0].answer) == ("Q: {a}\nA:", " {label}")


def test_who_leaves_takes_the_guesses(terminal, tmp_path):
    shown = terminal("\x04\x04")
    asked = ask(str(written(tmp_path, "rows.jsonl", ROWS)), None, None, Terminal())
    assert shown().count("Which") == 2
    assert (asked.prompt, asked.answer) == ("Q: {begin}\nA:", " {end}")


def test_without_a_terminal_nothing_is_asked(terminal, tmp_path, monkeypatch):
    """Although somebody could answer, what is shown goes elsewhere."""
    terminal("id\nid\n")
    with (tmp_path / "said").open("w") as said:
        monkeypatch.setattr(sys, "stdout", said)
        assert ask(str(written(tmp_path, "rows.jsonl", ROWS)), None, None, Terminal()).answer == " {end}"
    assert (tmp_path / "said").read_text() == ""


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (ROWS[:7], [], "has 7 rows; a search and its judgement take 8 or more"),
        (
            [{"a": 1, "b": 2}] * 8,
            [],
            'which fields of a, b are the question and the answer? Give --prompt "{question}"',
        ),
        (ROWS, ["--prompt", "{beginning}"], "field `beginning` is missing"),
        (ROWS, ["--base", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(rows, arguments, message, models, tmp_path, capsys):
    data = written(tmp_path, "rows.jsonl", rows)
    there = {*tmp_path.rglob("*")}
    given = [str(models / "one"), str(models / "two"), "--data", str(data), "--output", str(tmp_path), *arguments]
    assert main(["init", *given]) == 2
    assert message in capsys.readouterr().err
    assert {*tmp_path.rglob("*")} == there


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q", "answer": "a"}, "Q: {question}\nA:", " {answer}"),
        ({"instruction": "i", "input": "x", "output": "o"}, "Q: {instruction}\n{input}\nA:", " {output}"),
        ({"instruction": "i", "input": "", "output": "o"}, "Q: {instruction}\nA:", " {output}"),
        ({"id": 3, "text": "t", "label": "l"}, "Q: {text}\nA:", " {label}"),
        ({"Question": "q", "Answer": "a"}, "Q: {Question}\nA:", " {Answer}"),
    ],
)
def test_templates_follow_the_names_of_fields(row, prompt, answer, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 9))
    asked = ask(str(tmp_path / "rows.jsonl"), None, None)
    assert (asked.prompt, asked.answer, asked.search, asked.heldout) == (prompt, answer, 6, 3)


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """A cache in which two models have been downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        folder = tmp_path / "cache" / f"models--someone--{name}"
        shutil.copytree(models / name, folder / "snapshots" / ("a" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("a" * 40)


def test_plan_measures(hub, tmp_path, capsys):
    data = written(tmp_path, "rows.jsonl", ROWS)
    given = ["someone/one", "someone/two", "--data", str(data), "--output", str(tmp_path)]
    assert main(["init", *given, "--debug"]) == 0
    recipe = yaml.safe_load((tmp_path / "my_merge.yaml").read_text())["recipe"]
    assert recipe["merge_method"] == "linear"  # without a base
    assert recipe["models"] == [{"model": "someone/one"}, {"model": "someone/two"}]
    capsys.readouterr()
    assert main(["plan", str(tmp_path / "my_merge.yaml"), "--measure", "--debug"]) == 0
    assert "s for a candidate" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "my_merge.yaml"), "--measure", "--topology", "v5e:2x2"]) == 2
