"""What goes with merged weights is that of whom the recipe names, and dtypes and paths are what they should be."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.run.merge import merge_folder

STORIES = Path(__file__).parents[2] / "data" / "stories260k"
TURN = "<|im_end|>"  # the name that token 511 has in the models below
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes if path.exists() else changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


@pytest.fixture
def pair(tmp_path):
    """`plain`, which ends texts with </s>, and `chatty`, with the same tokens, whose turns end with <|im_end|>."""
    for name in ("plain", "chatty"):
        shutil.copytree(STORIES, tmp_path / name)
        data = json.loads((tmp_path / name / "tokenizer.json").read_text())
        vocab = data["model"]["vocab"]
        old = next(t for t, i in vocab.items() if i == 511)
        del vocab[old]
        vocab[TURN] = 511
        pairs = [m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"]]
        data["model"]["merges"] = [m for m in pairs if "".join(m) != old and old not in m]
        data["added_tokens"].append({**data["added_tokens"][-1], "id": 511, "content": TURN})
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(data))
    chatty = tmp_path / "chatty"
    edit(chatty / "tokenizer_config.json", eos_token=TURN, pad_token="<unk>")
    edit(chatty / "config.json", eos_token_id=511, pad_token_id=0)
    edit(chatty / "generation_config.json", eos_token_id=[511, 2], pad_token_id=0, temperature=0.6, do_sample=True)
    (chatty / "chat_template.jinja").write_text(CHATML)
    (chatty / "additional_chat_templates").mkdir()
    (chatty / "additional_chat_templates" / "tool_use.jinja").write_text("tools " + CHATML)
    edit(tmp_path / "plain" / "generation_config.json", eos_token_id=2)
    return tmp_path


def merged(folder, **more):
    listed = [{"model": str(folder / m), "parameters": {"weight": 0.5}} for m in ("plain", "chatty")]
    merge_folder({"merge_method": "linear", "models": listed, **more}, folder / "out")
    return folder / "out"


def stops(out):
    """At which ids transformers would stop."""
    found = GenerationConfig.from_pretrained(out).eos_token_id
    return set(found if isinstance(found, list) else [found])


def test_the_named_models_tokenizer_settings_and_templates(pair):
    out = merged(pair, tokenizer_source=str(pair / "chatty"))
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (
            json.loads((out / name).read_text()) == json.loads((pair / "chatty" / name).read_text())
            if (name.endswith("json"))
            else (out / name).read_text() == CHATML
        )
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (511, 0, 1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (TURN, "<unk>")
    assert tokenizer.chat_template.keys() == {"default", "tool_use"}


def test_without_a_name_they_are_the_first_models(pair):
    out = merged(pair)
    assert stops(out) == {2}
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert AutoTokenizer.from_pretrained(out).eos_token == "</s>"
    assert not (out / "additional_chat_templates").exists()


@pytest.mark.parametrize("template", ["auto", "chatml", CHATML + "{# my own #}"])
def test_the_end_of_a_templates_turns_ends_texts(pair, template):
    out = merged(pair, chat_template=template)
    assert stops(out) == {2, 511}
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 511]
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template([{"role": "assistant", "content": "x"}], tokenize=False)
    assert text.rstrip().endswith(TURN)
    # The other templates are the owner's.
    assert (out / "additional_chat_templates" / "tool_use.jinja").exists() == (template == "auto")


def test_templates_that_end_like_the_model_change_nothing(pair):
    before = (pair / "plain" / "generation_config.json").read_bytes()
    out = merged(pair, chat_template="mistral")
    assert (out / "generation_config.json").read_bytes() == before


def test_templates_inside_the_config_are_all_kept(pair):
    chatty = pair / "chatty"
    shutil.rmtree(chatty / "additional_chat_templates")
    (chatty / "chat_template.jinja").unlink()
    several = [{"name": "default", "template": CHATML}, {"name": "rag", "template": "documents"}]
    edit(chatty / "tokenizer_config.json", chat_template=several)
    tokenizer = AutoTokenizer.from_pretrained(merged(pair, chat_template="auto"))
    assert tokenizer.chat_template == {"default": CHATML, "rag": "documents"}


def test_different_ends_are_noted(pair):
    def noted(**more):
        listed = [{"model": str(pair / m), "parameters": {"weight": 0.5}} for m in ("plain", "chatty")]
        sources = Sources(Recipe.model_validate({"merge_method": "linear", "models": listed, **more}))
        return [n for n in sources.notes if "end texts with" in n]

    (note,) = noted()
    assert "(plain: </s>; chatty: </s> <|im_end|>)" in note
    assert "those of plain;" in note
    assert "those of chatty;" in noted(tokenizer_source=str(pair / "chatty"))[0]
    edit(pair / "plain" / "generation_config.json", eos_token_id=[2, 511])
    assert not noted()


def test_a_union_leaves_out_what_is_only_a_name(pair):
    """A padding token that was added to a tokenizer, while the matrices kept their size."""
    for name in ("plain", "chatty"):
        data = json.loads((pair / name / "tokenizer.json").read_text())
        data["added_tokens"].append({**data["added_tokens"][-1], "id": 512, "content": "[PAD]"})
        (pair / name / "tokenizer.json").write_text(json.dumps(data))
        edit(pair / name / "tokenizer_config.json", pad_token="[PAD]")
        edit(pair / name / "config.json", pad_token_id=512)
    out = merged(pair, tokenizer_source="union")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == 512
    assert "[PAD]" not in tokenizer.get_vocab()
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (512, None)
    text = "Once upon a time there was a little girl."
    assert tokenizer.encode(text) == AutoTokenizer.from_pretrained(pair / "plain").encode(text)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("bfloat16", "float16"), "float32"),
        (("bfloat16", "float32"), "float32"),
        (("float16", "float16"), "float16"),
        (("bfloat16", "bfloat16"), "bfloat16"),
    ],
)
def test_without_a_dtype_the_sources_are_promoted(pair, dtypes, expected):
    kinds = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    for name, dtype in zip(("plain", "chatty"), dtypes, strict=True):
        path = pair / name / "model.safetensors"
        weights = {k: v.astype(kinds[dtype]) for k, v in load_file(path).items()}
        path.unlink()
        save_file(weights, path, metadata={"format": "pt"})
    out = merged(pair)
    assert {str(v.dtype) for v in load_file(out / "model.safetensors").values()} == {expected}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == expected


def test_nothing_that_is_published_names_a_path_of_this_machine(pair):
    out = merged(pair, tokenizer_source=str(pair / "chatty"))
    for name in ("recipe.yaml", "README.md"):
        assert str(pair) not in (out / name).read_text()
    merge_folder(out / "recipe.yaml", pair / "again")
    for tensor, values in load_file(out / "model.safetensors").items():
        np.testing.assert_array_equal(load_file(pair / "again" / "model.safetensors")[tensor], values)
    assert (pair / "again" / "recipe.yaml").read_text() == (out / "recipe.yaml").read_text()


def test_stages_are_published_by_name(pair):
    a, b = (str(pair / m) for m in ("plain", "chatty"))
    last = {"merge_method": "passthrough", "models": [{"model": "first"}]}
    first = {"name": "first", "merge_method": "slerp", "base_model": a, "models": [{"model": a}, {"model": b}]}
    merge_folder([last, first | {"parameters": {"t": 0.5}}], pair / "out")
    text = (pair / "out" / "recipe.yaml").read_text()
    assert "model: first" in text
    assert str(pair) not in text
    merge_folder(pair / "out" / "recipe.yaml", pair / "again")
    made = [(pair / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert made[0] == made[1]
