"""Runs that go on: with what they began with or not at all, and longer than they were to be."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jevomerge as jm
from jevomerge.checkpoint.safetensors_file import SAMPLE, SAMPLES, SMALL, digest_tensors, read_header
from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.search.archive import read_archive


def refused(capsys, *arguments):
    """The one message of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("jevomerge: ")
    assert "Traceback" not in message
    return message


# --- what may not change ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(siblings, tmp_path_factory):
    """The siblings, and a run of theirs that has not ended."""
    folder = tmp_path_factory.mktemp("begun")
    copy = shutil.copytree(siblings, folder / "siblings")
    text = (copy / "run.yaml").read_text().replace("evaluations: 120", "evaluations: 10")
    (copy / "run.yaml").write_text(text)
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(folder / "run")]) == 0
    (folder / "run" / "result.json").unlink()
    return folder


def one_weight(path):
    weights = load_file(path)
    weights["model.layers.2.mlp.up_proj.weight"][17, 3] += 0.5
    save_file(weights, path, metadata={"format": "pt"})


def key(name, value):
    def change(path):
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(data | {name: value}))

    return change


def text(old, new):
    def change(path):
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))

    return change


CHANGES = [
    ("siblings/back/model.safetensors", one_weight, "back: weights changed"),
    ("siblings/back/config.json", key("rope_theta", 20000.0), "back: config.json changed"),
    ("siblings/front/tokenizer_config.json", key("padding_side", "left"), "front: tokenizer_config.json changed"),
    ("siblings/front/chat_template.jinja", lambda path: path.write_text("{{ x }}"), "chat_template.jinja changed"),
    ("siblings/front/generation_config.json", key("eos_token_id", [1, 2]), "generation_config.json changed"),
    ("siblings/search.jsonl", text("girl", "boy"), "task stories: its search data has changed"),
    ("run/config.yaml", text("score: likelihood", "score: match"), '`tasks.0.score` has changed from null to "match"'),
    ("run/config.yaml", text("seed: 0", "seed: 1"), "`seed` has changed"),
    ("run/config.yaml", text("compute_dtype: float32", "compute_dtype: bfloat16"), "`compute_dtype` has changed"),
    ("run/config.yaml", text("siblings/front", "siblings/base"), "`recipe.models.0.model` has changed"),
]


@pytest.mark.parametrize(("file", "change", "message"), CHANGES, ids=[message for *_, message in CHANGES])
def test_what_decides_may_not_change(file, change, message, begun, capsys):
    path = begun / file
    before = path.read_bytes() if path.exists() else None
    change(path)
    try:
        assert message in refused(capsys, "evolve", "--resume", begun / "run")
        assert not (begun / "run" / "result.json").exists()
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_what_does_not_decide_may_change(begun, tmp_path, capsys):
    run = shutil.copytree(begun / "run", tmp_path / "run")
    text("tokens_per_batch: 16384", "tokens_per_batch: 4096")(run / "config.yaml")
    text("checkpoint_every: 2", "checkpoint_every: 3")(run / "config.yaml")
    # The same tensors in other files, and another model card, are the same source.
    weights, back = load_file(begun / "siblings" / "back" / "model.safetensors"), begun / "siblings" / "back"
    names = sorted(weights)
    shards = {"a.safetensors": names[:5], "deep/b.safetensors": names[5:]}
    (back / "deep").mkdir()
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, back / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (back / "model.safetensors").rename(back / "whole")
    (back / "model.safetensors.index.json").write_text(json.dumps(index))
    (back / "README.md").write_text("other words")
    try:
        assert main(["evolve", "--resume", str(run), "--debug"]) == 0
        (run / "result.json").unlink()
        changed = weights[names[7]]
        changed.flat[-1] += 1
        save_file({name: weights[name] for name in names[5:]}, back / "deep" / "b.safetensors")
        assert "back: weights changed" in refused(capsys, "evolve", "--resume", run)
    finally:
        (back / "model.safetensors.index.json").unlink()
        (back / "whole").rename(back / "model.safetensors")


