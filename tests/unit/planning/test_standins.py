"""Plans of what is not on this machine."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from jevomerge.checkpoint.files import read_json, split_adapter
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.schema import FunctionTask
from jevomerge.planning.standins import Apart, Shapes, shapes_beside, stand_in
from jevomerge.recipe.schema import read_recipe
from jevomerge.run.plan import plan
from jevomerge.search.setup import refiner_of, set_up, set_up_stages
from tests.composites import TEXT, VISION

CONFIGS = Path(__file__).parents[3] / "configs"
EVOLLM = CONFIGS / "evollm_jp.yaml"
MODEL = TEXT | {"model_type": "mistral", "vocab_size": 90, "rope_theta": 1e4, "sliding_window": None}
SEEING = {
    "model_type": "llava",
    "image_token_index": 90,
    "vision_config": VISION,
    "text_config": MODEL | {"vocab_size": 96},
}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 14}, "crop_size": 14}
SHAPES = {
    "models": {
        "nobody/base": {"config.json": MODEL, "tokens": 90, "dtype": "float32"},
        "nobody/seeing": {
            "config.json": SEEING, "preprocessor_config.json": PROCESSOR, "tokens": 90, "added": ["<image>"],
            "dtype": "float32",
        },
    },
    "tasks": {"look": [{"rows": 8, "prompt": 7, "answer": 2, "picture": [20, 30]}]},
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    source = {"path": "nobody/data", "split": "test"}
    task = {
        "name": "look", "search": source | {"rows": [0, 4]}, "heldout": source | {"rows": [4, 8]}, "image": "{image}",
        "prompt": "<image>\n{qas[0][question]}", "answer": "{answer}", "score": "likelihood",
    }  # fmt: skip
    models = [{"model": "nobody/seeing"}, {"model": "nobody/base"}]
    given = {
        "name": "far", "recipe": {"merge_method": "linear", "models": models}, "genome": {"weight": [0, 1]},
        "tasks": [task], "search": {"evaluations": 8, "population": 4},
    }  # fmt: skip
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "far.shapes.json").write_text(json.dumps(SHAPES))
    return tmp_path / "far.yaml"


def test_lengths_and_sizes_are_those_of_the_file(config, tmp_path):
    setup = set_up(stand_in(read_config(config), shapes_beside(config), tmp_path / "work"))
    for examples in setup.judge.examples.values():
        for example in examples["look"]:
            assert (len(example.prompt_tokens), len(example.answer_tokens)) == (7 + 4, 2 + 1)  # the picture; the end
    assert setup.judge.kept == 8 * 4 * TEXT["hidden_size"] * 4
    assert setup.problem.model.vocab_size == 96
    assert [c.name for c in setup.problem.checkpoints] == ["seeing", "base"]


def test_a_plan_without_models_and_data(config):
    lines = "\n".join(plan(config))
    assert "linear of seeing, base" in lines
    assert "kept of pictures, not on devices" in lines


def test_a_file_that_is_wrong_is_refused(config, tmp_path):
    (tmp_path / "far.shapes.json").write_text(
        '{"models": {}, "tasks": {"look": [{"rows": 0, "prompt": 1, "answer": 1}]}}'
    )
    with pytest.raises(InputError, match=r"far\.shapes\.json.*rows"):
        plan(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_here_or_has_what_it_needs_beside_it(path):
    beside = shapes_beside(path)
    shapes = Shapes.model_validate(read_json(beside)) if beside.exists() else Shapes(models={})
    fixed = "merge_method" in yaml.safe_load(path.read_text())
    config = None if fixed else read_config(path)
    recipes = [read_recipe(path)] if fixed else [s.recipe for s in getattr(config, "stages", [config]) if s.recipe]
    models = {name for recipe in recipes for name in recipe.references}
    named = {part for model in models for part in split_adapter(model) if part is not None}
    assert {name for name in named if not Path(name).exists()} <= shapes.models.keys()
    for task in [] if config is None else config.tasks:
        if isinstance(task, PictureTask | FunctionTask) or Path(task.search.path).exists():
            continue  # its prompts lie beside it, or its rows, or it has none
        groups = shapes.tasks[task.name]
        if isinstance(groups, Apart):
            assert [sum(g.rows for g in part) for part in (groups.search, groups.heldout)] == [1069, 250]
        else:
            assert sum(group.rows for group in groups) >= task.heldout.rows[1]


def test_splits_that_lie_apart_have_rows_of_their_own(tmp_path):
    setup = next(set_up_stages(stand_in(read_config(EVOLLM), shapes_beside(EVOLLM), tmp_path / "work")))
    sizes = {split: [len(e.prompt_tokens) for e in found["gsm8k_ja"]] for split, found in setup.judge.examples.items()}
    assert {split: (len(n), max(n)) for split, n in sizes.items()} == {"search": (1069, 292), "heldout": (250, 181)}
    assert "Mistral-7B-v0.1" in [c.name for c in setup.problem.checkpoints]


def test_a_recipe_is_planned_as_it_is_merged(capsys, tmp_path):
    numbers = tmp_path / "numbers.json"
    assert main(["plan", str(CONFIGS / "evosdxl_jp.yaml"), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "merged tensor by tensor, nothing is searched" in said
    (found,) = json.loads(numbers.read_text())
    assert found["written"] == 2 * 2567463684  # the parameters of SDXL's U-Net, in float16
    assert found["read"] == 4 * found["written"]
    assert f"{found['written'] / 1e9:.2f} GB are merged and written" in said


@pytest.mark.parametrize(("name", "genes"), [("evosdxl_jp_search", 8), ("evosdxl_jp_lightning", 6)])
def test_image_models_of_the_configs_are_stood_in_for(name, genes, tmp_path):
    """All parts of their pipelines, a LoRA, a U-Net's file and the CLIP that judges; nothing is downloaded."""
    config = CONFIGS / f"{name}.yaml"
    setup = set_up(stand_in(read_config(config), shapes_beside(config), tmp_path / "work"))
    assert len(setup.problem.names) == genes
    (task,) = setup.judge.tasks
    assert [len(setup.judge.material[split][task.name].documents) for split in ("search", "heldout")] == [16, 16]
    assert task.rollout.pipeline.parts.keys() == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert task.rollout.pipeline.pooled_from == 2
    begin = dict(zip(setup.problem.names, np.asarray(setup.problem.mean), strict=True))  # of ranges from 0 to 1
    if name == "evosdxl_jp_search":  # it begins where the fixed recipe is
        (attn,), (conv,) = ([begin[n] for n in begin if "Juggernaut" in n and of in n] for of in ("attn", "conv"))
        assert (attn, conv) == pytest.approx((0.3922685507065275, 0.6503217149752791))
    else:
        low_rank = setup.problem.sources.parts[0].checkpoints[0].adapter.low_rank
        assert {pair.rank for pair in low_rank.values()} == {64}


