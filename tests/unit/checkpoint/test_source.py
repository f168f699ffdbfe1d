"""Broken or unsuitable checkpoints are refused with the file and the remedy; exports are whole or absent."""

import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint import export
from jevomerge.checkpoint.card import model_card
from jevomerge.checkpoint.export import export_folder, tensors_of
from jevomerge.checkpoint.safetensors_file import all_finite, read_header
from jevomerge.checkpoint.scoring import Score, Scoring
from jevomerge.checkpoint.source import Checkpoint, read_leaf
from jevomerge.errors import InputError
from jevomerge.models.families import read_model
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from tests.families import make

STORIES = Path(__file__).parents[2] / "data" / "stories260k"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(STORIES, tmp_path / "m")
    return tmp_path / "m"


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mamba"}, "model_type `mamba` is not supported"),
        ({"hidden_act": "relu"}, "`hidden_act: relu` is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type `dynamic` is not supported"),
        ({"sliding_window": 16}, "`sliding_window: 16` is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"hidden_size": ...}, r"has shape \(512, 64\), but config\.json says \(512, 4096\)"),
        ({"intermediate_size": 100}, "has shape"),
        ({"num_hidden_layers": 6}, r"model\.layers\.5\..* is missing"),
        ({"num_hidden_layers": 4}, r"model\.layers\.4\..* is not expected"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
    ],
)
def test_config_and_weights_that_disagree(model, changes, expected):
    edit_json(model / "config.json", **changes)
    with pytest.raises(InputError, match=expected):
        Checkpoint(model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_is_found_and_named(model, dtype, value):
    def damage(weights):
        for name, array in weights.items():
            weights[name] = array.astype(dtype)
        weights["model.layers.2.mlp.up_proj.weight"][3, 4] = value

    edit_weights(model, damage)
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj\.weight contains NaN"):
        Checkpoint(model).load()


def test_large_finite_values_are_not_nan(model):
    edit_weights(model, lambda w: w["model.norm.weight"].fill(3e38))
    Checkpoint(model).load()


def edit_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


NORM, FIRST = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "tensors take"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "tensors take"),
        (lambda p: p.write_bytes(p.read_bytes()[:500]), "header is incomplete"),
        (lambda p: p.write_bytes(b""), "truncated or damaged"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "header is incomplete"),
        (lambda p: p.write_bytes((9).to_bytes(8, "little") + b"{not json"), "truncated or damaged"),
        (lambda p: p.write_bytes((2).to_bytes(8, "little") + b"[]"), "truncated or damaged"),
        (lambda p: edit_header(p, lambda h: h[NORM].pop("shape")), "truncated or damaged"),
        (lambda p: edit_header(p, lambda h: h[NORM]["data_offsets"].reverse()), NORM),
        (lambda p: edit_header(p, lambda h: h[NORM].update(data_offsets=[1 << 40, (1 << 40) + 256])), NORM),
        (lambda p: edit_header(p, lambda h: h[NORM].update(shape=[63])), rf"{NORM} has 256 bytes"),
        (lambda p: edit_header(p, lambda h: h[NORM].update(dtype="F64")), rf"{NORM} has 256 bytes"),
        (lambda p: edit_header(p, lambda h: h.pop(FIRST)), "does not begin where"),
        (lambda p: edit_header(p, lambda h: h[NORM].update(dtype="F8_E4M3")), "F8_E4M3, which is not read; of a quant"),
        (lambda p: edit_header(p, lambda h: h[NORM].update(dtype="I32")), "quantised weights cannot be merged"),
    ],
)
def test_damaged_file(model, damage, expected):
    damage(model / "model.safetensors")
    with pytest.raises(InputError, match=expected) as error:
        Checkpoint(model)
    assert str(model) in str(error.value)


