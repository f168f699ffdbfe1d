"""Trackers: what TensorBoard and W&B read back is evaluations.jsonl, also after a run was resumed."""

import json
import os
import resource
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from rich.console import Console

from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.observers.terminal import Terminal
from jevomerge.observers.trackers import TensorBoard, Tracked
from jevomerge.search.archive import read_archive


def scalars_of(folder):
    """{tag: {step: value}} as TensorBoard itself reads the folder, and when each event is said to have been."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    read.Reload()
    events = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    for tag, found in events.items():
        assert len({e.step for e in found}) == len(found), f"{tag} has a step twice"
    return {tag: {e.step: e.value for e in found} for tag, found in events.items()}, events["seconds"]


def history_of(path):
    """{tag: {step: value}} in a file of W&B, which is a LevelDB log of its protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record, found = path.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            break  # it is being written
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            parsed, record = Record.FromString(record), b""
            for item in parsed.history.item:
                tag = item.key or "/".join(item.nested_key)
                steps = found.setdefault(tag, {})
                assert parsed.history.step.num not in steps
                steps[parsed.history.step.num] = json.loads(item.value_json)
    return {tag: steps for tag, steps in found.items() if not tag.startswith("_")}


def tracked_by_wandb(folder):
    """The history in the only offline run, as soon as W&B's own process has written the end of it, and its file."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(600):
        if "heldout/evolved merge" in (found := history_of(path)):
            return found, path.name
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end: {found}")


def expected_of(folder):
    """{tag: {step: value}} as evaluations.jsonl and result.json say."""
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    records = sorted({(r["generation"], r["member"]): r for r in lines}.items())
    records = [record for _, record in records]
    fitness = np.array([np.nan if r["fitness"] is None else r["fitness"] for r in records])
    number = np.array([r["generation"] for r in records])
    ends = {int(np.flatnonzero(number == g)[-1]): float(np.nanmean(fitness[number == g])) for g in set(number)}
    columns = {
        "fitness": fitness,
        "best": np.fmax.accumulate(fitness),
        "seconds": np.cumsum([r["seconds"] for r in records]),
        "tokens": np.cumsum([r["tokens"]["prompt"] + r["tokens"]["answer"] for r in records]),
    }
    expected = {tag: {i: float(x) for i, x in enumerate(v) if np.isfinite(x)} for tag, v in columns.items()}
    result = json.loads((folder / "result.json").read_text())
    models = {**result["sources"], "plain average": result["average"], "evolved merge": result["best"]}
    rows = {
        f"{split}/{m}": {len(records) - 1: row[split]} for m, row in models.items() for split in ("search", "heldout")
    }
    return expected | {"mean": ends} | rows


def same(found, expected):
    assert found.keys() == expected.keys()
    for tag, steps in expected.items():
        assert list(found[tag]) == list(steps), tag
        np.testing.assert_allclose(list(found[tag].values()), list(steps.values()), rtol=1e-6, err_msg=tag)


def test_what_is_tracked_is_what_is_on_disk(siblings, tmp_path, monkeypatch, capsys):
    """... after a first process, and after a second one that found lines missing and damaged."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = yaml.safe_load((siblings / "run.yaml").read_text())
    config |= {"trackers": ["tensorboard", "wandb"], "search": {"evaluations": 24, "population": 8, "strategy": "snes"}}
    (siblings / "tracked.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "tracked.yaml"), "--output", str(folder), "--debug"]) == 0
    found, times = scalars_of(folder)
    same(found, expected_of(folder))
    tracked, name = tracked_by_wandb(folder)
    same(tracked, expected_of(folder))
    began = (folder / "environment.json").stat().st_mtime
    np.testing.assert_allclose([e.wall_time for e in times], [began + e.value for e in times], atol=1e-3)

    lines = (folder / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"fitness"', b'"fitmess"')
    (folder / "evaluations.jsonl").write_bytes(b"".join(lines[:20]))
    (folder / "result.json").unlink()
    assert main(["evolve", "--resume", str(folder)]) == 0
    assert "damaged lines are ignored (1)" in capsys.readouterr().out
    assert len(list(folder.glob("tensorboard/*"))) == 1
    found, _ = scalars_of(folder)
    assert found["fitness"].keys() == set(range(24))
    records = {r["generation"] * 8 + r["member"]: r["fitness"] for r in read_archive(folder / "evaluations.jsonl")}
    np.testing.assert_allclose([found["fitness"][i] for i in range(24)], [records[i] for i in range(24)], rtol=1e-6)
    tracked, again = tracked_by_wandb(folder)
    assert again == name  # the same run
    assert {tag: list(steps) for tag, steps in tracked.items()} == {tag: list(steps) for tag, steps in found.items()}
    for tag, steps in found.items():
        np.testing.assert_allclose(list(tracked[tag].values()), list(steps.values()), rtol=1e-6)


CONFIG = {
    "name": "by hand",
    "recipe": {"merge_method": "linear", "models": [{"model": "/gone/a"}, {"model": "/gone/b"}]},
    "genome": {"weight": [0, 1]},
    "tasks": [{"name": "t", "search": "s.jsonl", "heldout": "h.jsonl", "prompt": "{q}", "answer": "{a}"}],
    "trackers": ["tensorboard"],
}


@pytest.fixture
def begun(tmp_path):
    """A run folder before its first evaluation."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "environment.json").write_text("{}")
    return tmp_path


def record(number, fitness):
    generation, member = divmod(number, 4)
    tokens = {"prompt": 10, "answer": 2}
    return {"generation": generation, "member": member, "fitness": fitness, "seconds": 0.5, "tokens": tokens}


def test_a_run_goes_on_when_its_tracker_cannot(begun, capsys):
    """The disk is full for it, from the fifth evaluation on."""
    tracked = Tracked(
        Terminal(Console(width=200)),
        {"tensorboard": lambda: TensorBoard(read_run(begun / "config.yaml"), begun), "gone": lambda: 1 / 0},
    )
    assert "note: gone: ZeroDivisionError: division by zero; the run goes on without it" in capsys.readouterr().out
    for i in range(5):
        tracked.scored(i, record(i, None if i == 2 else float(i)))
    (file,) = (begun / "tensorboard").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
    try:
        tracked.scored(5, record(5, 5.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tracked.scored(6, record(6, 6.0))
    assert capsys.readouterr().out.count("note: tensorboard: OSError") == 1
    found, _ = scalars_of(begun)
    assert found["fitness"] == {0: 0, 1: 1, 3: 3, 4: 4}  # a fitness that is not a number is none
    assert found["best"] == {0: 0, 1: 1, 2: 1, 3: 3, 4: 4}
    np.testing.assert_allclose(found["mean"][3], 4 / 3)


def test_what_cannot_work_is_said_before_anything_starts(siblings, tmp_path, monkeypatch, capsys):
    config = yaml.safe_load((siblings / "run.yaml").read_text())
    for stages in (False, True):
        whole = {**config, "trackers": ["tensorboard"]}
        if stages:
            own = {k: whole.pop(k) for k in ("recipe", "genome", "search")}
            whole["stages"] = [own | {"name": "one"}]
        (siblings / "untracked.yaml").write_text(yaml.safe_dump(whole))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)  # as if it were not there
            assert main(["evolve", str(siblings / "untracked.yaml"), "--output", str(tmp_path / "run")]) == 2
        assert "pip install 'jevomerge[trackers]'" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    for wrong in (["tensorbord"], ["wandb", "wandb"]):
        (siblings / "untracked.yaml").write_text(yaml.safe_dump(config | {"trackers": wrong}))
        assert main(["evolve", str(siblings / "untracked.yaml"), "--output", str(tmp_path / "run")]) == 2
        assert "trackers" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "refused"), [("online", True), ("offline", False)])
def test_nobody_is_asked_for_a_password(mode, refused, tmp_path):
    code = "from jevomerge.observers.trackers import check_trackers; check_trackers(['wandb'])"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    where = {"HOME": str(tmp_path), "WANDB_MODE": mode}
    done = subprocess.run([sys.executable, "-c", code], env=kept | where, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode != 0) == refused
    assert ("`wandb login`, or set WANDB_MODE=offline" in done.stderr) == refused


def test_the_observer_hears_everything(capsys):
    tracked = Tracked(Terminal(), {})
    tracked.stage("reading")
    tracked.note("odd")
    tracked.line("score 1")
    tracked.counter("merged")(3, 3)
    tracked.evaluated(9, 9, 0.5, 0.25)
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == ["reading ...", "note: odd", "score 1", "merged 3/3 tensors"]
    assert said[4].startswith("evaluation 9/9  best 0.5000")
