"""How soon the command line speaks: what is imported before it does."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jevomerge.cli import next_steps, parser
from jevomerge.config import read_run

COMMANDS = {
    "evolve": ["evolve", "a.yaml"],
    "merge": ["merge", "a.yaml", "out"],
    "explain": ["merge", "a.yaml", "--explain"],
    "evaluate": ["evaluate", "a.yaml", "--task", "t.yaml"],
    "generate": ["generate", "a.yaml", "--prompt", "a", "--output", "out"],
    "export": ["export", "a.yaml", "--genome", "best", "out"],
    "report": ["report", "a.yaml"],
    "watch": ["watch", "a.yaml"],
    "compare": ["compare", "a.yaml", "b.yaml"],
    "plan": ["plan", "a.yaml"],
    "translate": ["translate", "a.yaml"],
}
SLOW = ("jax", "numpy", "pydantic", "rich", "yaml", "transformers", "matplotlib")


def run(code, tmp_path, **environment):
    """Standard error of a process."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


HELP = f"""
import sys
from jevomerge.cli import main
for words in ([], *([c] for c in {[words[0] for words in COMMANDS.values()]})):
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0
found = set({SLOW}) & set(sys.modules)
assert not found, found
"""


def test_help_imports_nothing_slow(tmp_path):
    run(HELP, tmp_path)


FIRST_WORD = f"""
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name in {SLOW}:
            raise ImportError("too early: " + name)

sys.meta_path.insert(0, Refuses())
from jevomerge.cli import main
for words in {list(COMMANDS.values())}:
    assert main(words) == 1
"""


@pytest.fixture
def named(tmp_path):
    """A folder with what the commands name."""
    for name in ("a.yaml", "b.yaml", "t.yaml"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_first_word_comes_before_slow_imports(named):
    lines = run(FIRST_WORD, named).splitlines()
    assert len(lines) == 2 * len(COMMANDS)
    for name, said, error in zip(COMMANDS, lines[::2], lines[1::2], strict=True):
        assert said == f"jevomerge: reading {'a.yaml, b.yaml' if name == 'compare' else 'a.yaml'} ..."
        assert error.startswith("jevomerge: ImportError: too early: ")


def test_only_the_first_of_several_processes_speaks(named):
    code = FIRST_WORD.replace("for words in", "for words in [['evolve', 'a.yaml', '--process-id', '1']] or")
    (line,) = run(code, named).splitlines()
    assert "ImportError" in line


def test_a_misspelt_name_is_refused_before_slow_imports(tmp_path):
    """Also of a task and of a run; a model or data could be on the hub."""
    words = {name: given for name, given in COMMANDS.items() if name != "generate"}
    code = FIRST_WORD.replace(repr(list(COMMANDS.values())), repr(list(words.values()))).replace("== 1", "== 2")
    lines = run(code, tmp_path).splitlines()
    files = {"evaluate": "t.yaml"}
    assert lines == [
        f"jevomerge: {files.get(name, 'a.yaml')} cannot be read (No such file or directory); check the name and its "
        "permissions"
        for name in words
    ]


MISSPELT = """
import json, sys
from jevomerge.cli import main
for words in json.loads(sys.stdin.readline()):
    assert main(words) == 2
    found = {"jax", "flax", "transformers", "matplotlib"} & set(sys.modules)
    assert not found, found
"""
TASK = {"name": "t", "search": "a.jsonl", "heldout": "b.jsonl", "prompt": "{q}", "answer": "{a}"}
RECIPE = {"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.5}}
DRAWN = {"name": "d", "search": "a.jsonl", "heldout": "b.jsonl", "prompts": "{q}", "steps": 1, "guidance": 0}


def test_a_misspelt_key_is_refused_before_jax_is_imported(tmp_path):
    """Wherever it stands, in whatever command reads it."""
    config = {"name": "x", "recipe": RECIPE, "genome": {"t": [0, 1]}, "tasks": [TASK]}
    files = {
        "search": config | {"search": {"evaluatons": 3}},
        "genome": config | {"genome": {"t": {"layer_per_group": 4}}},
        "recipe": config | {"recipe": RECIPE | {"tokenizer": {"tokens": {"<s>": {"sorce": "a"}}}}},
        "judge": config | {"tasks": [TASK | {"score": {"people": {"rater": 2}}}]},
        "draw": config | {"tasks": [DRAWN | {"score": "clip", "seed": 2}]},
        "merged": RECIPE | {"models": [{"modle": "a"}]},
        "task": TASK | {"max_new_token": 3},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    words = [["evolve", f"{name}.yaml"] for name in ("search", "genome", "recipe", "judge", "draw")]
    words += [["plan", "search.yaml"], ["merge", "merged.yaml", "out"], ["evaluate", "a", "--task", "task.yaml"]]
    command = [sys.executable, "-c", MISSPELT]
    done = subprocess.run(command, input=json.dumps(words), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unknown = [re.search("unknown key `(.*?)`", line)[1] for line in done.stderr.splitlines() if "unknown" in line]
    keys = ["evaluatons", "layer_per_group", "sorce", "rater", "seed", "evaluatons", "modle", "max_new_token"]
    assert unknown == keys


def test_what_one_may_do_next_is_understood():
    config = read_run(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
    first, _, *steps = next_steps(Path("runs/my run"), config)
    assert first == "Next:"
    for step in steps:
        args = parser().parse_args(shlex.split(step.split("  ")[1])[1:])
        assert {"runs/my run", "runs/my run/best"} & set(map(str, vars(args).values()))
    assert args.evaluations == 2 * config.search.evaluations


WITHOUT_PYTORCH = """
import os, sys
sys.modules["torch"] = None
from jevomerge.cli import main
assert main(["evolve"]) == 2  # neither a config nor a run
if {told}:
    del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
import transformers
"""


def test_nobody_is_told_that_there_is_no_pytorch(tmp_path):
    assert "PyTorch was not found" in run(WITHOUT_PYTORCH.format(told=True), tmp_path)
    assert "PyTorch" not in run(WITHOUT_PYTORCH.format(told=False), tmp_path)


def test_a_shell_completes_commands_and_flags(tmp_path):
    script = tmp_path / "completion"
    with script.open("w") as file:
        subprocess.run([sys.executable, "-m", "jevomerge", "--print-completion", "bash"], stdout=file, check=True)
    asked = f"""
source {script}
COMP_WORDS=(jevomerge "$@"); COMP_CWORD=$#
_shtab_jevomerge; echo "${{COMPREPLY[@]}}"
"""
    for words, expected in ((["ev"], "evolve evaluate"), (["push", "--acc"], "--accept-licence")):
        done = subprocess.run(["bash", "-c", asked, "bash", *words], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == set(expected.split())
