"""The commands and configs of README and guides are run, with small models in place of a reader's."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from jevomerge.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments" / "guides").glob("*.md"))]
SHORT = "--evaluations 30"

# What is run for a command that is shown, in this order; those that follow use what those before have written.
RUN = {
    "init one two three --data questions.jsonl": None,  # as it is
    "init MODEL MODEL --data FILE": "init one two --data questions.jsonl --name average",
    "init MODEL MODEL --data FILE [--base MODEL] [--name NAME]": "init base one two --data questions.jsonl "
    "--base base --name other",
    "plan my_merge.yaml": None,
    "plan CONFIG --measure": "plan my_merge.yaml --measure",
    "plan CONFIG --device-memory 24GiB": "plan my_merge.yaml --device-memory 24GiB",
    "evolve my_merge.yaml": f"evolve my_merge.yaml {SHORT}",
    "evolve CONFIG [--output RUN] [--seed N]": f"evolve my_merge.yaml --output runs/other --seed 1 {SHORT}",
    "evolve --resume RUN --evaluations N": "evolve --resume runs/other --evaluations 45",
    "report runs/my_merge": None,
    "report RUN [--output FILE]": "report runs/other --output page.html",
    "compare RUN RUN ... [--output FILE]": "compare runs/my_merge runs/other --output both.html",
    "export RUN --genome best\\|N OUT": "export runs/my_merge --genome best again",
    "export RUN --genome N OUT": "export runs/my_merge --genome 3 candidate",
    "card RUN": "card runs/my_merge",
    "merge RECIPE --explain": "merge recipe.yaml --explain",
    "merge RECIPE OUT": "merge recipe.yaml first",
    "merge recipe.yaml OUT": "merge recipe.yaml merged",
    "evaluate OUT --task task.yaml": "evaluate merged --task tasks/my_merge.yaml",
    "evaluate MODEL --task TASK.yaml [--json FILE]": "evaluate one --task tasks/my_merge.yaml --json scores.json",
    "evaluate MODEL --task FILE": "evaluate one --task tasks/my_merge.yaml",
    "translate CONFIG": "translate theirs.yaml",
}
# What is not, and where it is tested.
ELSEWHERE = {
    "evolve configs/quickstart.yaml": "a minute: unit/devices/test_sockets.py, shorter",
    "evolve configs/vqa_quickstart.yaml": "minutes: parity/test_japanese_vqa_mini.py",
    "watch runs/my_merge": "until Ctrl-C: unit/reports/test_server.py",
    "watch RUN [RUN ...] [--port N]": "likewise",
    "push RUN OWNER/NAME": "needs a hub: unit/run/test_push.py",
    "evolve --resume RUN": "of a run that was stopped: e2e/test_resume.py",
    "evolve --resume RUN [--mesh 4x2]": "likewise, on several devices: e2e/test_hosts.py",
    "evolve CONFIG --distributed": "several processes: e2e/test_hosts.py",
    "plan CONFIG [--topology v5e:4x8] [--sweep]": "with the compiler for TPUs: unit/planning/test_measure.py",
    "plan configs/evollm_jp.yaml --topology v5e:4x4": "likewise",
    "evaluate PIPELINE --task TASK.yaml": "image models: e2e/test_pictures.py",
    "merge half.yaml half.safetensors": "likewise: parity/test_evosdxl_jp.py",
    "generate MODEL --prompt TEXT --output FOLDER": "likewise: unit/run/test_generate.py",
    "generate half.safetensors --like stabilityai/stable-diffusion-xl-base-1.0 "
    '--prompt "a fox in snow" --steps 30 --guidance 5 --output foxes': "likewise",
}


def shown():
    """The commands of all pages, without those of which only the name is given."""
    text = "\n".join(page.read_text() for page in PAGES)
    found = re.findall(r"`jevomerge ([a-z](?:\\\||[^`|])*)`|^(?:.*&& )?jevomerge ([a-z].*)$", text, re.MULTILINE)
    return {" ".join((one or other).split()) for one, other in found if " " in (one or other)}


def test_each_command_is_run_or_it_is_said_where():
    assert shown() == {*RUN, *ELSEWHERE}


@pytest.fixture
def reader(siblings, tmp_path, monkeypatch):
    """A folder such as the guides speak of."""
    for name, model in (("base", "base"), ("one", "front"), ("two", "back"), ("three", "front")):
        shutil.copytree(siblings / model, tmp_path / name)
    (tmp_path / "data").mkdir()
    for name, split in (("questions", "search"), ("data/search", "search"), ("data/heldout", "heldout")):
        rows = [json.loads(line) for line in (siblings / f"{split}.jsonl").read_text().splitlines()]
        questions = "".join(json.dumps({"question": r["begin"], "answer": r["end"]}) + "\n" for r in rows)
        (tmp_path / f"{name}.jsonl").write_text(questions)
    task = {"name": "my_task", "search": "../data/search.jsonl", "heldout": "../data/heldout.jsonl"}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_task.yaml").write_text(
        yaml.safe_dump({**task, "prompt": "{question}", "answer": "{answer}"})
    )
    recipe = {"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}, {"model": "two"}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "parameters": {"weight": 0.5, "density": 0.5}}))
    genome = {"models": ["one", "two"], "merge_method": "linear"}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"genome": genome, "tasks": [{"name": "gsm8k"}]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # two searches, and what compiling takes
def test_the_commands_one_after_another(reader):
    for command, instead in RUN.items():
        assert main([*shlex.split(instead or command), "--debug"]) == 0, command
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "experiments/guides/own_models.md").read_text(), re.DOTALL)
    names = {}
    exec(snippet, names)
    assert names["model"].num_parameters() == 260_032


MODELS = {
    "mistralai/Mistral-7B-v0.1": "base",
    "augmxnt/shisa-gamma-7b-v1": "one",
    "WizardLM/WizardMath-7B-V1.1": "two",
    "GAIR/Abel-7B-002": "three",
}


@pytest.mark.slow  # a search, of data_flow.md two
@pytest.mark.parametrize("page", ["README.md", "experiments/guides/own_models.md", "experiments/guides/data_flow.md"])
def test_configs(page, reader):
    """Each that is whole, as it is but for its models and how long it searches."""
    (block,) = re.findall(r"```yaml\n(name: (?:my_merge|both).*?)```", (ROOT / page).read_text(), re.DOTALL)
    for theirs, ours in {**MODELS, "model: a}": "model: one}", "model: b}": "model: two}", ", b]": ", two]"}.items():
        block = block.replace(theirs, ours)
    block = re.sub(r"evaluations: \d+(, population: \d+)?", "evaluations: 12, population: 6", block)
    (reader / "run.yaml").write_text(block)
    short = [] if "stages:" in block or "evaluations:" in block else ["--evaluations", "12"]
    assert main(["evolve", "run.yaml", *short, "--debug"]) == 0
    (best,) = [*(reader / "runs").glob("*/best"), *(reader / "runs").glob("*/flow/best")]
    assert (best / "model.safetensors").exists()
