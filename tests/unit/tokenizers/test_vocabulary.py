"""Every token of the output gets the row that the rules give it, and the tokenizer that is written knows them all."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pydantic
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.tokenizers.schema import TokenizerSpec
from jevomerge.tokenizers.vocabulary import align, special_ids, write_tokenizer

MODELS = Path(__file__).parents[2] / "data" / "tokenizers" / "models"
ROWS = {"a": 128, "b": 78, "c": 84}
TEXT = "the cat returned; def f(x): return x + 1 and a girl"


@pytest.fixture
def abc():
    return [Checkpoint(MODELS / name) for name in "abc"]


@pytest.fixture
def editable(tmp_path):
    """Copies of the three models, and a function that opens them after edits."""
    shutil.copytree(MODELS, tmp_path / "models")
    return tmp_path / "models"


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spec(**fields):
    return TokenizerSpec.model_validate(fields)


def random_matrices(dtype=np.float32):
    rng = np.random.default_rng(7)
    return [rng.normal(size=(rows, 3)).astype(dtype) for rows in ROWS.values()]


def fast_tokenizer(folder, alignment):
    """The tokenizer that transformers loads from what is written."""
    write_tokenizer(folder, alignment)
    shutil.copyfile(alignment.like.folder / "config.json", folder / "config.json")
    return AutoTokenizer.from_pretrained(folder)


def expected_row(token, i, vocabularies, arrays, base, exceptions):
    """The rules, one token and one model at a time, in float64."""
    rows = [x[v[token]].astype(float) if token in v else None for v, x in zip(vocabularies, arrays, strict=True)]
    exception, force = exceptions.get(token, (None, False))
    if rows[i] is not None and not force:
        return rows[i]
    if exception is not None:
        return exception
    havers = [r for r in rows if r is not None]
    if len(havers) == 1:
        return havers[0]
    if base is not None and rows[base] is not None:
        return rows[base]
    return np.mean(havers, 0) if havers else np.zeros(arrays[0].shape[1])


EXCEPTIONS = {
    "<think>": {"source": {"kind": "model_token", "model": "b", "token": "<|im_start|>"}},
    "</think>": {"source": {"kind": "zero"}},
    "<|tool|>": {"source": {"kind": "model_token", "model": "a", "token_id": 127}, "force": True},  # a spare row
    "<s>": {"source": "c", "force": True},
    "<pad>": {"source": "c"},
    "<|new|>": {"source": {"kind": "zero"}},
}


@pytest.mark.parametrize("base", [None, 0, 1, 2])
@pytest.mark.parametrize("source", ["union", "base", "c"])
@pytest.mark.parametrize("with_exceptions", [False, True])
@pytest.mark.parametrize("pad", [None, 64])
def test_rows_follow_the_rules(abc, base, source, with_exceptions, pad):
    tokens = EXCEPTIONS if with_exceptions else {}
    alignment = align(abc, base, spec(source=source, tokens=tokens, pad_to_multiple_of=pad))
    vocabularies, arrays = [c.vocabulary() for c in abc], random_matrices()
    a, b, c = arrays
    rows = {
        "<think>": (b[vocabularies[1]["<|im_start|>"]], False),
        "</think>": (np.zeros(3), False),
        "<|tool|>": (a[127], True),
        "<s>": (c[vocabularies[2]["<s>"]], True),
        "<pad>": (c[vocabularies[2]["<pad>"]], False),
        "<|new|>": (np.zeros(3), False),
    }
    whose = {"union": {t for v in vocabularies for t in v}, "base": set(vocabularies[base or 0]), "c": vocabularies[2]}
    assert set(alignment.vocabulary) == set(whose[source]) | set(tokens)
    assert alignment.size % (pad or 1) == 0
    assert alignment.size - len(alignment.vocabulary) < (pad or 1)
    for i, found in enumerate(alignment.matrices(arrays)):
        assert found.shape == (alignment.size, 3)
        wanted = np.full(found.shape, np.nan)
        for token, new in alignment.vocabulary.items():
            exceptions = rows if with_exceptions else {}
            wanted[new] = expected_row(token, i, vocabularies, arrays, base, exceptions)
        wanted[np.isnan(wanted[:, 0])] = np.nanmean(wanted, 0)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_ids_are_the_donors_then_the_other_models_in_order(abc):
    alignment = align(abc, 1, spec(tokens={"<|new|>": {"source": {"kind": "zero"}}}))
    a, b, c = (c.vocabulary() for c in abc)
    order = [*sorted(b, key=b.get), *(t for t in sorted(a, key=a.get) if t not in b)]
    order += [t for t in sorted(c, key=c.get) if t not in a and t not in b] + ["<|new|>"]
    assert alignment.vocabulary == {token: i for i, token in enumerate(order)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_its_dtype_and_its_own_rows_bit_for_bit(abc, dtype):
    arrays = random_matrices(dtype)
    alignment = align(abc, None, spec(pad_to_multiple_of=64))
    for array, found, checkpoint in zip(arrays, alignment.matrices(arrays), abc, strict=True):
        assert found.dtype == dtype
        for token, row in checkpoint.vocabulary().items():
            assert (found[alignment.vocabulary[token]] == array[row]).all()
    full = alignment.matrices([x.astype(np.float32) for x in arrays])
    mean = full[0][alignment.vocabulary["<|im_end|>"]]  # of b's and c's
    np.testing.assert_array_equal(alignment.matrices(arrays)[0][alignment.vocabulary["<|im_end|>"]], mean.astype(dtype))


def test_models_with_one_vocabulary_are_left_alone(editable):
    shutil.copytree(editable / "a", editable / "d")
    twins = [Checkpoint(editable / name) for name in "ad"]
    for source in ("union", "base", "d"):
        alignment = align(twins, 0, spec(source=source))
        assert alignment.identity
        assert alignment.size == 128  # the spare rows stay
        arrays = random_matrices()[:1] * 2
        assert all(x is y for x, y in zip(arrays, alignment.matrices(arrays), strict=True))
        assert special_ids(alignment, {"pad_token_id": 100}, 0) == {"pad_token_id": 100}  # a spare row's
    assert not align(twins, 0, spec(tokens={"<s>": {"source": "d", "force": True}})).identity
    assert align(twins, 0, spec(pad_to_multiple_of=32)).size == 96  # 80 tokens


def test_a_token_beyond_the_embedding_is_one_that_the_model_lacks(editable):
    """Tokens were added to the tokenizer, but the matrices were not resized: c has 84 tokens, now 82 rows."""
    edit_json(editable / "c" / "config.json", vocab_size=82)
    tensors = load_file(editable / "c" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:82].copy()
    save_file(tensors, editable / "c" / "model.safetensors")
    abc = [Checkpoint(editable / name) for name in "abc"]
    alignment = align(abc, 0, spec())
    a, b, c = random_matrices()
    found = alignment.matrices([a, b, c[:82]])
    row = b[abc[1].vocabulary()["<|im_end|>"]]
    np.testing.assert_array_equal(found[2][alignment.vocabulary["<|im_end|>"]], row)  # c has the token, but no row
    assert "<|tool|>" not in alignment.vocabulary  # nobody has a row for it
    assert alignment.explain()[3] == "  c: 82 its own, 53 of another model or token"
    with pytest.raises(InputError, match="c has 82 rows, none of them number 83"):
        align(abc, 0, spec(tokens={"<|tool|>": {"source": "c"}}))


def test_explain(abc):
    lines = align(abc, None, spec(pad_to_multiple_of=16)).explain()
    assert lines == [
        "vocabulary: 144 rows, 136 tokens: 80 of a's tokenizer, 56 appended",
        "  a: 80 its own, 55 of another model or token, 1 mean of several",
        "  b: 78 its own, 3 of another model or token, 55 mean of several",
        "  c: 84 its own, 52 of another model or token",
    ]


# --- the tokenizer's files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["base", "b", "c"])
def test_one_models_tokenizer_is_copied(abc, tmp_path, source):
    alignment = align(abc, None, spec(source=source))
    write_tokenizer(tmp_path, alignment)
    for path in (MODELS / ("a" if source == "base" else source)).glob("tokenizer*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("base", [0, 1, 2])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])  # the latter is rebuilt by transformers
def test_union_loads_with_every_token_at_its_id(editable, tmp_path, base, listed, kind):
    for name in "abc":
        path = editable / name / "tokenizer_config.json"
        edit_json(path, tokenizer_class=kind, unk_token=json.loads(path.read_text())["bos_token"])
        if listed:  # as transformers 4 writes it
            added = json.loads((editable / name / "tokenizer.json").read_text())["added_tokens"]
            edit_json(path, added_tokens_decoder={t.pop("id"): t for t in added})
    abc = [Checkpoint(editable / name) for name in "abc"]
    alignment = align(abc, base, spec(tokens={"<|new|>": {"source": {"kind": "zero"}}}))
    (tmp_path / "out").mkdir()
    tokenizer = fast_tokenizer(tmp_path / "out", alignment)
    vocabulary = tokenizer.get_vocab()
    assert {t: vocabulary.get(t) for t in alignment.vocabulary} == alignment.vocabulary
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|tool|>", "</s>", "<pad>", "<|new|>"]
    for token in marks:
        ids = tokenizer.encode(f"the{token}cat", add_special_tokens=False)
        at = ids.index(alignment.vocabulary[token])
        assert (tokenizer.decode(ids[:at]), tokenizer.decode(ids[at + 1 :])) == ("the", "cat")
    shown = tokenizer.decode([alignment.vocabulary[t] for t in marks], skip_special_tokens=True)
    assert shown.replace(" ", "") == "<think></think><|new|>"
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT  # b and a lack letters of it
    if listed:
        decoder = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        assert {int(i): t["content"] for i, t in decoder.items()} == {
            alignment.vocabulary[t]: t for t in {"<s>", *marks}
        }


def test_union_of_a_tokenizer_and_its_extension_is_the_extension(editable, tmp_path):
    """Its merges come along: text is cut as the model that knows the tokens cuts it."""
    path = editable / "c" / "tokenizer.json"
    data = json.loads((editable / "a" / "tokenizer.json").read_text())
    for left, right in (("Ġcat", "s"), ("sat", "cat"), ("satcat", "s")):
        data["model"]["vocab"][left + right] = len(data["model"]["vocab"])
        data["model"]["merges"].append([left, right])
    path.write_text(json.dumps(data))
    alignment = align([Checkpoint(editable / "a"), Checkpoint(editable / "c")], None, spec())
    found, extension = fast_tokenizer(tmp_path, alignment), Tokenizer.from_file(str(path))
    assert found.get_vocab() == extension.get_vocab()
    for text in ("the cats sat", "a little girl named lily", "satcat", "satcats</s>"):
        assert found.encode(text, add_special_tokens=False) == extension.encode(text).ids
    assert found.encode("satcats", add_special_tokens=False) == [82]


def test_union_with_a_gap_and_with_files_that_would_contradict_it(editable, tmp_path):
    path = editable / "a" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][0], "content": "<far>", "id": 100})
    path.write_text(json.dumps(data))
    (editable / "a" / "vocab.json").write_text("{}")
    (editable / "a" / "chat_template.jinja").write_text("{{ x }}")
    alignment = align([Checkpoint(editable / "a"), Checkpoint(editable / "c")], 0, spec())
    write_tokenizer(tmp_path, alignment)
    assert {p.name for p in tmp_path.glob("*.j*")} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == alignment.vocabulary
    assert [alignment.vocabulary[t] for t in ("<far>", "<think>", "<|tool|>")] == [100, 101, 104]
    arrays = random_matrices()
    row = alignment.matrices([arrays[0], arrays[2]])[0][90]  # in the gap: no token's, like padding
    tokens = sorted(alignment.vocabulary.values())
    np.testing.assert_allclose(row, alignment.matrices([arrays[0], arrays[2]])[0][tokens].mean(0), atol=1e-6)


def test_union_with_merges_written_as_strings(editable):
    path = editable / "b" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]  # tokenizers < 0.20
    path.write_text(json.dumps(data))
    old = align([Checkpoint(editable / name) for name in "ab"], None, spec())
    assert old.tokenizer == align([Checkpoint(MODELS / name) for name in "ab"], None, spec()).tokenizer


def test_special_where_another_model_says_so(editable):
    data = json.loads((editable / "b" / "tokenizer.json").read_text())
    word = {**data["added_tokens"][0], "content": "Ġthings", "id": data["model"]["vocab"]["Ġthings"]}
    data["added_tokens"].append(word)
    (editable / "c" / "tokenizer.json").write_text(json.dumps(data))
    pair = [Checkpoint(editable / "b"), Checkpoint(editable / "a")]
    assert "Ġthings" not in [t["content"] for t in align(pair, 0, spec()).tokenizer["added_tokens"]]
    pair = [Checkpoint(editable / "b"), Checkpoint(editable / "c")]
    alignment = align(pair, 0, spec())
    assert alignment.tokenizer["added_tokens"][-1] == word
    assert align(pair, 0, spec(source="base")).tokenizer is None


@pytest.mark.parametrize("like", [0, 1, 2])
def test_special_ids_stand_for_the_same_tokens(abc, like):
    vocabulary = abc[like].vocabulary()
    alignment = align(abc, 1, spec())
    names = ["<s>", "<|im_end|>" if like else "</s>"]
    config = {"bos_token_id": vocabulary[names[0]], "eos_token_id": [vocabulary[n] for n in names], "vocab_size": 3}
    config["decoder_start_token_id"] = None
    assert special_ids(alignment, config, like) == {
        "bos_token_id": alignment.vocabulary[names[0]],
        "eos_token_id": [alignment.vocabulary[n] for n in names],
        "decoder_start_token_id": None,
    }


def test_special_ids_of_tokens_that_the_output_lacks(abc):
    alignment = align(abc, None, spec(source="b"))
    a, b = abc[0].vocabulary(), abc[1].vocabulary()
    config = {"bos_token_id": a["<s>"], "eos_token_id": a["</s>"], "pad_token_id": a["<pad>"]}
    # b has no "</s>"; its tokenizer ends with <|im_end|> and has no padding token
    wanted = {"bos_token_id": b["<s>"], "eos_token_id": b["<|im_end|>"], "pad_token_id": None}
    assert special_ids(alignment, config, 0) == wanted
    assert special_ids(alignment, {"eos_token_id": [a["</s>"], a["<s>"]]}, 0) == {"eos_token_id": [b["<s>"]]}
    assert special_ids(alignment, {"pad_token_id": -1}, 0) == {"pad_token_id": None}


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": "d"}, "tokenizer source: d takes no part in the merge; name one of a, b, c"),
        ({"tokens": {"x": {"source": "d"}}}, "'x': d takes no part"),
        ({"tokens": {"<think>": {"source": "a"}}}, r"a has no token '<think>'.*kind: zero"),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token_id": 128}}}},
            "a has 128 rows, none of them number 128",
        ),
    ],
)
def test_sources_that_do_not_exist(abc, fields, expected):
    with pytest.raises(InputError, match=expected):
        align(abc, 0, spec(**fields))


@pytest.mark.parametrize(
    "tokens",
    [
        {"force": True},
        {"source": {"kind": "model_token", "model": "a"}},
        {"source": {"kind": "model_token", "model": "a", "token": "x", "token_id": 1}},
        {"source": {"kind": "mean"}},
        {"source": {"kind": "model_token", "model": "a", "token_id": -1}},
        {"source": "a", "forced": True},
    ],
)
def test_specs_that_mean_nothing(tokens):
    with pytest.raises(pydantic.ValidationError):
        spec(tokens={"x": tokens})


def test_models_by_reference_folder_and_name(abc, monkeypatch):
    monkeypatch.chdir(MODELS.parent)
    for name in ("b", str(MODELS / "b"), "models/b", "./models/b/"):
        assert align(abc, 0, spec(source=name)).like is abc[1]


def test_without_tokenizer_json(editable):
    (editable / "b" / "tokenizer.json").rename(editable / "b" / "tokenizer.model")
    with pytest.raises(InputError, match=r"models/b has no tokenizer\.json.*save_pretrained"):
        align([Checkpoint(editable / name) for name in "ab"], None, spec())


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        (models.WordPiece({"[UNK]": 0, "the": 1}, unk_token="[UNK]"), None),
        (models.Unigram([("<unk>", 0.0), ("the", -1.0)], unk_id=0), None),
        (models.BPE({"t": 0, "h": 1, "th": 2}, [("t", "h")]), {"type": "Metaspace", "replacement": "▁"}),
    ],
)
def test_tokenizers_without_a_union(editable, model, decoder):
    data = json.loads(Tokenizer(model).to_str())
    (editable / "b" / "tokenizer.json").write_text(json.dumps(data | {"decoder": decoder}))
    pair = [Checkpoint(editable / name) for name in "ab"]
    with pytest.raises(InputError, match=r"have no union.*tokenizer_source: base"):
        align(pair, None, spec())
    align(pair, None, spec(source="base"))


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_other_kinds_of_tokenizer_can_differ_in_added_tokens_only(editable, tmp_path, kind):
    def save(name, *words, added=()):
        if kind == "unigram":
            model = models.Unigram([(w, -float(i)) for i, w in enumerate(words)], unk_id=0)
        else:
            model = models.WordPiece({w: i for i, w in enumerate(words)}, unk_token=words[0])
        tokenizer = Tokenizer(model)
        tokenizer.add_special_tokens(list(added))
        tokenizer.save(str(editable / name / "tokenizer.json"))

    pair = [Checkpoint(editable / name) for name in "ab"]
    save("a", "<unk>", "the", added=["<x>"])
    save("b", "<unk>", "the", added=["<y>"])
    alignment = align(pair, None, spec())
    write_tokenizer(tmp_path, alignment)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab() == alignment.vocabulary == {"<unk>": 0, "the": 1, "<x>": 2, "<y>": 3}
    assert tokenizer.encode("<y>the<x>").ids == [3, 1, 2]
    save("b", "<unk>", "cat", added=["<y>"])
    with pytest.raises(InputError, match=r"only BPE tokenizers"):
        align(pair, None, spec())