def test_a_run_of_an_earlier_version_is_named(begun, tmp_path, capsys):
    run = shutil.copytree(begun / "run", tmp_path / "run")
    environment = json.loads((run / "environment.json").read_text())
    del environment["config"]
    environment["packages"]["jevomerge"] = "0.1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    assert "was begun by jevomerge 0.1.0" in refused(capsys, "evolve", "--resume", run)


def test_a_digest_sees_all_of_a_tensor_in_blocks(tmp_path):
    """A large one's first and last byte and blocks between; of a small one every byte."""
    rng = np.random.default_rng(0)
    tensors = {"large": rng.integers(0, 255, 2 * SMALL, np.uint8), "small": rng.integers(0, 255, 1000, np.uint8)}

    def digest():
        save_file(tensors, tmp_path / "x.safetensors")
        return digest_tensors(read_header(tmp_path / "x.safetensors"))

    found = {digest()}
    step = (2 * SMALL - SAMPLE) // (SAMPLES - 1)
    for name, place in (("large", 0), ("large", -1), ("large", step + 1), ("small", 0), ("small", 499), ("small", -1)):
        tensors[name][place] ^= 1
        found.add(digest())
    assert len(found) == 7
    assert digest() in found


# --- longer -------------------------------------------------------------------------------------------------


def without_times(folder):
    log = re.sub(r'"seconds": [\d.]+|"crc32": "\w+"', "", (folder / "evaluations.jsonl").read_text())
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    return log, result, (folder / "best" / "model.safetensors").read_bytes(), (folder / "heldout.json").read_text()


SEARCHES = {
    "default": "",
    "minibatches": ", examples_per_generation: 4, finalists: 2",
    "anchors": ", anchors: {examples: 4}",
    "racing": ", strategy: sep_cma_es, racing: exact",
}


@pytest.mark.parametrize("how", [pytest.param(k, marks=[] if k == "default" else pytest.mark.slow) for k in SEARCHES])
def test_a_finished_run_is_made_longer(how, siblings, tmp_path, capsys):
    copy = shutil.copytree(siblings, tmp_path / "siblings")
    text("evaluations: 120", f"evaluations: 40{SEARCHES[how]}")(copy / "run.yaml")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(whole), "--debug"]) == 0
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(run), "--evaluations", "20"]) == 0
    short = without_times(run)
    assert "is finished" in refused(capsys, "evolve", "--resume", run, "--evaluations", "20")
    assert "is finished" in refused(capsys, "evolve", "--resume", run, "--evaluations", "25")
    assert without_times(run) == short
    assert main(["evolve", "--resume", str(run), "--evaluations", "40", "--debug"]) == 0
    printed = capsys.readouterr().out
    assert "scoring back" not in printed
    assert "scoring the plain average" not in printed
    assert without_times(run) == without_times(whole)
    assert "evaluations: 40" in (run / "config.yaml").read_text()
    assert "is finished" in refused(capsys, "evolve", "--resume", run)
    (run / "result.json").unlink()
    assert "20 are less than the 4 generations" in refused(capsys, "evolve", "--resume", run, "--evaluations", "20")


X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
ZERO, ONE = {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}


def miss(model, params):
    return -abs(model.apply(params, X) - 0.3 * X.sum(1))


class Grid:
    """Asks for one line of points after another; what it is told it forgets."""

    remembers = False

    def __init__(self):
        self.asked = 0

    def ask(self):
        self.asked += 1
        return np.linspace(0, 1, 5)[:, None] ** self.asked

    def tell(self, population, fitness):
        pass


class Watching(Observer):
    def __init__(self):
        self.stages = []

    def stage(self, text):
        self.stages.append(text)


def evolve(folder, evaluations, **options):
    search = {"evaluations": evaluations, "population": 5} | options.pop("search", {})
    given = {"fitness": miss, "genome": {"weight": [0, 1]}, "observer": SILENT, "output": folder}
    return jm.evolve(
        models=[ZERO, ONE], model=jm.own_model(lambda params, x: x @ params["w"], ZERO), search=search,
        recipe={"merge_method": "task_arithmetic", "base_model": "0"}, **(given | options),
    )  # fmt: skip


