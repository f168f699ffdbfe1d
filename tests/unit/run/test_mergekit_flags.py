"""mergekit's command lines are accepted: every flag of mergekit-yaml and mergekit-multi 0.1.5 is heeded or noted."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from jevomerge.cli import main, parser
from jevomerge.errors import InputError
from jevomerge.run.mergekit_flags import read_size

MODELS = Path(__file__).parents[2] / "data" / "parity" / "models"
SWITCHES = [  # as `mergekit-yaml --help` and `mergekit-multi --help` list them
    *("--allow-crimes", "--unsafe-truncate-embeddings", "--trust-remote-code", "--cuda", "--low-cpu-memory"),
    *("--read-to-gpu", "--multi-gpu", "--copy-tokenizer", "--write-model-card", "--safe-serialization"),
    *("--clone-tensors", "--lazy-unpickle", "--lazy", "--quiet", "--async-write"),
]
VALUES = [
    *("--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype", "--device"),
    *("--num-threads", "-j", "--write-threads", "--intermediate-dir", "-I"),
]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"merge_method: dare_linear\nbase_model: {MODELS / 'base'}\nmodels:\n"
        f"  - model: {MODELS / 'a'}\n    parameters: {{weight: 1, density: 0.5}}\n"
    )
    return path


@pytest.mark.parametrize(
    "flag", [*SWITCHES, *(s.replace("--", "--no-", 1) for s in SWITCHES), "--gpu-rich", "-v", "-vv"]
)
def test_switches_are_noted(flag):
    told = parser().parse_args(["merge", "r", "out", flag]).ignored
    assert told
    assert all(note.startswith(flag[:2] if flag == "-vv" else flag) and "has no effect: " in note for note in told)


@pytest.mark.parametrize("flag", VALUES)
def test_values_are_noted(flag):
    (told,) = parser().parse_args(["merge", "r", "out", flag, "4"]).ignored
    assert told.startswith(f"{flag} has no effect: ")


def test_a_command_line_of_mergekits(recipe, tmp_path, capsys):
    words = ["--cuda", "--copy-tokenizer", "-I", str(tmp_path / "between"), "--out-path", str(tmp_path / "out")]
    assert main(["merge", str(recipe), *words]) == 0
    said = capsys.readouterr()
    for flag in ("--cuda", "--copy-tokenizer", "-I"):
        assert f"{flag} has no effect" in said.out + said.err
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "between").exists()


def test_the_seed_is_the_recipes(recipe, tmp_path):
    for name, seed in (("a", "7"), ("b", "8")):
        assert main(["merge", str(recipe), str(tmp_path / name), "--random-seed", seed]) == 0
    recipe.write_text(recipe.read_text() + "seed: 7\n")
    assert main(["merge", str(recipe), str(tmp_path / "c")]) == 0
    a, b, c = (load_file(tmp_path / name / "model.safetensors")["lm_head.weight"] for name in "abc")
    assert (a == c).all()
    assert (a != b).any()


def test_nothing_to_merge_without_a_place(recipe, capsys):
    assert main(["merge", str(recipe)]) == 2
    assert "OUT" in capsys.readouterr().err


def test_sizes():
    assert [read_size(s) for s in ("5B", "500m", "2K", "17")] == [5 * 10**9, 5 * 10**8, 2000, 17]
    for text in ("", "B", "-1", "0", "1.5B", "5GB"):
        with pytest.raises(InputError, match="is not a size"):
            read_size(text)
