"""What is written is finite, goes where it can be written, and removes nothing that is not ours."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jevomerge.checkpoint.export import export_folder, refuse_existing, write_whole
from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.errors import InputError, NotFinite
from jevomerge.fitness.rollouts.folder import Folder
from jevomerge.run.merge import merge_folder
from tests.families import make

STORIES = Path(__file__).parents[2] / "data" / "stories260k"


@pytest.fixture
def large(tmp_path):
    """A model one of whose tensors reaches half of float16's range."""
    shutil.copytree(STORIES, tmp_path / "m")
    weights = load_file(STORIES / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] = np.full_like(weights["model.layers.3.mlp.up_proj.weight"], 4e4)
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "m"


def sums(model, weight, **more):
    listed = [{"model": str(model), "parameters": {"weight": weight}}, {"model": str(STORIES)}]
    listed[1]["parameters"] = {"weight": weight}
    return {"merge_method": "linear", "models": listed, "parameters": {"normalize": False}, **more}


@pytest.mark.parametrize(
    ("weight", "dtype", "remedy"),
    [(2, "float16", "write bfloat16 or float32"), (1e35, "float32", "lambda"), (1e35, "bfloat16", "lambda")],
)
def test_a_merge_that_overflows_is_refused_by_name(large, tmp_path, weight, dtype, remedy):
    with pytest.raises(NotFinite, match=rf"layers\.3\.mlp\.up_proj.*too large for {dtype}.*{remedy}"):
        merge_folder(sums(large, weight, dtype=dtype), tmp_path / "out" / "here")
    assert list((tmp_path / "out").iterdir()) == []
    merge_folder(sums(large, 0.5, dtype=dtype), tmp_path / "fits")


def test_weights_beyond_float32_are_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        f"merge_method: linear\nmodels:\n  - model: {STORIES}\n    parameters: {{weight: 1.0e+39}}\n"
    )
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out")]) == 2
    assert "r.yaml:4: `models.0.parameters.weight`: 1e+39 is larger than float32 can hold" in capsys.readouterr().err


def test_no_kind_of_writing_lets_nan_through(tmp_path):
    checkpoint = Checkpoint(STORIES)
    params = checkpoint.load()
    params["norm"]["weight"] = params["norm"]["weight"].at[-1].set(np.nan)
    with pytest.raises(NotFinite, match=r"model\.norm\.weight"):
        write_whole(tmp_path / "m", params, checkpoint.model, None)


def test_a_candidate_that_cannot_be_written_fails_alone():
    def write():
        raise NotFinite("x")

    assert Folder().read([np.zeros(1)], write) == [None]


def test_only_what_we_made_is_removed(tmp_path):
    (tmp_path / ".out.partial-mine").mkdir()
    (tmp_path / ".out.partial-mine" / "notes.txt").write_text("mine")
    with export_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / ".out.partial-mine" / "notes.txt").read_text() == "mine"


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a link to nothing"):
        refuse_existing(tmp_path / "link")
    for place in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(InputError, match="file is not a folder; choose another place"):
            refuse_existing(place)
    for place in (tmp_path / ("n" * 256), tmp_path / ("ä" * 120) / "out"):
        with pytest.raises(InputError, match="choose a shorter name"):
            refuse_existing(place)
    refuse_existing(tmp_path / "new" / "deeper" / ("n" * 200))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make("llama", tmp_path / "m")
    (tmp_path / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: m}]\n")
    assert main(["merge", "r.yaml", "~/merged"]) == 0
    assert (tmp_path / "home" / "merged" / "model.safetensors").exists()
    assert not (tmp_path / "~").exists()


def test_shards_are_as_small_as_asked(tmp_path):
    (tmp_path / "r.yaml").write_text(f"merge_method: passthrough\nmodels: [{{model: {STORIES}}}]\n")
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--out-shard-size", "300k"]) == 0
    shards = [p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")]
    assert len(shards) > 2
    assert max(shards) < 310_000
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "again"), "--out-shard-size", "much"]) == 2
