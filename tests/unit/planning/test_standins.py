"""Plans of what is not on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from jevomerge.checkpoint.files import read_json, split_adapter
from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.planning.standins import Shapes, shapes_beside, stand_in
from jevomerge.run.plan import plan
from jevomerge.search.setup import set_up
from tests.composites import TEXT, VISION

CONFIGS = Path(__file__).parents[3] / "configs"
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.shapes.json")), ids=lambda path: path.stem)
def test_those_of_configs_hold_what_their_configs_need(path):
    shapes = Shapes.model_validate(read_json(path))
    config = read_config(path.with_name(path.name.replace(".shapes.json", ".yaml")))
    models = {m.model for m in config.recipe.models} | {config.recipe.base_model} - {None}
    named = {part for model in models for part in split_adapter(model) if part is not None}
    assert named <= shapes.models.keys()
    for task in config.tasks:
        if isinstance(task, PictureTask):
            continue  # its prompts lie beside it
        assert sum(group.rows for group in shapes.tasks[task.name]) >= task.heldout.rows[1]


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


def test_a_lora_of_nothing_is_refused(config, tmp_path):
    shapes = SHAPES | {"models": {"nobody/lora.safetensors": {"of": "nobody/base", "rank": 4}}}
    shapes_beside(config).write_text(json.dumps(shapes))
    with pytest.raises(InputError, match="is a LoRA of nobody/base, which is no image pipeline there"):
        stand_in(read_config(config), shapes_beside(config), tmp_path / "work")
