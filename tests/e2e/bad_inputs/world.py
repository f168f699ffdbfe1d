"""A folder in which everything is right, and what one bad input does to it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from jevomerge.config import read_config
from jevomerge.run.search import begin, open_archive
from jevomerge.search.setup import set_up

STORIES = Path(__file__).parents[2] / "data" / "stories260k"
TASK = """\
name: stories
search: search.jsonl
heldout: heldout.jsonl
prompt: "{begin}"
answer: "{end}"
score: likelihood
"""
RECIPE = """\
merge_method: linear
models:
  - model: front
    parameters: {weight: 0.5}
  - model: back
    parameters: {weight: 0.5}
dtype: float32
"""
RUN = """\
name: repair
recipe:
  merge_method: linear
  models:
    - model: front
    - model: back
  dtype: float32
genome:
  weight: {range: [0, 1], layers_per_group: 2}
tasks: [task.yaml]
search: {evaluations: 8, population: 4, checkpoint_every: 2}
"""
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
SPLITS = {"search": 0.5, "heldout": 0.5}


class World:
    """Its folder; what is changed is changed here alone, though files are links to those of another."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where something lies, or, once it is removed, will lie."""
        return self.folder / name

    def remove(self, name: str) -> Path:
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return path

    def write(self, name: str, content: str | bytes) -> None:
        path = self.remove(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def json(self, name: str) -> Any:
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def dump(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value))

    def update(self, name: str, **values: Any) -> None:
        """Set keys of a JSON file; `...` removes one."""
        self.dump(name, {k: v for k, v in (self.json(name) | values).items() if v is not ...})

    def replace(self, name: str, old: str, new: str) -> None:
        text = self.path(name).read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        self.write(name, text.replace(old, new))

    def tensors(self, name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        """Change the tensors of a safetensors file."""
        found = load_file(self.path(name))
        change(found)
        self.remove(name)
        save_file(found, self.path(name), metadata={"format": "pt"})

    def header(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the header of a safetensors file; what the function returns, if anything, takes its place."""
        data = self.path(name).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        changed = change(header)
        text = changed if isinstance(changed, bytes) else json.dumps(header if changed is None else changed).encode()
        self.write(name, len(text).to_bytes(8, "little") + text + data[8 + size :])

    def shard(self) -> None:
        """Give `front` an index."""
        names = list(load_file(self.path("front/model.safetensors")))
        self.path("front/model.safetensors").rename(self.path("front/model-00001-of-00001.safetensors"))
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        self.dump("front/model.safetensors.index.json", index)

    def pipe(self, name: str) -> None:
        """Put a named pipe there, at which a reader waits for ever."""
        os.mkfifo(self.remove(name))

    def directory(self, name: str) -> None:
        self.remove(name).mkdir()

    def dangling(self, name: str) -> None:
        self.remove(name).symlink_to("nowhere")


class Input(NamedTuple):
    """A bad input: what is done to the world, the command that meets it, and what its message has to say."""

    name: str
    command: str
    change: Callable[[World], Any]
    says: str  # a regular expression


def make_world(folder: Path) -> None:
    """Three models with a task, a recipe, an adapter, one that sees, a run that has begun and one that is finished.

    They are made at `place_of(folder)`, where each copy is used in turn: runs have absolute paths in them.
    """
    world = World(place_of(folder))
    world.folder.mkdir()
    for name in ("base", "front", "back"):
        shutil.copytree(STORIES, world.path(name))
    world.dump("adapter/adapter_config.json", ADAPTER)
    halves = {f"{Q_PROJ}.lora_A.weight": (2, 64), f"{Q_PROJ}.lora_B.weight": (64, 2)}
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in halves.items()},
        world.path("adapter/adapter_model.safetensors"),
    )
    for split, begun in (("search", ("Once upon a time", "One day")), ("heldout", ("Lily and Tom", "The big dog"))):
        rows = [{"begin": b, "end": e} for b in begun for e in (", a girl.", " a cat.", " Tom.")]
        world.write(f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("task", TASK), ("recipe", RECIPE), ("run", RUN)):
        world.write(f"{name}.yaml", text)
    world.write("adapted.yaml", RECIPE.replace("model: front", "model: front+adapter"))
    world.write("union.yaml", RECIPE + "tokenizer_source: union\n")
    world.write("auto.yaml", RECIPE + "chat_template: auto\n")
    world.write("in_the_way", "a file\n")
    from tests.e2e.bad_inputs.drawing import make_drawing  # which imports this file
    from tests.e2e.bad_inputs.pictures import make_seeing

    make_seeing(world)
    make_drawing(world)
    _make_runs(world)
    world.folder.rename(folder)


def place_of(template: Path) -> Path:
    """Where a copy of what is in `template` is used."""
    return template.with_name("world")


def _make_runs(world: World) -> None:
    setup = set_up(read_config(world.path("run.yaml")))
    begin(setup, world.path("begun"))
    rng = np.random.default_rng(0)
    records = [
        {"generation": g, "member": m, "genome": rng.random(len(setup.problem.names)).tolist(), "fitness": -1.0 - m,
         "tie_break": None, "scores": {"stories": [-1.0] * 6}, "seconds": 0.5, "tokens": {"prompt": 9, "answer": 9}}
        for g in range(2) for m in range(4)
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        open_archive(world.path("begun"), stack).append(records)
    shutil.copytree(world.path("begun"), world.path("finished"))
    sources = dict.fromkeys(("front", "back"), SPLITS)
    best = {**SPLITS, "genome": {}, "evaluation": 0}
    world.dump(
        "finished/result.json",
        {"average": SPLITS, "sources": sources, "best": best, "evaluations": 8, "seconds": 4.0, "export": "best"},
    )
    texts = {**SPLITS, "tasks": {}, "scores": {"stories": [0.5] * 6}, "texts": {}}
    example = {"prompt": "Once", "answer": "."}
    held = {"examples": {"stories": [example] * 6}, "sources": dict.fromkeys(sources, texts)}
    world.dump("finished/heldout.json", {**held, "average": texts, "best": texts})
