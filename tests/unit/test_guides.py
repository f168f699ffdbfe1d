"""The README, the guides and the list of keys: what they show is read, parsed and found."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jevomerge.cli import parser
from jevomerge.config import read_config
from jevomerge.fitness.tasks import read_tasks
from jevomerge.recipe.schema import read_recipe
from tests.keys import SCHEMAS, keys, page

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "experiments" / "guides").glob("*.md")),
    *(ROOT / "jevomerge" / name for name in ("README.md", "methods/README.md", "models/README.md")),
]
TASK = {"name": "task", "search": "rows.jsonl", "heldout": "rows.jsonl", "prompt": "{q}", "answer": "{a}"}
FRAGMENTS = {"score", "image", "prompt", "decode"}  # of tasks
RUN = {"name": "run", "recipe": {"merge_method": "linear", "models": [{"model": "a"}]}, "genome": {"weight": [0, 1]}}


def blocks(language: str) -> list:
    found = [(p, block) for p in PAGES for block in re.findall(rf"```{language}\n(.*?)```", p.read_text(), re.DOTALL)]
    return [pytest.param(block, id=f"{p.parent.name}/{p.stem}-{i}") for i, (p, block) in enumerate(found)]


def test_the_list_of_keys_is_that_of_the_schema():
    assert (ROOT / "configs" / "README.md").read_text() == page(), "python -m tests.keys > configs/README.md"


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_key_says_what_it_is_for(schema):
    assert [name for name in schema.model_fields if not keys(schema)[name].meaning] == []


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_right(block, tmp_path):
    """Runs, recipes and tasks are whole, or lines that go into one; of a key that is there twice each is tried."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_task.yaml").write_text(yaml.safe_dump(TASK))
    names = re.findall(r"^(\w+):", block, re.MULTILINE)
    twice = len(set(names)) < len(names)
    for part in re.findall(r"^\w.*$", block, re.MULTILINE) if twice else [block]:
        given = yaml.safe_load(part)
        file = tmp_path / "file.yaml"
        if {"search", "heldout"} <= given.keys() or given.keys() <= FRAGMENTS:
            of_folders = (
                isinstance(given.get("score"), dict) and given["score"].get("of") == "folder"
            )  # they have no data
            whole = {"harness", "prompts"} & given.keys()
            given = given if whole else {"name": "task", **(TASK, {})[of_folders], **given}
            file.write_text(yaml.safe_dump(given))
            read_tasks(file)
        elif {"merge_method", "modules"} & given.keys():
            file.write_text(part if "merge_method" in given else f"merge_method: linear\n{part}")
            read_recipe(file)
        else:
            whole = given if {"recipe", "stages"} & given.keys() else {**RUN, **given}
            file.write_text(yaml.safe_dump({"tasks": ["tasks/my_task.yaml"], **whole}))
            read_config(file)


def test_commands_are_understood():
    """Every command of a page, and of what may be left out each alone."""
    texts = re.findall(
        r"`(jevomerge [a-z][^`|]*)`|^(?:.*&& )?(jevomerge [a-z].*)$",
        "\n".join(map(Path.read_text, PAGES)),
        re.MULTILINE,
    )
    commands = {one or other for one, other in texts}
    assert len(commands) > 15
    for command in commands:
        words = re.sub(
            r"best\\$|\.\.\.|\bN\b|\bI\b", lambda m: {"N": "1", "I": "0", "best\\": "best"}.get(m[0], ""), command
        )
        optional = re.findall(r"\[(.*?)\]", words)
        needed = re.sub(r"\[.*?\]", "", words)
        for given in [needed, *(f"{needed} {o}" for o in optional)]:
            arguments = shlex.split(given.replace("HOST:PORT", "host:1"))[1:]
            if len(arguments) > 1:  # more than a command's name
                parser().parse_args(arguments)


def test_links_lead_somewhere():
    for path in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path}: {link}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
