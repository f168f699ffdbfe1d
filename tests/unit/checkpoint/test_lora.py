"""A LoRA adapter behind a plus is folded into its model as PEFT means it, or refused by name."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jevomerge.checkpoint.card import model_card
from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from tests.families import make

LLAMA = Path(__file__).parents[2] / "data" / "parity" / "models" / "a"
Q0, Q1, K0 = (f"model.layers.{i}.self_attn.{m}_proj" for i, m in ((0, "q"), (1, "q"), (0, "k")))
DOWN2, EMBED, HEAD, NORM = "model.layers.2.mlp.down_proj", "model.embed_tokens", "lm_head", "model.norm"
RANK, ALPHA = 4, 6
# As PEFT 0.21 writes it.
SETTINGS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "owner/a",
    "bias": "none", "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.21.2",
    "qalora_group_size": 16, "r": RANK, "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "k_proj"],
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip


def shape(name):
    return load_file(LLAMA / "model.safetensors")[f"{name}.weight"].shape


def pair(module, rank=RANK, embedding=False, dtype=np.float32):
    """A and B of one module, under PEFT's names."""
    rng = np.random.default_rng(list(module.encode()))
    rows, columns = shape(module)[::-1] if embedding else shape(module)
    infix, suffix = ("embedding_", "") if embedding else ("", ".weight")
    return {
        f"base_model.model.{module}.lora_{infix}{half}{suffix}": 0.3 * rng.standard_normal(size).astype(dtype)
        for half, size in (("A", (rank, columns)), ("B", (rows, rank)))
    }


def write_adapter(folder, tensors, **settings):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "skill", pair(Q0) | pair(K0) | pair(DOWN2))


def tensors_with(adapter, model=LLAMA):
    checkpoint = Checkpoint(f"{model}+{adapter}")
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def product(tensors, module, scale, embedding=False):
    infix, suffix = ("embedding_", "") if embedding else ("", ".weight")
    a, b = (tensors[f"base_model.model.{module}.lora_{infix}{half}{suffix}"].astype(np.float64) for half in "AB")
    return scale * (b @ a).T if embedding else scale * (b @ a)


