"""Folders of Qwen2.5-VL: merged with text models, they open in transformers, where they see and write the same."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import jevomerge as jm
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT
from tests.composites import IMAGE, WORDS, write_qwen, write_text_model

COUNTS = [1, 2, 0, 1, 2, 1]  # pictures of each row
SIZES = [(64, 40), (25, 50)]
LAYOUTS = {"hub": ("model.", "visual."), "in memory": ("model.language_model.", "model.visual.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    write_text_model(folder / "base", 0, "qwen2")
    write_text_model(folder / "japanese", 1, "qwen2")
    for layout in LAYOUTS:
        write_qwen(folder / layout, 2, layout)
        jm.merge_folder(recipe(folder, layout), folder / f"merged {layout}")
    rng, rows = np.random.default_rng(0), []
    for i, count in enumerate(COUNTS):
        names = [f"{i}_{k}.png" for k in range(count)]
        for name in names:
            height, width = SIZES[rng.integers(2)]
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
        question = " ".join(f"<image> w{rng.integers(3, 80)}" for _ in names)
        rows.append({"image": names, "question": question, "answer": f"w{i + 5} w{i + 9}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder, layout):
    weighed = [(layout, 0.75), ("japanese", 0.5)]
    models = [{"model": str(folder / name), "parameters": {"weight": weight}} for name, weight in weighed]
    return {
        "merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models, "dtype": "float32",
    }  # fmt: skip


def task(folder, **more):
    halves = [{"path": "rows.jsonl", "rows": [0, 4]}, {"path": "rows.jsonl", "rows": [4, 6]}]
    values = {
        "name": "look", "search": halves[0], "heldout": halves[1], "image": "{image}", "prompt": "w1 {question} w2",
        "answer": "{answer}", "score": "likelihood", **more,
    }  # fmt: skip
    path = folder / f"{values['score']}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def given_to_transformers(folder, model, row, answer=()):
    """A row's tokens, and its pictures."""
    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    processor = Qwen2VLImageProcessorPil(**json.loads((folder / model / "preprocessor_config.json").read_text()))
    text, given = f"w1 {row['question']} w2", {}
    if row["image"]:
        given = dict(processor([Image.open(folder / name) for name in row["image"]], return_tensors="pt"))
        for grid in given["image_grid_thw"]:
            tokens = "<|image_pad|>" * int(grid.prod() // 4)
            text = text.replace("<image>", f"<|vision_start|>{tokens}<|vision_end|>", 1)
    ids = torch.tensor([tokenizer(text)["input_ids"] + list(answer)])
    return tokenizer, {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int(), **given}


def rows_of(folder, start, stop):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()[start:stop]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_language_part_merges_and_the_rest_is_carried_along(folder, layout):
    result, qwen = (load_file(folder / n / "model.safetensors") for n in (f"merged {layout}", layout))
    base, japanese = (load_file(folder / name / "model.safetensors") for name in ("base", "japanese"))
    assert result.keys() == qwen.keys()
    language, visual = LAYOUTS[layout]
    for name, array in result.items():
        if name.startswith(visual):
            np.testing.assert_array_equal(array, qwen[name])
            continue
        alone = name if name == "lm_head.weight" else "model." + name.removeprefix(language)
        known = slice(None, len(base[alone]))
        wanted = base[alone] + 0.75 * (qwen[name][known] - base[alone]) + 0.5 * (japanese[alone] - base[alone])
        np.testing.assert_allclose(array[known], wanted, atol=1e-6)
        np.testing.assert_array_equal(array[len(wanted) :], qwen[name][len(wanted) :])
    model, report = AutoModelForImageTextToText.from_pretrained(folder / f"merged {layout}", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["mrope_section"], model.config.image_token_id) == (10000.0, [1, 1, 1], len(WORDS))
    files = [json.loads((folder / n / "config.json").read_text()) for n in (layout, f"merged {layout}")]
    assert ("text_config" in files[0]) == ("text_config" in files[1]) == (layout == "in memory")


@pytest.mark.parametrize("model", ["merged hub", pytest.param("in memory", marks=pytest.mark.slow)])
def test_likelihoods_are_those_of_transformers(folder, model):
    found = jm.evaluate(folder / model, task(folder), "search")
    reference = AutoModelForImageTextToText.from_pretrained(folder / model).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    for score, row in zip(found["examples"]["look"], rows_of(folder, 0, 4), strict=True):
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        _, given = given_to_transformers(folder, model, row, answer)
        with torch.no_grad():
            logits = reference(**given).logits[0]
        logprobs = torch.log_softmax(logits[-len(answer) - 1 : -1], -1)[range(len(answer)), answer]
        np.testing.assert_allclose(score, logprobs.mean().item(), atol=1e-4)


def test_texts_are_those_of_transformers(folder):
    path = task(folder, score="generation", max_new_tokens=6, extract="exact")
    found = jm.evaluate(folder / "merged hub", path, "search")
    reference = AutoModelForImageTextToText.from_pretrained(folder / "merged hub").eval()
    for text, row in zip(found["texts"]["look"], rows_of(folder, 0, 4), strict=True):
        tokenizer, given = given_to_transformers(folder, "merged hub", row)
        with torch.no_grad():
            tokens = reference.generate(
                **given, attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=6, do_sample=False,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
            )  # fmt: skip
        assert text == tokenizer.decode(tokens[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def test_videos_are_refused_by_name(folder):
    path = task(folder, prompt="w1 {question} <|video_pad|>")
    with pytest.raises(InputError, match=r"row 0 .*: the prompt has <\|video_pad\|>, which stands for a video"):
        jm.evaluate(folder / "hub", path, "search")


@pytest.mark.slow
def test_a_search_over_it(folder, tmp_path):
    given = recipe(folder, "hub")
    for model in given["models"]:
        del model["parameters"]
    config = {
        "name": "seeing", "recipe": given, "genome": {"weight": [0, 1]}, "tasks": [str(task(folder))],
        "search": {"evaluations": 12, "population": 4},
    }  # fmt: skip
    result = jm.evolve(config, output=tmp_path / "run", observer=SILENT)
    again = jm.evaluate(tmp_path / "run" / "best", task(folder), "heldout")
    assert again["results"]["look"]["likelihood"] == pytest.approx(result.scores["best"]["heldout"], abs=1e-5)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "best")
