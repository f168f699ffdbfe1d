"""Chats as prompts: the layouts of LLaVA and LLaMA-Factory, with pictures as transformers' processors place them."""

import json

import pytest
from transformers import AutoProcessor, PreTrainedTokenizerFast

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.chat import turns_of
from jevomerge.fitness.data import load_examples
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.schema import Task
from jevomerge.tokenizers.load import load_tokenizer
from tests.composites import WORDS, write_tokenizer, write_vlm
from tests.seeing import picture

PARTS = (  # LLaVA's: pictures first
    "{% for m in messages %}{{ m['role'] }} "
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image> {% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}w72{% endif %}"
)
TEXTS = (
    "<s>{% for m in messages %}w70 {{ m['content'] | trim }} {% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
)
PADS = PARTS.replace("<image>", "w80 <|image_pad|> w81")  # Qwen's has words around
LLAVA = {
    "id": 1, "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nw3"}, {"from": "gpt", "value": "w4"}, {"from": "human", "value": "w5"},
        {"from": "gpt", "value": "w6 w7"},
    ],
}  # fmt: skip
FACTORY = {
    "messages": [
        {"role": "system", "content": "w9"},
        {"role": "user", "content": "<image> w3 <image> w4"},
        {"role": "assistant", "content": "w5"},
    ],
    "images": ["a.png", "b.png"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    write_vlm(folder, 2)
    processor = {
        "processor_class": "LlavaProcessor", "patch_size": 7, "image_token": "<image>",
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor))
    for i, name in enumerate(("a.png", "b.png")):
        picture(20, 17, i).save(folder / name)
    return folder


def examples_of(folder, rows, template, image, chat, sees=True):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Checkpoint(folder)
    tokenizer, data = load_tokenizer(folder), str(folder / "rows.jsonl")
    given = {"name": "t", "search": data, "heldout": data, "image": image, "prompt": chat, "answer": chat}
    eyes = Eyes(source, tokenizer) if sees else None
    return load_examples(Task.model_validate(given), "search", tokenizer, eyes)[1]


def in_parts(turns):
    """As people write such chats for transformers."""
    pieces = [turn["content"].replace("<image>", "|<image>|").split("|") for turn in turns]
    content = [
        [{"type": "image"} if p == "<image>" else {"type": "text", "text": p.strip("\n")} for p in some if p]
        for some in pieces
    ]
    return [turn | {"content": parts} for turn, parts in zip(turns, content, strict=True)]


@pytest.mark.parametrize("row", [LLAVA, FACTORY], ids=["llava", "llama-factory"])
def test_prompts_are_those_of_transformers_processors(row, folder):
    key, image = ("conversations", "image") if "id" in row else ("messages", "images")
    (example,) = examples_of(folder, [row], PARTS, f"{{{image}}}", f"{{{key}}}")
    processor = AutoProcessor.from_pretrained(folder)
    asked = processor.apply_chat_template(in_parts(turns_of(row[key])[:-1]), add_generation_prompt=True)
    count = len(example.pictures)
    tokens = processor(text=asked, images=[picture(20, 17)] * count)["input_ids"]
    assert [example.prompt_tokens] == [list(map(int, row)) for row in tokens]
    assert (example.prompt, count) == (asked, asked.count("<image>"))
    assert example.answer == list(row[key][-1].values())[1]
    assert example.answer_tokens == [*map(int, example.answer.replace("w", "").split()), 89]


def test_a_template_for_texts_leaves_marks_where_they_are(folder):
    text_only = {"conversations": [{"from": "human", "value": "w8"}, {"from": "gpt", "value": "w9"}]}
    found = examples_of(folder, [LLAVA, text_only], TEXTS, "{image}", "{conversations}")
    assert [e.prompt for e in found] == ["<s>w70 <image>\nw3 w70 w4 </s>w70 w5 ", "<s>w70 w8 "]
    assert [(len(e.pictures), e.features) for e in found] == [(1, 4), (0, 0)]
    assert found[1].prompt_tokens == [88, 70, 8]  # one begin-of-text token, the template's
    (blind,) = examples_of(folder, [text_only], TEXTS, None, "{conversations}", sees=False)
    assert blind.prompt_tokens == found[1].prompt_tokens


def test_a_template_may_write_pictures_in_the_models_own_way(folder, tmp_path):
    write_vlm(tmp_path, 2)
    write_tokenizer(tmp_path, [*WORDS, "<|image_pad|>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>"]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    (example,) = examples_of(tmp_path, [LLAVA], PADS, "{image}", "{conversations}")
    assert example.prompt.startswith("user w80 <image> w81 w3")
    assert example.prompt_tokens[1:7] == [80, 90, 90, 90, 90, 81]


def said(*turns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns], "image": "a.png"}


@pytest.mark.parametrize(
    ("row", "template", "words"),
    [
        (said(("human", "<image> w1"), ("observation", "w2")), TEXTS, "turn 1 of the chat is by `observation`"),
        (said(("human", "<image> w1"), ("gpt", None)), TEXTS, "turn 1 of the chat is NoneType"),
        (said(("human", "<image> w1")), TEXTS, "the last turn of the chat is not the assistant's"),
        (said(("human", "<image> <image>"), ("gpt", "w2")), TEXTS, "<image> 2 times for 1 pictures"),
        (said(("human", "w1"), ("gpt", "w2")), TEXTS, "<image> 0 times for 1 pictures"),
        (
            said(("human", "<image>"), ("gpt", "w2")),
            "{{ raise_exception('no') }}",
            "template does not take this chat: no",
        ),
        (said(("human", "<image>"), ("gpt", "w2")), None, "the tokenizer has no chat template"),
    ],
)
def test_what_no_prompt_can_be_made_of(row, template, words, folder):
    with pytest.raises(InputError, match=r"rows\.jsonl, row 0 \(the first is 0\)") as caught:
        examples_of(folder, [row], template, "{image}", "{conversations}")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["text", 3, [], ["a"], {"role": "user", "content": "x"}, [{"role": "user"}]])
def test_what_is_no_chat(value):
    assert turns_of(value) is None
