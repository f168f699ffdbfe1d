"""The known chat formats render as documented, and `auto` and literal templates are what they say."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.tokenizers.chat import TEMPLATES, chat_template, template_of, write_chat_templates

MODELS = Path(__file__).parents[2] / "data" / "tokenizers" / "models"


@pytest.fixture
def editable(tmp_path):
    shutil.copytree(MODELS, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def abc(editable):
    return [Checkpoint(editable / name) for name in "abc"]


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye."},
]
RENDERED = {
    "alpaca": "<s>Be brief.\n\n### Instruction:\nHi!\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye.",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi!\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye.\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>",
    "mistral": "<s>[INST] Be brief.\n\nHi! [/INST] Hello.</s>[INST] Bye. [/INST]",
}
PROMPT = {
    "alpaca": "\n\n### Response:\n",
    "chatml": "<|im_start|>assistant\n",
    "exaone": "[|assistant|]",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "",  # an answer follows the instruction's end
}
WITHOUT_SYSTEM = {
    "alpaca": "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nHi!",
    "chatml": "<|im_start|>user\nHi!<|im_end|>\n",
    "exaone": "[|system|][|endofturn|]\n[|user|]Hi!\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>",
    "mistral": "<s>[INST] Hi! [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_known_formats(editable, abc, name):
    folder = editable / "a"  # whose tokens are <s> and </s>
    write_chat_templates(folder, {"default": chat_template(name, abc)})
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(chat, prompt):
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)

    assert render(CHAT, False) == RENDERED[name]
    assert render(CHAT, True) == RENDERED[name] + PROMPT[name]
    assert render(CHAT[1:2], False) == WITHOUT_SYSTEM[name]
    (folder / "chat_template.jinja").unlink()  # readers that know the config only
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert render(CHAT, True) == RENDERED[name] + PROMPT[name]
    tokenizer.bos_token = tokenizer.eos_token = None
    assert render(CHAT, False) == RENDERED[name].replace("<s>", "").replace("</s>", "")


def test_auto_is_the_most_common(editable, abc):
    assert chat_template("auto", abc) is None
    assert chat_template(None, abc) is None
    edit_json(editable / "a" / "tokenizer_config.json", chat_template="one {{ x }}")
    assert chat_template("auto", abc) == "one {{ x }}"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two {{ x }}"}]
    edit_json(editable / "b" / "tokenizer_config.json", chat_template=several)
    assert chat_template("auto", abc) == "one {{ x }}"  # a tie: the first
    (editable / "c" / "chat_template.jinja").write_text("two {{ x }}")
    assert chat_template("auto", abc) == "two {{ x }}"
    (editable / "b" / "chat_template.jinja").write_text("three {{ x }}")  # goes before the config
    assert template_of(abc[1]) == "three {{ x }}"
    assert AutoTokenizer.from_pretrained(editable / "b").chat_template == "three {{ x }}"


def test_literal_templates(abc):
    for text in (
        "{{ messages }}",
        "{% generation %}{{ x }}{% endgeneration %}",
        "{% for x in y %}{% break %}{% endfor %}",
    ):
        assert chat_template(text, abc) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chatlm", "did you mean `chatml`"),
        ("no jinja at all", "it is one of auto, alpaca, chatml, exaone, llama3, mistral or jinja"),
        ("{% for x in y %}", "not valid jinja"),
        ("{{ x", "not valid jinja"),
    ],
)
def test_templates_that_are_none(abc, text, expected):
    with pytest.raises(InputError, match=expected):
        chat_template(text, abc)