def test_trees_of_orbax_are_stood_in_for(tmp_path):
    """Eight checkpoints of a run, within `work` although they are called ../runs/...; the gradient is followed, too."""
    config = read_config(CONFIGS / "trajectory.yaml")
    work = tmp_path / "a" / "work"
    setup = set_up(stand_in(config, shapes_beside(CONFIGS / "trajectory.yaml"), work))
    assert [c.name for c in setup.problem.checkpoints] == [f"{i}/items" for i in range(30, 241, 30)]
    assert len(setup.problem.names) == 8
    base = Checkpoint(CONFIGS.parent / "experiments" / "japanese_math_mini" / "models" / "base")
    parameters = sum(math.prod(spec.leaf_shape) for spec in base.specs)
    assert sum(math.prod(spec.shape) for spec in setup.problem.model.specs) == parameters
    [(task, material)] = setup.judge.material["search"].items()
    assert (task, len(material.documents)) == ("japanese_answers", 64)
    assert refiner_of(setup, setup.load(abstract=True)).layouts[0].rows == 64
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["work"]


def test_a_lora_of_nothing_is_refused(config, tmp_path):
    shapes = SHAPES | {"models": {"nobody/lora.safetensors": {"of": "nobody/base", "rank": 4}}}
    shapes_beside(config).write_text(json.dumps(shapes))
    with pytest.raises(InputError, match="is a LoRA of nobody/base, which is no image pipeline there"):
        stand_in(read_config(config), shapes_beside(config), tmp_path / "work")