def test_file_that_shrinks_while_it_is_read(model):
    checkpoint = Checkpoint(model)
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors became shorter"):
        checkpoint.load()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_are_read_bit_for_bit_into_memory_that_jax_takes_over(dtype, tmp_path):
    rng = np.random.default_rng(0)
    written = {f"t{i}": rng.standard_normal(shape).astype(dtype) for i, shape in enumerate([(7,), (3, 5), (), (0, 2)])}
    written["odd"] = rng.integers(0, 9, 3).astype(np.int8)  # what follows it in the file is not aligned
    save_file(written, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert header.keys() == written.keys()
    for name, expected in written.items():
        found = header[name].read()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        if found.size and dtype != "float64":
            assert jax.device_put(found).unsafe_buffer_pointer() == found.ctypes.data


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_all_finite(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    for value in (0.0, -0.0, largest, -largest, float(ml_dtypes.finfo(dtype).tiny)):
        assert all_finite(np.full((3, 4), value, dtype)), value
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        array = np.linspace(-2, 2, 12).reshape(3, 4).astype(dtype)
        array[1, 2] = value
        assert not all_finite(array), value


def test_a_tensor_in_two_shards(tmp_path):
    make("llama", tmp_path / "m", shard="20KB")
    first, second, *_ = sorted((tmp_path / "m").glob("model-*.safetensors"))
    name = min(load_file(first))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    with pytest.raises(InputError, match=f"{name} is in two files"):
        Checkpoint(tmp_path / "m")


def test_layers_in_different_dtypes_are_promoted(model):
    edit_weights(model, lambda w: w.update({k: w[k].astype(np.float16) for k in w if ".layers.3." in k}))
    checkpoint = Checkpoint(model)
    leaf = checkpoint.load()["layers"]["mlp"]["up_proj"]["weight"]
    assert leaf.dtype == np.float32
    for i in range(5):
        np.testing.assert_array_equal(leaf[i], checkpoint.tensor(f"model.layers.{i}.mlp.up_proj.weight"))


def test_memory_of_a_load_is_that_of_the_model(model):
    """Nothing is mapped, and no leaf is held twice."""
    checkpoint = Checkpoint(model)
    leaf = next(s for s in checkpoint.specs if s.path == "layers.mlp.up_proj.weight")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    array = read_leaf(leaf, [(checkpoint, name) for name in leaf.names()])
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert array.nbytes <= peak < 1.1 * array.nbytes + 20_000
    assert str(model) not in Path("/proc/self/maps").read_text()


def test_missing_shard(tmp_path):
    make("llama", tmp_path / "m", shard="20KB")
    shard = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"shard {shard.name} is missing"):
        Checkpoint(tmp_path / "m")


def test_pickle_is_refused_with_the_way_out(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match="safe_serialization=True"):
        Checkpoint(model)


def test_neither_folder_nor_hub_name():
    with pytest.raises(InputError, match="neither a folder nor a hub name"):
        Checkpoint("/no/such/folder")


def test_redundant_tied_head_must_equal_the_embeddings(model):
    edit_weights(model, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in Checkpoint(model).load()
    edit_weights(model, lambda w: w["lm_head.weight"].__setitem__((0, 0), 1.0))
    with pytest.raises(InputError, match=r"lm_head\.weight differs"):
        Checkpoint(model).load()


# --- sources against each other -----------------------------------------------------------------------------


def both(a, b, **recipe):
    models = [{"model": str(m), "parameters": {"weight": 1}} for m in (a, b)]
    return Sources(Recipe.model_validate({"merge_method": "linear", "models": models} | recipe))


def test_different_tokenizers(model):
    other = model.parent / "other"
    shutil.copytree(model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        first, second = list(vocab)[300:302]
        vocab[first], vocab[second] = vocab[second], vocab[first]
    else:
        vocab[300], vocab[301] = vocab[301], vocab[300]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="tokenizers of"):
        both(model, other)


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (("llama", "qwen2"), "only models of one shape"),
    ],
)
def test_sources_that_cannot_be_merged(families, expected, tmp_path):
    for name in families:
        make(name, tmp_path / name)
    with pytest.raises(InputError, match=expected):
        both(*(tmp_path / name for name in families))


def test_sources_that_differ_in_positions_or_windows_are_noted(tmp_path):
    for name in ("mistral", "llama"):
        make(name, tmp_path / name)
    (note,) = both(tmp_path / "mistral", tmp_path / "llama").notes
    assert "the merged model computes as mistral does" in note


def test_same_name_twice(model):
    shutil.copytree(model, model.parent / "other" / "m")
    assert [name.split("/")[-2] for name in both(model, model.parent / "other" / "m").names] == [
        model.parent.name,
        "other",
    ]


