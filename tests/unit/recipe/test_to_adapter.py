"""Adapters of one model merge into one more: exactly, or as the best of a rank, which is what a merged model is."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import jevomerge as jm
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from jevomerge.run.merge import merge_folder
from tests.unit.checkpoint.test_lora import DOWN2, EMBED, HEAD, K0, LLAMA, Q0, Q1, pair, write_adapter

OTHER, STORIES = LLAMA.parent / "b", LLAMA.parents[2] / "stories260k"
WEIGHTS = {"one": 0.7, "two": -0.4, "three": 1.1}


@pytest.fixture
def adapters(tmp_path):
    """Of ranks 4 (scale 1.5), 2 and 4, on modules that some of them share; another seed for each."""

    def made(name, ranks, shift, **settings):
        tensors = {}
        for module, rank in ranks.items():
            tensors |= {k: np.roll(v, shift) for k, v in pair(module, rank).items()}
        return write_adapter(tmp_path / name, tensors, **settings)

    made("one", {Q0: 4, K0: 4, DOWN2: 4}, 0)
    made("two", {Q0: 2, Q1: 2}, 5, r=2, lora_alpha=5)
    made("three", {Q0: 4, DOWN2: 4}, 11, use_rslora=True)
    return tmp_path


def recipe(folder, method="task_arithmetic", names=WEIGHTS, model=LLAMA, **more):
    models = [{"model": f"{model}+{folder / n}", "parameters": {"weight": WEIGHTS[n]}} for n in names]
    return {"merge_method": method, "base_model": str(model), "models": models, **more}


def added(folder, name, model=LLAMA):
    """What an adapter adds to a tensor, in float64, as PEFT's documentation has it."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    module = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{module}.lora_A.weight" not in tensors:
        return 0.0
    a, b = (tensors[f"{module}.lora_{half}.weight"].astype(np.float64) for half in "AB")
    scale = settings["lora_alpha"] / (settings["r"] ** (0.5 if settings.get("use_rslora") else 1))
    return scale * b @ a


def weights(reference):
    checkpoint = Checkpoint(reference)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def test_all_ranks_together_are_the_merged_model(adapters, tmp_path):
    merge_folder(recipe(adapters), tmp_path / "whole")
    merge_folder(recipe(adapters, adapter="sum"), tmp_path / "out")
    whole, found = weights(tmp_path / "whole"), weights(f"{LLAMA}+{tmp_path / 'out'}")
    plain = weights(LLAMA)
    for name, expected in whole.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
        exact = sum(w * added(adapters / n, name) for n, w in WEIGHTS.items())
        np.testing.assert_allclose(added(tmp_path / "out", name), exact, atol=1e-5, err_msg=name)
    changed = {name for name in plain if np.abs(plain[name] - whole[name]).max() > 0.1}
    assert changed == {f"{m}.weight" for m in (Q0, Q1, K0, DOWN2)}
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (10, 10)
    assert sorted(settings["target_modules"]) == sorted((Q0, Q1, K0, DOWN2))  # not all q_proj, so by whole names


@pytest.mark.slow
def test_transformers_computes_with_it_what_it_does_with_the_merged_model(adapters, tmp_path):
    merge_folder(recipe(adapters), tmp_path / "whole")
    merge_folder(recipe(adapters, adapter="sum"), tmp_path / "out")
    merged, hooked = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "whole", LLAMA))
    tensors = {k: torch.from_numpy(v) for k, v in load_file(tmp_path / "out" / "adapter_model.safetensors").items()}
    for key, a in tensors.items():
        module, half, b = *key.removeprefix("base_model.model.").rsplit(".lora_", 1), None
        if half == "A.weight":
            b = tensors[f"base_model.model.{module}.lora_B.weight"]
            hooked.get_submodule(module).register_forward_hook(lambda _, i, y, a=a, b=b: y + i[0] @ a.T @ b.T)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        np.testing.assert_allclose(hooked(tokens).logits, merged(tokens).logits, atol=1e-4, rtol=1e-4)


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], s[rank:]


@pytest.mark.parametrize(("method", "more"), [("task_arithmetic", {}), ("ties", {"density": 0.5})])
def test_a_rank_is_the_best_there_is_and_what_it_leaves_out_is_told(adapters, method, more, tmp_path, capsys):
    given = recipe(adapters, method, parameters=more, adapter=3)
    merge_folder({k: v for k, v in given.items() if k != "adapter"}, tmp_path / "whole")
    (tmp_path / "recipe.json").write_text(json.dumps(given))
    assert main(["merge", str(tmp_path / "recipe.json"), str(tmp_path / "out")]) == 0
    whole, plain, lost, size = weights(tmp_path / "whole"), weights(LLAMA), 0.0, 0.0
    for module in (Q0, Q1, K0, DOWN2):
        delta = whole[f"{module}.weight"].astype(np.float64) - plain[f"{module}.weight"]
        expected, rest = best(delta, 3)
        np.testing.assert_allclose(added(tmp_path / "out", module), expected, atol=1e-5, err_msg=module)
        lost, size = lost + np.sum(rest**2), size + np.sum(delta**2)
    told = f"adapter: of rank 3, which leaves out {100 * np.sqrt(lost / size):.2g} % of what is added to the model"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "out" / "README.md").read_text()
    assert 0.1 < np.sqrt(lost / size) < 1