@pytest.mark.parametrize(
    "strategy", ["cma_es", Grid(), pytest.param("pso", marks=pytest.mark.slow)], ids=["cma_es", "own", "pso"]
)
def test_the_same_from_python(strategy, tmp_path):
    whole = evolve(tmp_path / "whole", 40, search={"strategy": strategy})
    evolve(tmp_path / "run", 15, search={"strategy": strategy})
    watching = Watching()
    run = evolve(tmp_path / "run", 40, search={"strategy": strategy}, resume=True, observer=watching)
    assert without_times(run.folder) == without_times(whole.folder)
    assert not [stage for stage in watching.stages if stage.startswith("scoring")]
    with pytest.raises(InputError, match="is finished"):
        evolve(tmp_path / "run", 40, search={"strategy": strategy}, resume=True)


def test_refined_candidates_belong_to_the_length_of_a_search(tmp_path):
    refine = {"objective": "fitness", "steps": 2}
    evolve(tmp_path / "run", 10, refine=refine)
    with pytest.raises(InputError, match=r"search.evaluations: .* began with 10, and `refine`"):
        evolve(tmp_path / "run", 20, refine=refine, resume=True)
    assert (tmp_path / "run" / "best").exists()
    with pytest.raises(InputError, match="is finished"):
        evolve(tmp_path / "run", 10, refine=refine, resume=True)


def test_a_function_that_changed_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "judging_by_file.py"
    module.write_text("def f(model, params):\n    return -params['w'].sum()\n")
    options = {"fitness": "judging_by_file:f"}
    evolve(tmp_path / "run", 10, **options)
    (tmp_path / "run" / "result.json").unlink()
    module.write_text("def f(model, params):\n    return -2 * params['w'].sum()\n")
    with pytest.raises(InputError, match="task fitness: who judges it has changed"):
        evolve(tmp_path / "run", 10, resume=True, **options)


def test_an_outcome_that_was_taken_back_comes_again(tmp_path):
    """A run that was being made longer was killed before its config.yaml said so."""
    evolve(tmp_path / "run", 15)
    before = without_times(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "best")
    evolve(tmp_path / "run", 15, resume=True)
    assert without_times(tmp_path / "run") == before
    # Killed once more, after exporting: what it exported is not taken for what a longer search finds.
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "best" / "mine").touch()
    assert len(evolve(tmp_path / "run", 20, resume=True).archive.fitness) == 20
    assert not (tmp_path / "run" / "best" / "mine").exists()
    assert len(read_archive(tmp_path / "run" / "evaluations.jsonl")) == 20


# --- known before the work ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "", "a" * 201, "é" * 101, "a\nb", ".hidden"])
def test_a_name_is_that_of_a_folder(name, siblings, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(siblings, tmp_path / "in" / "siblings")
    text("name: repair", f"name: {json.dumps(name)}")(copy / "run.yaml")
    monkeypatch.chdir(tmp_path / "in")
    assert "`name`: a name is that of a folder" in refused(capsys, "evolve", copy / "run.yaml")
    assert {p.name for p in tmp_path.iterdir()} == {"in"}
    assert {p.name for p in (tmp_path / "in").iterdir()} == {"siblings"}


@pytest.mark.parametrize("seed", [2**32, 10**30, -1])
def test_a_seed_has_32_bits(seed, siblings, tmp_path, capsys):
    """JAX would take 2**32 for 0."""
    arguments = ("evolve", siblings / "run.yaml", "--output", tmp_path / "run")
    assert "`seed`: " in refused(capsys, *arguments, "--seed", seed)
    copy = shutil.copytree(siblings, tmp_path / "siblings")
    (copy / "run.yaml").write_text((copy / "run.yaml").read_text() + f"seed: {seed}\n")
    assert "`seed`: " in refused(capsys, "evolve", copy / "run.yaml", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()
