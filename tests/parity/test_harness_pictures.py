"""Tasks of lm-evaluation-harness with pictures, against its own `hf-multimodal`, which only generates."""

import json

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.tasks import TaskManager
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.harness.model import HarnessModel
from jevomerge.fitness.harness.task import LoadedTask, evaluate
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.schema import Harness, HarnessTask
from jevomerge.tokenizers.load import load_tokenizer
from tests.composites import write_text_model, write_vlm
from tests.seeing import picture

# As LLaVA's is: pictures first.
TEMPLATE = (
    "{% for m in messages %}w70 "
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image> {% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{% endfor %}"
)
READ = """
import json
from pathlib import Path

import datasets


def read(**_):
    rows = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text().splitlines()]
    found = datasets.Dataset.from_list(rows)
    for column in ("first", "second"):
        found = found.cast_column(column, datasets.Image())
    return {"test": found}
"""
SHARED = """
custom_dataset: !function rows.read
test_split: test
doc_to_image: [first, second]
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
TASKS = {
    "tell": "output_type: generate_until\ngeneration_kwargs: {until: [w3], max_gen_toks: 6}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    "choose": "output_type: multiple_choice\ndoc_to_choice: [w5, w6 w7, w8]\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    write_vlm(folder / "llava", 2)
    write_text_model(folder / "text", 1)
    (folder / "llava" / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "llava" / "processor_config.json").write_text(
        json.dumps(
            {
                "processor_class": "LlavaProcessor", "patch_size": 7, "image_token": "<image>",
                "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
            }
        )
    )  # fmt: skip
    rows = []
    for i in range(5):
        names = [str(folder / f"{i}{k}.png") if k < 1 + i % 2 else None for k in range(2)]
        for k, name in enumerate(filter(None, names)):
            picture(15 + i, 21 + k, i).save(name)
        question = f"w{i + 20} <image> w{i + 30}" + " <image>" * (i % 2)
        rows.append({"first": names[0], "second": names[1], "question": question, "answer": ("w5", "w6 w7")[i % 2]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.py").write_text(READ)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{SHARED}{text}")
    return folder


def harness(folder, name, **more):
    return Harness(task=name, include_path=str(folder), **more)


@pytest.fixture(scope="module")
def ours(folder):
    source = Checkpoint(folder / "llava")
    tokenizer = load_tokenizer(source.folder)
    return HarnessModel(source.load(), source.model, tokenizer, source.model.max_length, eyes=Eyes(source, tokenizer))


@pytest.mark.parametrize("chat", [False, True], ids=["as it is", "chat"])
def test_texts_are_those_of_the_harness(chat, folder, ours, monkeypatch):
    theirs = HFMultimodalLM(str(folder / "llava"), batch_size=5, device="cpu", dtype="float32")
    written, prompts = {}, {"ours": [], "theirs": []}
    for name, model in (("ours", ours), ("theirs", theirs)):
        real = model.generate_until
        monkeypatch.setattr(model, "generate_until", lambda *a, r=real, n=name, **k: written.setdefault(n, r(*a, **k)))
    encode, encoder = theirs.tok_batch_multimodal_encode, ours.encoder.generate_until

    def their_prompts(*args, **kwargs):
        found = encode(*args, **kwargs)
        rows = zip(found["input_ids"], found["attention_mask"].bool(), strict=True)
        prompts["theirs"] += [tokens[valid].tolist() for tokens, valid in rows]
        return found

    def our_prompts(requests):
        found = encoder(requests)
        prompts["ours"] += [p.example.prompt_tokens for p in found]
        return found

    monkeypatch.setattr(theirs, "tok_batch_multimodal_encode", their_prompts)
    monkeypatch.setattr(ours.encoder, "generate_until", our_prompts)
    found = evaluate(harness(folder, "tell", chat_template=chat), ours)["tell"]
    expected = simple_evaluate(
        theirs, tasks=["tell"], task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=chat, fewshot_as_multiturn=True, bootstrap_iters=0,
    )["results"]["tell"]  # fmt: skip
    assert sorted(prompts["ours"]) == sorted(prompts["theirs"])  # the harness begins with the longest
    assert written["ours"] == written["theirs"]
    assert len(set(written["ours"])) > 2
    assert found["exact_match,none"] == expected["exact_match,none"]


def test_choices_are_as_likely_as_in_transformers(folder, ours):
    """The harness's own backend raises NotImplementedError here."""
    source = Checkpoint(folder / "llava")
    judge = make_judge(
        make_ready([task(folder, "choose")], load_tokenizer(source.folder), source.model, source), source.model
    )
    scores = judge.model(source.load(), "search")
    model = AutoModelForImageTextToText.from_pretrained(folder / "llava").eval()
    processor = AutoProcessor.from_pretrained(folder / "llava")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows[:3]):
        images = [Image.open(row[key]) for key in ("first", "second") if row[key]]
        likely = []
        for choice in ("w5", "w6 w7", "w8"):
            given = processor(text=f"{row['question']} {choice}", images=images, return_tensors="pt")
            count = len(choice.split())
            with torch.no_grad():
                logits = model(**given).logits[0, -count - 1 : -1]
            likely.append(torch.log_softmax(logits, -1)[range(count), given["input_ids"][0, -count:]].sum().item())
        right = int(row["answer"] == "w6 w7")
        assert scores.fitness["choose"][i] == (np.argmax(likely) == right)
        expected = likely[right] - np.logaddexp.reduce(likely)
        np.testing.assert_allclose(scores.tie_break["choose"][i], expected, atol=1e-4)


def task(folder, name, **changes):
    rows = {"search": {"rows": [0, 3]}, "heldout": {"rows": [3, 5]}} | changes
    return HarnessTask.model_validate({"name": name, "harness": harness(folder, name).model_dump(), **rows})


def test_the_command_looks_at_pictures_and_a_text_model_is_refused(folder, tmp_path):
    (tmp_path / "task.yaml").write_text(json.dumps({"harness": harness(folder, "choose").model_dump()}))
    found = jm.evaluate(folder / "llava", tmp_path / "task.yaml")
    assert 0 <= found["results"]["choose"]["acc,none"] <= 1
    with pytest.raises(InputError, match="text has no eyes"):
        jm.evaluate(folder / "text", tmp_path / "task.yaml")


def test_documents_have_their_pictures(folder):
    source = Checkpoint(folder / "llava")
    tokenizer = load_tokenizer(source.folder)
    loaded = LoadedTask(task(folder, "tell"), tokenizer, 64, lambda: Eyes(source, tokenizer))
    documents = loaded.material("search").documents
    assert [len(d.pictures) for d in documents] == [1, 2, 1]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("generate_until", ("w1", {}, {"visual": [picture(9, 9)]}), "<image> 0 times for 1 pictures"),
        ("generate_until", ("<image>" + " w1" * 70, {}, {"visual": [picture(9, 9)]}), "the model take so long a text"),
        ("generate_until", ("w1", {}, {"audio": []}), "a task with sounds"),
        ("loglikelihood_rolling", ("w1", {"visual": [picture(9, 9)]}), "of which no picture can be a part"),
    ],
)
def test_what_cannot_be_asked(kind, arguments, words, ours):
    settings = ({"max_gen_toks": 4} | a if a == {} else a for a in arguments)
    request = Instance(request_type=kind, doc={}, arguments=tuple(settings), idx=0)
    with pytest.raises(InputError, match=words):
        getattr(ours, kind)([request])