@pytest.mark.parametrize(
    ("ranks", "scales", "settings"),
    [
        ({Q0: 4, K0: 4, DOWN2: 4}, {Q0: 6 / 4, K0: 6 / 4, DOWN2: 6 / 4}, {}),
        ({Q0: 4, HEAD: 4}, {Q0: 6 / 2, HEAD: 6 / 2}, {"use_rslora": True}),
        ({Q0: 4, Q1: 2, K0: 3}, {Q0: 6 / 4, Q1: 6 / 2, K0: 5 / 3},
         {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 3}, "alpha_pattern": {"k_.*": 5}}),
        # A pattern matches whole components of the name: "proj" is none.
        ({Q0: 4, Q1: 4}, {Q0: 6 / 4, Q1: 8 / 4}, {"alpha_pattern": {"proj": 9, "^model.layers.1.self_attn.q_proj": 8}}),
    ],
)  # fmt: skip
def test_every_adapted_tensor_is_the_sum_and_no_other_changes(ranks, scales, settings, tmp_path):
    tensors = {}
    for module, rank in ranks.items():
        tensors |= pair(module, rank)
    found = tensors_with(write_adapter(tmp_path / "x", tensors, **settings))
    for name, weight in load_file(LLAMA / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module not in ranks:
            assert found[name].tobytes() == weight.tobytes(), name
            continue
        delta = product(tensors, module, scales[module])
        assert np.abs(delta).max() > 0.3  # the comparison is about something
        np.testing.assert_allclose(found[name], weight + delta, atol=1e-6)


def test_an_embedding_whole_tensors_and_biases(tmp_path):
    make("qwen2", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((RANK, 97)).astype("f4"), rng.standard_normal((32, RANK)).astype("f4")
    replaced = {name: rng.standard_normal(weights[name].shape).astype("f4") for name in (
        "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias", "model.embed_tokens.weight",
    )}  # fmt: skip
    prefix = "base_model.model."
    adapter = write_adapter(
        tmp_path / "x",
        {
            prefix + "model.embed_tokens.lora_embedding_A": a,
            prefix + "model.embed_tokens.lora_embedding_B": b,
            prefix + "model.embed_tokens.base_layer.weight": replaced["model.embed_tokens.weight"],
            prefix + "model.layers.0.self_attn.q_proj.base_layer.bias": replaced[Q0 + ".bias"],
            prefix + "lm_head.weight": replaced["lm_head.weight"],
            prefix + "model.norm.weight": replaced["model.norm.weight"],
        },
        bias="all",
        modules_to_save=["lm_head", "norm"],
    )
    found = tensors_with(adapter, tmp_path / "m")
    replaced[f"{EMBED}.weight"] = replaced[f"{EMBED}.weight"] + np.float32(ALPHA / RANK) * (b @ a).T
    for name, expected in (weights | replaced).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_rounding_to_the_dtype_of_the_model(dtype, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "m")
    weights = {k: v.astype(dtype) for k, v in load_file(LLAMA / "model.safetensors").items()}
    save_file(weights, tmp_path / "m" / "model.safetensors")
    tensors = pair(Q0) | {"base_model.model.lm_head.weight": np.full(shape(HEAD), 0.1, np.float32)}
    checkpoint = Checkpoint(f"{tmp_path / 'm'}+{write_adapter(tmp_path / 'x', tensors)}")
    found = checkpoint.tensor(Q0 + ".weight")
    exact = weights[Q0 + ".weight"].astype(np.float64) + product(tensors, Q0, ALPHA / RANK)
    spacing = np.exp2(np.floor(np.log2(np.abs(exact)))) * float(ml_dtypes.finfo(dtype).eps)
    assert found.dtype == dtype
    assert np.all(np.abs(found.astype(np.float64) - exact) <= 0.501 * spacing)
    assert checkpoint.load()["layers"]["self_attn"]["q_proj"]["weight"].dtype == dtype
    assert np.all(checkpoint.tensor("lm_head.weight") == np.dtype(dtype).type(0.1))


def test_the_exported_model_computes_what_the_adapted_one_does(adapter, tmp_path):
    checkpoint = Checkpoint(f"{LLAMA}+{adapter}")
    with export_folder(tmp_path / "out") as folder:
        write_model(folder, checkpoint.model.files, checkpoint.specs, "float32", tensors_of(checkpoint.load()))
    merged, plain, hooked = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "out", LLAMA, LLAMA))
    tensors = {k: torch.from_numpy(v) for k, v in load_file(adapter / "adapter_model.safetensors").items()}
    for module in (Q0, K0, DOWN2):
        a, b = (tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        hooked.get_submodule(module).register_forward_hook(
            lambda _, inputs, y, a=a, b=b: y + ALPHA / RANK * (inputs[0] @ a.T @ b.T)
        )
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        found, without, expected = (m(tokens).logits.numpy() for m in (merged, plain, hooked))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(expected - without).max() > 0.5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "LOKR"}, "`peft_type: LOKR` is not LORA; fold it into its model with peft"),
        ({"use_dora": True}, "`use_dora: True` is not understood; fold it"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 4]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights: pissa` may change the model's own weights"),
        ({"invented_next_year": 2}, "`invented_next_year: 2` is not understood"),
        ({"r": None}, "`r`: input should be a valid integer"),
        ({"r": 0}, "`r`: input should be greater than 0"),
        ({"r": 8}, rf"{K0}\.weight have shapes .* at rank 8"),
        ({"rank_pattern": {"q_proj": 2}}, rf"{Q0}\.weight have shapes .* at rank 2"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern: `\(`"),
    ],
)
def test_settings_that_are_refused(adapter, settings, expected):
    (adapter / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    with pytest.raises(InputError, match=expected) as error:
        Checkpoint(f"{LLAMA}+{adapter}")
    assert str(adapter) in str(error.value)


A, B = (f"base_model.model.{Q0}.lora_{half}.weight" for half in "AB")
X = np.zeros((4, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(B), rf"{Q0}\.weight has lora_A; need an A and a B"),
        (lambda t: t.update({A: t[A][:, :-1].copy()}), rf"{Q0}\.weight have shapes \(4, 31\)"),
        (lambda t: t.update({B: t[B][:-1].copy()}), rf"{Q0}\.weight have shapes .* \(31, 4\)"),
        (lambda t: t.update({A: t[A].astype(np.int8)}), "stored as I8"),
        (lambda t: t.update(pair(Q0, embedding=True)), "lora_A and lora_B and lora_embedding_A"),
        (lambda t: t.update({A.replace("layers.0", "layers.9"): X}), r"layers\.9\..* belongs to no tensor"),
        (lambda t: t.update({A.replace("q_proj", "c_attn"): X}), r"c_attn.* belongs to no tensor"),
        (lambda t: t.update({A.replace(".weight", ".default.weight"): X}), r"default.* belongs to no tensor"),
        (lambda t: t.update({f"base_model.model.{Q0}.lora_magnitude_vector": X}), "magnitude_vector belongs to no"),
        (lambda t: t.update({f"base_model.model.{Q0}.lora_B.bias": X}), r"lora_B\.bias belongs to no"),
        (lambda t: t.update({f"base_model.model.{NORM}.lora_A.weight": X, f"base_model.model.{NORM}.lora_B.weight": X}),
         rf"{NORM}\.weight have shapes"),
        (lambda t: t.update({f"base_model.model.{HEAD}.weight": X}), r"lm_head\.weight has shape \(4, 4\), the"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(adapter, change, expected):
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=expected):
        Checkpoint(f"{LLAMA}+{adapter}")


def test_tied_embeddings_cannot_be_changed_alone(tmp_path):
    make("smollm2", tmp_path / "m")
    tensor = np.zeros((97, 32), np.float32)
    adapter = write_adapter(tmp_path / "x", {"base_model.model.model.embed_tokens.weight": tensor})
    with pytest.raises(InputError, match="tie_word_embeddings: false"):
        Checkpoint(f"{tmp_path / 'm'}+{adapter}")


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_head.lora_A.weight"])
def test_a_head_that_is_the_embeddings_cannot_be_trained(key, tmp_path):
    make("smollm2", tmp_path / "m")
    adapter = write_adapter(tmp_path / "x", {f"base_model.model.{key}": np.zeros((97, 32), np.float32)})
    with pytest.raises(InputError, match="trains the head, which in this model is its embeddings"):
        Checkpoint(f"{tmp_path / 'm'}+{adapter}")


def test_nan_in_an_adapter(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[A][0, 0] = np.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"{Q0}\.weight contains NaN"):
        Checkpoint(f"{LLAMA}+{adapter}").load()


def test_pickle_incomplete_and_lonely_adapters(adapter):
    with pytest.raises(InputError, match=rf"is an adapter; write it behind its model: owner/a\+{adapter}"):
        Checkpoint(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"only adapter_model\.bin, a pickle file"):
        Checkpoint(f"{LLAMA}+{adapter}")
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        Checkpoint(f"{LLAMA}+{adapter}")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        Checkpoint(f"{LLAMA}+{adapter}")


# --- what a reference means ---------------------------------------------------------------------------------


def test_a_folder_with_a_plus_in_its_name_wins(adapter, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "m+skill")
    assert Checkpoint(tmp_path / "m+skill").adapter is None
    assert Checkpoint(tmp_path / "m+skill").name == "m+skill"
    adapted = Checkpoint(f"{tmp_path / 'm+skill'}+{adapter}/")
    assert (adapted.name, adapted.folder) == ("m+skill+skill", tmp_path / "m+skill")
    adapter.rename(tmp_path / "s+k")
    assert Checkpoint(f"{tmp_path / 'm+skill'}+{tmp_path / 's+k'}").name == "m+skill+s+k"


def test_both_halves_may_be_on_the_hub(adapter, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return {"owner/a": LLAMA, "other/skill": adapter}[name]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = Checkpoint("owner/a@main+other/skill@v2")
    assert asked == [("owner/a", "main"), ("other/skill", "v2")]
    assert checkpoint.name == "a@main+skill@v2"
    assert checkpoint.adapter is not None


def test_neither_half_is_there():
    with pytest.raises(InputError, match="/no/model is neither"):
        Checkpoint(f"/no/model+{LLAMA}")
    with pytest.raises(InputError, match="/no/adapter is neither"):
        Checkpoint(f"{LLAMA}+/no/adapter")


def test_the_card_names_both_and_the_stricter_licence(adapter, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "m")
    for folder, licence in ((tmp_path / "m", "mit"), (adapter, "cc-by-nc-4.0")):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    text = model_card("t", "a: 1", [Checkpoint(tmp_path / "m"), Checkpoint(f"{tmp_path / 'm'}+{adapter}")])
    assert "license: cc-by-nc-4.0\nbase_model:\n- m\n- skill\n" in text
    assert text.count("| m | mit |") == text.count("| skill | cc-by-nc-4.0 |") == 1
    assert str(tmp_path) not in text
