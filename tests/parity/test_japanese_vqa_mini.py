"""The miniature with pictures: what is drawn is what is asked about, and its models are transformers' own."""

import importlib
import io
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import jevomerge as jm
from jevomerge.search.setup import problem_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "japanese_vqa_mini"
TASK = ROOT / "configs" / "tasks" / "mini_japanese_vqa.yaml"


@pytest.fixture(scope="module")
def parts():
    """The experiment's modules `scenes` and `generate`, which import each other by their bare names."""
    names = ("arguments", "scenes", "generate")
    sys.path.insert(0, str(FOLDER))
    try:
        yield [importlib.import_module(name) for name in names][1:]
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def test_things_are_where_and_as_they_are_told(parts):
    scenes, _ = parts
    rng = Random(0)
    drawn = [scenes.draw(rng, "train") for _ in range(200)]
    pictures = scenes.render(np.random.default_rng(0), drawn).astype(float)
    outlines = {}
    for scene, picture in zip(drawn, pictures, strict=True):
        cells = picture.reshape(2, 16, 2, 16, 3).transpose(0, 2, 1, 3, 4).reshape(4, 16, 16, 3)
        filled = {thing.place: thing for thing in scene.things}
        for place, cell in enumerate(cells):
            background = np.median(cell[[0, -1]], axis=(0, 1))
            distance = np.abs(cell - background).sum(axis=-1)
            covered = distance > 120
            if place not in filled:
                assert covered.sum() < 3
                continue
            colour = np.median(cell[covered], axis=0)
            assert np.abs(scenes.RGB - colour).sum(axis=1).argmin() == filled[place].colour
            outlines.setdefault(filled[place].shape, []).append(covered)
    means = {shape: np.mean(masks, axis=0) for shape, masks in outlines.items()}
    apart = [np.abs(means[a] - means[b]).mean() for a in means for b in means if a < b]
    assert len(means) == 6
    assert min(apart) > 0.04


def test_answers_are_those_of_the_scene(parts):
    scenes, _ = parts
    red_circle, blue_ring = scenes.Thing(0, 0, 0), scenes.Thing(3, 2, 4)
    scene = scenes.Scene((red_circle, blue_ring))
    assert scene.tell("en") == (" upper left: red circle.", " lower right: blue ring.")
    asked = {scenes.ask(Random(i), scene, scenes.KINDS) for i in range(200)}
    told = {q.text("en"): q.reply("en") for q in asked}
    assert len(told) == 8
    assert told[" What colour is upper left?"] == told[" What colour is opposite lower right?"] == " red."
    assert told[" What colour is beside lower left?"] == told[" What colour is below upper right?"] == " blue."
    same = {q.text("ja"): q.reply("ja") for q in asked}
    assert len(same) == 8
    assert same["左下の上は何色ですか。"] == same["右上の隣は何色ですか。"] == "赤です。"


def test_the_questions_on_file_are_those_that_are_made_and_in_no_training_text(parts):
    pq = pytest.importorskip("pyarrow.parquet")
    _, generate = parts
    for split, count in generate.COUNTS.items():
        found, made = pq.read_table(generate.DATA / f"{split}.parquet").to_pylist(), generate.questions(split, count)
        for a, b in zip(found, made, strict=True):
            pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in (a, b)]
            np.testing.assert_array_equal(*pixels)
            assert a | {"image": None} == b | {"image": None}
    rng = Random(0)
    assert {make(rng, 4).scene.split for make in generate.CORPORA.values() for _ in range(50)} == {"train"}


def test_every_text_is_read_and_written_word_by_word(parts):
    _, generate = parts
    tokenizer = generate.make_tokenizer(image=True)
    for _, context, turns in (make(Random(i), 4) for i in range(40) for make in generate.CORPORA.values()):
        text = "".join([*(context or ()), *(part for read, written in turns for part in (read, *written))])
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer.get_vocab().items() >= generate.make_tokenizer().get_vocab().items()


def test_the_config_searches_a_weight_per_layer_and_component():
    problem = problem_of(jm.read_run(ROOT / "configs" / "vqa_quickstart.yaml"))
    assert len(problem.space.names) == 22


@pytest.mark.parametrize(
    ("name", "asked"), [("average", ""), pytest.param("llava", "english_", marks=pytest.mark.slow)]
)
def test_its_models_and_their_merges_are_transformers_own(name, asked, tmp_path):
    """Opened by the Auto classes, the processor too: they write what is scored as right, and nothing else is right."""
    pq = pytest.importorskip("pyarrow.parquet")
    rows, models = pq.read_table(FOLDER / "data" / "heldout.parquet").to_pylist()[:32], FOLDER / "models"
    folder = models / name
    if name == "average":
        folder, given = tmp_path / name, [{"model": str(models / m)} for m in ("llava", "japanese")]
        jm.merge_folder({"merge_method": "linear", "models": given, "parameters": {"weight": 1}}, folder)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    texts = ["<image>" + row[f"{asked}question"] for row in rows]
    given = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**given, max_new_tokens=8, do_sample=False)[:, given["input_ids"].shape[1] :]
    written = processor.batch_decode(tokens, skip_special_tokens=True)
    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    task |= {split: str(FOLDER / "data" / f"{split}.parquet") for split in ("search", "heldout")}
    task |= {"prompt": f"<image>{{{asked}question}}", "answer": f"{{{asked}answer}}"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    found = jm.evaluate(folder, tmp_path / "task.yaml", "heldout")["examples"]["japanese_vqa"][:32]
    right = [text == row[f"{asked}answer"] for text, row in zip(written, rows, strict=True)]
    assert right == [bool(score) for score in found]
    assert np.mean(right) > 0.2
