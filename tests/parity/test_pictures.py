"""Tasks with pictures, against transformers: the same scores and texts; and a search as a user runs it."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.config import read_config
from jevomerge.errors import InputError
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.schema import Task
from jevomerge.models.vision.pictures import open_picture
from jevomerge.observers.observer import SILENT
from jevomerge.planning.measure import kept_of
from jevomerge.reports.page import write_report
from jevomerge.search.setup import set_up
from jevomerge.tokenizers.load import load_tokenizer
from tests.composites import write_text_model, write_vlm

CONFIGS = Path(__file__).parents[2] / "configs"
COUNTS = [1, 2, 1, 1, 2, 1]  # pictures of each row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_vlm(folder / "llava", 2)
    write_text_model(folder / "base", 0)
    write_text_model(folder / "japanese", 1)
    rng = np.random.default_rng(0)
    rows = []
    for i, count in enumerate(COUNTS):
        names = [f"{i}_{k}.png" for k in range(count)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (20 + i, 17, 3), np.uint8)).save(folder / name)
        question = " ".join(f"<image> w{rng.integers(3, 80)}" for _ in names)
        rows.append({"image": names, "question": question, "answer": f"w{i + 5} w{i + 9}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump(task()))
    return folder


def task(**more):
    halves = [{"path": "rows.jsonl", "rows": [0, 4]}, {"path": "rows.jsonl", "rows": [4, 6]}]
    return {
        "name": "look", "search": halves[0], "heldout": halves[1], "image": "{image}", "prompt": "w1 {question} w2",
        "answer": "{answer}", "score": "likelihood", **more,
    }  # fmt: skip


def reference(folder, rows):
    """transformers' own: (model, and for each row its input ids, its pixels)."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "llava").eval()
    tokenizer, checkpoint = AutoTokenizer.from_pretrained(folder / "llava"), Checkpoint(folder / "llava")
    eyes = Eyes(checkpoint, load_tokenizer(checkpoint.folder))
    given = []
    for row in rows:
        pixels = [
            eyes.model.views(open_picture((folder / name).read_bytes(), name), eyes.processor).pixels
            for name in row["image"]
        ]
        text = f"w1 {row['question']} w2".replace("<image>", "<image> " * 4)
        given.append((tokenizer(text)["input_ids"], torch.tensor(np.concatenate(pixels))))
    return model, tokenizer, given


def rows_of(folder, start, stop):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()[start:stop]]


def test_likelihoods_are_those_of_transformers(folder):
    found = jm.evaluate(folder / "llava", folder / "task.yaml", "search")
    model, tokenizer, given = reference(folder, rows := rows_of(folder, 0, 4))
    for score, row, (prompt, pixels) in zip(found["examples"]["look"], rows, given, strict=True):
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer]), pixel_values=pixels).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)[range(len(answer)), answer]
        np.testing.assert_allclose(score, logprobs.mean().item(), atol=1e-4)


@pytest.mark.parametrize("decode", [{}, {"beams": 3, "repetition_penalty": 1.5}])
def test_texts_are_those_of_transformers(decode, folder):
    written = {"score": "generation", "max_new_tokens": 6, "extract": "exact", "decode": decode}
    (folder / "write.yaml").write_text(yaml.safe_dump(task(**written)))
    found = jm.evaluate(folder / "llava", folder / "write.yaml", "search")
    model, tokenizer, given = reference(folder, rows_of(folder, 0, 4))
    for text, (prompt, pixels) in zip(found["texts"]["look"], given, strict=True):
        with torch.no_grad():
            tokens = model.generate(
                input_ids=torch.tensor([prompt]), pixel_values=pixels, attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=6, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
                num_beams=decode.get("beams", 1), repetition_penalty=decode.get("repetition_penalty", 1.0),
            )  # fmt: skip
        assert text == tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)