# --- export -------------------------------------------------------------------------------------------------


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail():
        with export_folder(tmp_path / "out") as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused(tmp_path):
    with pytest.raises(InputError, match="exists already"), export_folder(tmp_path):
        pass


KILLED = """
import os, signal, sys
from jevomerge.recipe.schema import read_recipe
from jevomerge.recipe.sources import Sources
from jevomerge.recipe.to_folder import merge_to_folder
sources = Sources(read_recipe(sys.argv[1]))
stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == total // 2 else None
merge_to_folder(sources, sources.coefficients, sys.argv[2], progress=stop)
"""


def test_a_killed_merge_leaves_nothing_that_looks_like_a_model(model, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n")
    work = tmp_path / "work"
    killed = subprocess.run([sys.executable, "-c", KILLED, recipe, work / "out"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = work.iterdir()
    assert left.name.startswith(".out.partial-")  # hidden, and gone with the next merge to that place ...
    with export_folder(work / "out") as mine:
        assert not left.exists()
        with export.scratch_folder(work / "out"):
            assert mine.exists()  # ... but not what a process that is alive works on
    assert sorted(p.name for p in work.iterdir()) == ["out"]


def test_a_terminated_merge_cleans_up(model, tmp_path):
    """On SIGTERM, as schedulers send it, between the first tensors of a merge that waits for more of its recipe."""
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n")
    code = (
        "import sys, time; from jevomerge import cli; from jevomerge.recipe import to_folder; real = to_folder.ahead\n"
    )
    code += "to_folder.ahead = lambda *a: (x for x in real(*a) if time.sleep(1) is None); sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "merge", str(recipe), str(tmp_path / "work" / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert "merged 1/" in process.stdout.readline()
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert list((tmp_path / "work").iterdir()) == []


def test_a_disk_without_room_is_noticed_before_writing(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    checkpoint = Checkpoint(model)
    with pytest.raises(InputError, match="GB free"), export_folder(tmp_path / "out") as folder:
        export.write_model(folder, checkpoint.model.files, checkpoint.specs, "float32", tensors_of(checkpoint.load()))
    assert not (tmp_path / "out").exists()


def test_what_is_written_need_not_have_the_shape_of_a_source(model, tmp_path):
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    source = Checkpoint(model)
    config_json = {**source.model.files["config.json"], "num_hidden_layers": 3, "vocab_size": 100}
    specs = read_model(config_json).specs
    order = [4, 0, 0]

    def tensor(name, path, at):
        spec = next(s for s in source.specs if s.path == path)
        if at:
            return source.tensor(spec.names()[order[at[0]]])
        return source.tensor(spec.names()[0])[:100]

    with export_folder(tmp_path / "out") as folder:
        export.write_model(folder, {"config.json": config_json}, specs, "float32", tensor)
        assert not (folder / "tokenizer.json").exists()
        export.copy_tokenizer(folder, source)
    written = Checkpoint(tmp_path / "out")
    assert (len(written.model.kinds), written.model.vocab_size) == (3, 100)
    for new, old in enumerate(order):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(written.tensor(name.format(new)), source.tensor(name.format(old)))
    for copied in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / copied).read_bytes() == (model / copied).read_bytes()


def test_large_models_are_sharded(model, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(export, "SHARD_BYTES", 300_000)
    checkpoint = Checkpoint(model)
    with export_folder(tmp_path / "out") as folder:
        export.write_model(folder, checkpoint.model.files, checkpoint.specs, "float32", tensors_of(checkpoint.load()))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    original, sharded = (AutoModelForCausalLM.from_pretrained(f) for f in (model, tmp_path / "out"))
    for (name, a), b in zip(original.state_dict().items(), sharded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_card_is_readable_front_matter(model):
    from huggingface_hub import ModelCard

    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    told = Scoring({"x": {"search": Score(0.5), "heldout": Score(0.25, 0.125, 0.5)}})
    card = ModelCard(model_card("two", "a: 1", [Checkpoint(model)], scoring=told))
    assert card.data.license == "mit"
    assert "merge" in card.data.tags
    assert "| model | search | heldout (95 % interval) |" in card.text
    assert "| x | 0.5000 | 0.2500 (0.1250 to 0.5000) |" in card.text