def test_its_folder_says_what_it_is_and_its_recipe_makes_it_again(adapters, tmp_path):
    one = recipe(adapters, names=["one"], adapter="sum")
    merge_folder(one, tmp_path / "out")
    merge_folder(tmp_path / "out" / "recipe.yaml", tmp_path / "again")
    files = [(tmp_path / f / "adapter_model.safetensors").read_bytes() for f in ("out", "again")]
    assert files[0] == files[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "PeftModel.from_pretrained(" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "adapter_config.json").read_text()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "bom.cdx.json", "recipe.yaml",
    }  # fmt: skip


def test_an_average_and_a_stage_that_later_ones_use(adapters, tmp_path):
    average = recipe(adapters, "linear", adapter="sum", name="mean")
    del average["base_model"]
    later = {"merge_method": "linear", "models": [{"model": f"{LLAMA}+mean", "parameters": {"weight": 1}}]}
    merge_folder([average, later], tmp_path / "out")
    found, total = weights(tmp_path / "out"), sum(WEIGHTS.values())
    for name, weight in weights(LLAMA).items():
        exact = weight + sum(w / total * added(adapters / n, name) for n, w in WEIGHTS.items())
        np.testing.assert_allclose(found[name], exact, atol=1e-5, err_msg=name)


def test_all_modules_of_a_kind_are_named_once(tmp_path):
    layers = len(Checkpoint(LLAMA).model.kinds)
    tensors = {k: v for i in range(layers) for k, v in pair(f"model.layers.{i}.self_attn.q_proj").items()}
    write_adapter(tmp_path / "one", tensors)
    merge_folder(recipe(tmp_path, names=["one"], adapter="sum"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]


@pytest.mark.slow
def test_the_winner_of_a_search_is_an_adapter_that_scores_as_it_did(adapters, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, tmp_path / "m")
    wanted = weights(LLAMA)[f"{Q0}.weight"] + np.float32(0.3) * added(adapters / "three", Q0)

    def likeness(model, params):
        return -jnp.mean((params["layers"]["self_attn"]["q_proj"]["weight"][0] - wanted) ** 2)

    result = jm.evolve(
        recipe=recipe(adapters, names=["one", "three"], adapter="sum", model=tmp_path / "m"),
        genome={"weight": [0, 0.5]},
        fitness=likeness,
        search={"evaluations": 16, "population": 8},
        output=tmp_path / "run",
    )
    best, records = result.values["best"], (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert "source" not in best
    np.testing.assert_allclose(best["search"], max(json.loads(r)["fitness"] for r in records), rtol=1e-4)
    found = Checkpoint(f"{tmp_path / 'm'}+{tmp_path / 'run' / 'best'}").tensor(f"{Q0}.weight")
    np.testing.assert_allclose(-np.mean((found - wanted) ** 2), best["heldout"], rtol=1e-4)
    assert any("adapter: of rank 8, all ranks" in note for note in result.values["notes"])


def check(given):
    Sources(Recipe.model_validate(given))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"adapter": 0}, "adapter"),
        ({"merge_method": "ties", "adapter": "sum"}, "`adapter: 16`, or leave `adapter` out"),
        (
            {"merge_method": "linear", "parameters": {"normalize": False}},
            "linear changes the model itself",
        ),
        ({"merge_method": "multislerp"}, "multislerp changes the model itself"),
        ({"dtype": "bfloat16"}, "`?dtype.*leaves its model in float32"),
        ({"out_dtype": "float16"}, "out_dtype"),
        ({"chat_template": "chatml"}, "chat_template.*an adapter has no such thing"),
        ({"models": [{"model": str(OTHER), "parameters": {"weight": 1}}]}, "only of LoRA adapters of one model"),
        ({"base_model": str(OTHER)}, "only of LoRA adapters of one model"),
    ],
)
def test_what_makes_no_adapter_is_refused_before_weights_are_read(adapters, change, expected):
    with pytest.raises((InputError, ValueError), match=f"(?s){expected}"):
        check(recipe(adapters, **{"adapter": "sum", **change}))


def test_adapters_that_change_more_than_linear_maps(tmp_path):
    for name, tensors in (
        ("one", {f"base_model.model.{HEAD}.weight": load_file(LLAMA / "model.safetensors")[f"{HEAD}.weight"]}),
        ("two", pair(EMBED, embedding=True)),
    ):
        write_adapter(tmp_path / name, tensors)
        with pytest.raises(InputError, match=f"{name} has more for .* than two matrices"):
            check(recipe(tmp_path, names=[name], adapter="sum"))


def test_a_model_in_half_precision_stays_so_and_its_adapter_is_float32(adapters, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "m")
    halves = {k: v.astype("bfloat16") for k, v in load_file(LLAMA / "model.safetensors").items()}
    save_file(halves, tmp_path / "m" / "model.safetensors")
    merge_folder(recipe(adapters, adapter="sum", model=tmp_path / "m"), tmp_path / "out")
    checkpoint = Checkpoint(f"{tmp_path / 'm'}+{tmp_path / 'out'}")
    for name, half in halves.items():
        exact = half.astype(np.float64) + sum(w * added(adapters / n, name) for n, w in WEIGHTS.items())
        found, spacing = checkpoint.tensor(name), np.exp2(np.floor(np.log2(np.abs(exact) + 1e-30)) - 7)
        assert found.dtype == "bfloat16"
        assert np.all(np.abs(found.astype(np.float64) - exact) <= 0.51 * spacing + 1e-6), name