def test_a_search_over_a_model_that_sees(folder, tmp_path):
    models = [{"model": str(folder / name)} for name in ("llava", "japanese")]
    config = {
        "name": "seeing",
        "recipe": {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models},
        "genome": {"weight": [0, 1]},
        "tasks": [str(folder / "task.yaml")],
        "search": {"evaluations": 12, "population": 4},
    }
    result = jm.evolve(config, output=tmp_path / "run", observer=SILENT)
    again = jm.evaluate(tmp_path / "run" / "best", folder / "task.yaml", "heldout")
    assert again["results"]["look"]["likelihood"] == pytest.approx(result.scores["best"]["heldout"], abs=1e-5)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "best")
    assert model.config.image_token_index == 90
    page = write_report(tmp_path / "run").read_text()
    shown = [base64.b64decode(x) for x in re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt=', page)]
    examples = json.loads((tmp_path / "run" / "heldout.json").read_text())["examples"]["look"]
    assert 0 < len(shown) == sum(len(e.get("pictures", [])) for e in examples)  # those of examples that are won or lost
    given = [open_picture((folder / name).read_bytes(), name) for row in rows_of(folder, 4, 6) for name in row["image"]]
    for content in shown:  # is one of them, enlarged: two pictures of noise differ by 85
        small = Image.open(io.BytesIO(content))
        same = [np.asarray(p.resize(small.size, Image.Resampling.NEAREST), float) for p in given]
        assert min(np.abs(np.asarray(small) - p).mean() for p in same) < 25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_much_is_kept_as_was_said(folder, tmp_path, dtype):
    """In the dtype of the activations, in files here; bytes are counted, beside the 128 of each file's header."""
    models = [{"model": str(folder / name)} for name in ("llava", "japanese")]
    config = {
        "name": "seeing", "recipe": {"merge_method": "linear", "models": models}, "genome": {"weight": [0, 1]},
        "tasks": [str(folder / "task.yaml")], "compute_dtype": dtype, "features": {"folder": str(tmp_path / "seen")},
    }  # fmt: skip
    setup = set_up(read_config(config))
    assert any("as files in" in note for note in setup.problem.notes)
    (task,) = setup.judge.tasks
    for examples in setup.judge.examples.values():
        for picture in (p for e in examples["look"] for p in e.pictures):
            task.rollout.eyes.look(picture)
    files = list((tmp_path / "seen").iterdir())
    assert len(files) == sum(COUNTS)
    assert sum(file.stat().st_size - 128 for file in files) == setup.judge.kept == kept_of(setup)


def test_a_picture_matters_and_bytes_are_as_good_as_a_path(folder, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rows = rows_of(folder, 0, 6)
    for row in rows:
        row["image"] = [{"bytes": (folder / name).read_bytes(), "path": None} for name in row["image"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump(task(search=str(tmp_path / "rows.parquet"), heldout=str(tmp_path / "rows.parquet")))
    )
    found, same = (
        jm.evaluate(folder / "llava", path, "search")["examples"]["look"]
        for path in (folder / "task.yaml", tmp_path / "task.yaml")
    )
    np.testing.assert_allclose(found, same[:4], rtol=1e-6)  # with a fifth row it is another program
    blank = io.BytesIO()
    Image.new("RGB", (20, 20)).save(blank, "PNG")
    for row in rows:
        row["image"] = [{"bytes": blank.getvalue(), "path": None}] * len(row["image"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    other = jm.evaluate(folder / "llava", tmp_path / "task.yaml", "search")["examples"]["look"]
    assert np.median(np.abs(np.array(other) - same)) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "w1 {question} <image>"}, "the prompt has <image> 2 times for 1 pictures"),
        ({"image": "{question}"}, "is no file; pictures are named by their paths from the data file"),
        ({"image": "{nothing}"}, "field `nothing` is missing"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change, message, folder):
    (folder / "wrong.yaml").write_text(yaml.safe_dump(task(**change)))
    with pytest.raises(InputError, match=message):
        jm.evaluate(folder / "llava", folder / "wrong.yaml", "search")


def test_models_that_cannot_see_are_said(folder, tmp_path):
    with pytest.raises(InputError, match="base has no eyes"):
        jm.evaluate(folder / "base", folder / "task.yaml")
    blind = tmp_path / "blind"
    blind.mkdir()
    for path in (folder / "llava").iterdir():
        if path.name != "preprocessor_config.json":
            (blind / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="has no preprocessor_config"):
        jm.evaluate(blind, folder / "task.yaml")


@pytest.mark.parametrize("name", ["ja_vg_vqa_500", "ja_vlm_bench_in_the_wild"])
def test_rows_of_the_form_of_the_papers_data(name, folder, tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    asked = [{"question": "w3 w4", "answer": "w5"}, {"question": "w6", "answer": "w7"}]
    picture = {"bytes": (folder / "0_0.png").read_bytes(), "path": "1.jpg"}
    row = {"image": picture, "image_id": 1, "qas": asked, **asked[0]}
    pq.write_table(pa.Table.from_pylist([row] * 500), tmp_path / "rows.parquet")
    given = yaml.safe_load((CONFIGS / "tasks" / f"{name}.yaml").read_text(encoding="utf-8"))
    for split in ("search", "heldout"):
        given[split] = {"path": str(tmp_path / "rows.parquet"), "rows": given[split]["rows"]}
    source = Checkpoint(folder / "llava")
    tokenizer = load_tokenizer(source.folder)
    rows, examples = load_examples(Task.model_validate(given), "heldout", tokenizer, Eyes(source, tokenizer))
    assert len(rows) == given["heldout"]["rows"][1] - given["heldout"]["rows"][0]
    assert examples[0].prompt.endswith("<image>\nw3 w4 [/INST]")
    assert (examples[0].answer, examples[0].features) == ("w5", 4)
