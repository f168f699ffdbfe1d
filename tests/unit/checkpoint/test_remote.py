"""gs://, which `epath` is made to take for a folder here: models from there, and runs that live there."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from etils import epath
from etils.epath.testing import mock_epath

import jevomerge as jm
from jevomerge.checkpoint.remote import Mirror, fetched, files_below
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.observers.observer import Observer
from jevomerge.search.archive import read_archive
from tests.unit.checkpoint.test_orbax_tree import recipe, restore, save, training_state

BUCKET = "gs://bucket"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder that gs:// is; copies of models go to a cache of their own."""
    root = tmp_path / "store"
    (root / "bucket").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def here(path):
        return str(path).replace("gs://", f"{root}/")

    def placed(original, path, *args, **options):
        return original(here(path), *args, **options)

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "open", "remove", "rmtree", "stat")
    with mock_epath(**dict.fromkeys(names, placed)):
        yield root / "bucket"


def test_a_model_is_copied_once_and_again_when_it_has_changed(store):
    (store / "model" / "deep").mkdir(parents=True)
    (store / "model" / "a.json").write_text("{}")
    (store / "model" / "deep" / "b").write_bytes(b"12")
    (store / "model" / "weights.bin").write_bytes(b"a pickle")
    first = fetched(f"{BUCKET}/model", (".bin",))
    assert {str(p.relative_to(first)) for p in first.rglob("*") if p.is_file()} == {"a.json", "deep/b"}
    (first / "deep" / "b").write_bytes(b"ours")  # to see that it is not copied again
    assert fetched(f"{BUCKET}/model", (".bin",)) == first
    assert (first / "deep" / "b").read_bytes() == b"ours"
    (store / "model" / "deep" / "b").write_bytes(b"123")
    again = fetched(f"{BUCKET}/model", (".bin",))
    assert again != first
    assert (again / "deep" / "b").read_bytes() == b"123"
    assert fetched(f"{BUCKET}/model/a.json").read_text() == "{}"
    with pytest.raises(InputError, match="gs://bucket/other does not exist"):
        fetched(f"{BUCKET}/other")


def test_without_a_library_that_reaches_it_one_is_named(capsys, tmp_path):
    """Nothing is installed here that does; the message is that of a process of its own."""
    models = [{"model": f"{BUCKET}/a", "parameters": {"weight": 1}}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out")]) == 2
    assert "without gcsfs: pip install 'jevomerge[gs]'" in capsys.readouterr().err


def test_a_mirror_brings_what_has_changed_and_removes_what_was_its_own(store, tmp_path):
    mirror = Mirror(f"{BUCKET}/run", tmp_path / "here" / "run")
    mirror.push()
    assert not (store / "run").exists()  # nothing is copied before it is known what is there
    mirror.pull(resume=False)
    mirror.folder.mkdir(parents=True)
    (mirror.folder / "config.yaml").write_text("a: 1")
    (mirror.folder / ".lock").write_text("")
    (mirror.folder / "checkpoints" / "10").mkdir(parents=True)
    (mirror.folder / "checkpoints" / "10" / "state").write_text("x")
    mirror.push()
    (store / "run" / "theirs").write_text("of somebody else")
    shutil.rmtree(mirror.folder / "checkpoints")
    (mirror.folder / "result.json").write_text("{}")
    mirror.push()
    names = {"config.yaml", "result.json", "theirs"}
    assert files_below(epath.Path(f"{BUCKET}/run")).keys() == names
    other = Mirror(f"{BUCKET}/run", tmp_path / "there")
    with pytest.raises(InputError, match="exists already"):
        other.pull(resume=False)
    other.pull(resume=True)
    assert files_below(other.folder).keys() == names
    with pytest.raises(InputError, match="gs://bucket/nothing is not a run that can be resumed"):
        Mirror(f"{BUCKET}/nothing", tmp_path / "nothing").pull(resume=True)


def near(model, params):
    return -jnp.abs(params["params"]["params"]["decoder"]["norm"]["scale"].astype(jnp.float32) - 1)


class Stopping(Observer):
    """Ends a run in the second generation of its second stage."""

    searches = 0

    def searching(self, size, source):
        self.searches += 1

    def evaluated(self, done, total, best, mean):
        if (self.searches, done) == (2, 8):
            raise KeyboardInterrupt


def test_a_run_lives_there_and_goes_on_from_there(store, tmp_path, capsys):
    """Stopped in its second stage and resumed, as on another machine, which has nothing but what is there."""
    for i in range(3):
        save(store / str(100 * i) / "items", training_state(i, 100 * i))
    models = [{"model": f"{BUCKET}/{100 * i}/items"} for i in range(3)]
    stage = {
        "recipe": recipe(store) | {"models": models},
        "genome": {"weight": {"range": [-1, 1]}},
        "search": {"evaluations": 12, "population": 4, "checkpoint_every": 1},
    }
    second = stage | {"recipe": recipe(store) | {"models": [{"model": "first"}, models[0]]}}
    config = {
        "name": "trajectory",
        "stages": [{"name": "first"} | stage, {"name": "second"} | second],
        "tasks": [{"name": "near", "score": {"function": f"{__name__}:near", "of": "params"}}],
    }
    with pytest.raises(KeyboardInterrupt):
        jm.evolve(config, output=f"{BUCKET}/run", observer=Stopping())
    first, log = restore(store / "run" / "first" / "best"), store / "run" / "second" / "evaluations.jsonl"
    before = log.read_bytes()
    assert (len(before.splitlines()), (store / "run" / "second" / "checkpoints" / "1").is_dir()) == (8, True)
    assert not (store / "run" / "second" / "result.json").exists()

    assert main(["evolve", "--resume", f"{BUCKET}/run"]) == 0
    assert f"Run folder: {BUCKET}/run" in capsys.readouterr().out
    assert log.read_bytes().startswith(before)
    assert len(read_archive(log)) == 12
    began = yaml.safe_load((store / "run" / "second" / "config.yaml").read_text())
    assert began["recipe"]["models"][0]["model"] == f"{BUCKET}/run/first/best"
    result = json.loads((store / "run" / "result.json").read_text())["second"]
    weights = [result["best"]["genome"][f"model/{name}/weight"] for name in ("first", "items")]
    leaves = [tree["params"]["params"]["decoder"]["norm"]["scale"] for tree in (first, training_state(0, 0))]
    best = restore(store / "run" / "second" / "best")["params"]["params"]["decoder"]["norm"]["scale"]
    mixed = sum(w * np.asarray(x, np.float64) for w, x in zip(weights, leaves, strict=True))
    np.testing.assert_allclose(best, mixed, rtol=1e-5, atol=1e-6)
    assert (store / "run" / "report.html").exists()

    assert main(["evolve", "--resume", f"{BUCKET}/run"]) == 2
    assert "is finished" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["evolve", str(tmp_path / "run.yaml"), "--output", f"{BUCKET}/run"]) == 2
    assert "gs://bucket/run exists already and is not overwritten" in capsys.readouterr().err
