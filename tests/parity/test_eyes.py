"""Models whose eyes are merged, too: tensors against NumPy, features against those looked at one by one, scores against
those of the exported folder."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint, with_eyes
from jevomerge.errors import InputError
from jevomerge.genome.space import make_space
from jevomerge.models.families import read_seeing
from jevomerge.models.vision.seeing import features
from jevomerge.models.vision.sighted import Sighted, Unseen
from jevomerge.observers.observer import SILENT
from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from tests.composites import write_text_model, write_vlm
from tests.seeing import make, picture

PARTS = ("vision_tower", "multi_modal_projector")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eyes")
    write_text_model(folder / "japanese", 1)
    write_vlm(folder / "a", 2)
    write_vlm(folder / "b", 3, layout="2024")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20 + i, 17, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": f"w{i + 20}", "answer": f"w{i + 5} w{i + 9}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def listed(folder, **shares):
    return [{"model": str(folder / name), "parameters": {"weight": w}} for name, w in shares.items()]


def recipe(folder, **more):
    modules = {
        "text_decoder": {"models": listed(folder, japanese=0.5, a=1.0, b=0.25)},
        "vision_tower": {"models": listed(folder, a=0.75, b=0.5)},
        "multi_modal_projector": {"models": listed(folder, a=0.25, b=1.0)},
    }
    given = {"merge_method": "linear", "modules": modules, "carry": str(folder / "a"), "dtype": "float32"}
    return given | {"compute_as": str(folder / "a"), **more}


def tensors(folder, name):
    """As new files call them."""
    found = load_file(folder / name / "model.safetensors")
    return {
        key.replace("vision_tower.vision_model.", "vision_tower."): x.astype(np.float64) for key, x in found.items()
    }


def test_two_towers_and_projectors_merge_as_in_numpy(folder, tmp_path):
    jm.merge_folder(recipe(folder), tmp_path / "out")
    merged, a, b = (tensors(*where) for where in ((tmp_path, "out"), (folder, "a"), (folder, "b")))
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(folder / "a" / "model.safetensors").keys()
    )
    for part, (of_a, of_b) in {"vision_tower": (0.75, 0.5), "multi_modal_projector": (0.25, 1.0)}.items():
        for name in (name for name in a if name.startswith(part)):
            wanted = (of_a * a[name] + of_b * b[name]) / (of_a + of_b)
            np.testing.assert_allclose(merged[name], wanted, rtol=1e-6, atol=1e-7, err_msg=name)
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    jm.merge_folder(tmp_path / "out" / "recipe.yaml", tmp_path / "again")
    for name, array in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_array_equal(array, load_file(tmp_path / "out" / "model.safetensors")[name])


def test_a_module_with_a_base_of_its_own_beside_one_that_is_carried(folder, tmp_path):
    """A text model is the base of the language part alone; the projector is listed with one model."""
    write_text_model(tmp_path / "base", 0)
    given = recipe(folder, merge_method="task_arithmetic", base_model=str(tmp_path / "base"))
    given["modules"]["vision_tower"] = {"models": listed(folder, b=0.5), "base_model": str(folder / "a")}
    given["modules"]["multi_modal_projector"] = {"models": [{"model": str(folder / "a")}]}
    jm.merge_folder(given, tmp_path / "out")
    merged, a, b = (tensors(*where) for where in ((tmp_path, "out"), (folder, "a"), (folder, "b")))
    for name in a:
        if name.startswith("vision_tower"):
            np.testing.assert_allclose(merged[name], a[name] + 0.5 * (b[name] - a[name]), atol=1e-6, err_msg=name)
        if name.startswith("multi_modal_projector"):
            np.testing.assert_array_equal(merged[name], a[name])
    del given["modules"]["vision_tower"]["base_model"]
    with pytest.raises(InputError, match="base has no eyes to be merged: give the module a `base_model`"):
        Sources(read_recipe(given))


def test_towers_that_do_not_match_are_refused_by_name(folder, tmp_path):
    write_vlm(tmp_path / "other", 4, vision_feature_layer=-1)
    given = recipe(folder)
    given["modules"]["vision_tower"]["models"] = listed(folder, a=0.5) + listed(tmp_path, other=0.5)
    with pytest.raises(InputError, match=r"other and .*a differ in their eyes \(layers\); list one model alone"):
        Sources(read_recipe(given))
    with pytest.raises(InputError, match="say whose with `carry`"):
        Sources(read_recipe({k: v for k, v in recipe(folder).items() if k != "carry"}))
    given = recipe(folder)
    given["modules"]["image_newline"] = given["modules"].pop("multi_modal_projector")
    with pytest.raises(InputError, match="`image_newline` must list one model alone"):
        read_recipe(given)


@pytest.mark.parametrize(
    ("gene", "wanted"),
    [
        ({}, ["model/a/weight", "model/japanese/weight"]),
        ({"by": "component"}, ["vision tower/a/weight", "projector/b/weight", "attention/japanese/weight"]),
        ({"layers_per_group": 2}, ["layers 0-1 vision tower/b/weight", "projector/a/weight", "layers 0-1/a/weight"]),
        ({"by": ["vision_tower"]}, ["vision_tower/b/weight", "rest/japanese/weight"]),
        ({"by": "tensor"}, ["vision_tower.encoder.layers.mlp.fc1/a/weight", "embedding embed_tokens/b/weight"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_genes_take_hold_of_eyes_as_of_all_tensors(gene, wanted, folder):
    names = make_space(Sources(read_recipe(recipe(folder))), {"weight": {"range": [0, 1], **gene}}).names
    assert set(wanted) <= set(names)
    assert not any("vision" in name and "japanese" in name for name in names)


def judged(folder, name, **score):
    rows = str(folder / "rows.jsonl")
    return {
        "name": name, "search": {"path": rows, "rows": [0, 4]}, "heldout": {"path": rows, "rows": [4, 6]},
        "image": "{image}", "prompt": "w1 <image> {question} w2", "answer": "{answer}", **score,
    }  # fmt: skip


@pytest.mark.slow
def test_candidates_with_eyes_of_their_own_score_as_their_folders(folder, tmp_path):
    """In one pass and in many; sources with their own eyes, or those of the carrier where they have none."""
    given = recipe(folder)
    for module in given["modules"].values():
        module["models"] = [{"model": m["model"]} for m in module["models"]]
    tasks = [
        judged(folder, "likely", score="likelihood"),
        judged(folder, "written", score="generation", max_new_tokens=4, extract="exact", compare="equal"),
    ]
    config = {
        "name": "eyes", "recipe": given, "genome": {"weight": {"range": [0.1, 1], "by": [*PARTS]}}, "tasks": tasks,
        "search": {"strategy": "random", "evaluations": 2, "population": 2},
    }  # fmt: skip
    result = jm.evolve(config, output=tmp_path / "run", observer=SILENT)
    assert {name.split("/")[0] for name in result.genome} == {*PARTS, "rest"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        jm.export(tmp_path / "run", number, tmp_path / f"out{number}")
        for task in tasks:
            (tmp_path / f"{task['name']}.yaml").write_text(json.dumps(task))
            found = jm.evaluate(tmp_path / f"out{number}", tmp_path / f"{task['name']}.yaml", "search")
            np.testing.assert_allclose(found["examples"][task["name"]], line["scores"][task["name"]], atol=1e-5)
    assert np.abs(np.subtract(*(line["scores"]["likely"] for line in lines))).max() > 1e-3
    heldout = json.loads((tmp_path / "run" / "heldout.json").read_text())["sources"]
    assert set(heldout) == {"a", "b", "japanese"}
    found = jm.evaluate(folder / "a", tmp_path / "likely.yaml", "heldout")["examples"]["likely"]
    np.testing.assert_allclose(found, heldout["a"]["scores"]["likely"], atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_next-siglip", "smolvlm"])
def test_pictures_in_a_batch_are_seen_as_one_by_one(name, tmp_path):
    """Rows with no picture, one, and two, of several layouts, whose views are padded to one number."""
    make(name, tmp_path / "m")
    source = with_eyes(Checkpoint(tmp_path / "m"))
    assert isinstance(source.model, Sighted)
    params, eyes = source.load(), read_seeing(json.loads((tmp_path / "m" / "config.json").read_text()))
    size = eyes.config.vision.image_size if hasattr(eyes, "config") else eyes.vision.image_size
    tiled = name.startswith("llava_next")
    layouts = [None, None, None]
    if tiled:
        values = {
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": eyes.json["image_grid_pinpoints"],
        }
        values |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        looked = [eyes.views(picture(*s), eyes.processor(values)) for s in ((30, 50), (64, 64), (20, 100))]
        pixels, layouts = [v.pixels for v in looked], [v.layout for v in looked]
    else:
        rng = np.random.default_rng(0)
        layouts = [(0, 0), (1, 2), (0, 0)] if name == "smolvlm" else layouts
        pixels = [rng.normal(size=(1 + 2 * (x == (1, 2)), 3, size, size)).astype(np.float32) for x in layouts]
    alone = [features(params, eyes, jnp.asarray(p), layout) for p, layout in zip(pixels, layouts, strict=True)]
    rows = [[0], [], [2, 1]]
    most = max(sum(len(pixels[i]) for i in row) for row in rows)
    room = max(sum(len(alone[i]) for i in row) for row in rows)
    batch, order = np.zeros((3, most, *pixels[0].shape[1:]), np.float32), np.zeros((3, room), np.int32)
    for r, row in enumerate(rows):
        view = at = 0
        for i in row:
            batch[r, view : view + len(pixels[i])] = pixels[i]
            order[r, at : at + len(alone[i])] = eyes.order(layouts[i], view)
            view, at = view + len(pixels[i]), at + len(alone[i])
    unseen = Unseen(jnp.asarray(batch), jnp.asarray(order), jnp.asarray(90, jnp.int32))
    seen = jax.jit(lambda u, p: u.seen(p, source.model, jnp.float32).features)(unseen, params)
    for found, row in zip(seen, rows, strict=True):
        wanted = np.concatenate([np.zeros((0, seen.shape[-1])), *(alone[i] for i in row)])
        np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-5)


def test_a_judge_of_folders_sees_whole_folders(folder, tmp_path):
    """Candidates, sources and their average, whether eyes are merged or carried along."""
    seen = []

    def whole(path: Path) -> float:
        names = load_file(path / "model.safetensors").keys()
        assert names == load_file(folder / "a" / "model.safetensors").keys()
        assert (path / "preprocessor_config.json").exists()
        assert json.loads((path / "config.json").read_text())["image_token_index"] == 90
        seen.append(path)
        return 0.5

    carried = recipe(folder)
    del carried["modules"]
    for given in (recipe(folder), carried | {"models": listed(folder, japanese=0.5, a=1.0)}):
        tasks = [{"name": "whole", "score": {"function": whole, "of": "folder"}}]
        search = {"strategy": "random", "evaluations": 2, "population": 2}
        config = {"name": "whole", "recipe": given, "genome": {"weight": [0.1, 1]}, "tasks": tasks, "search": search}
        jm.evolve(config, output=tmp_path / f"run{len(seen)}", observer=SILENT)
    assert len(seen) >= 2 * 5
