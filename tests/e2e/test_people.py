"""People judge a run: raters over HTTP, as a browser would, with a taste that the search then has."""

import json
import re
import socket
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import yaml

from jevomerge.cli import main
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT
from jevomerge.run.evolve import evolve
from tests.raters import Rater, answer, english, votes_of


@pytest.fixture
def config(siblings, tmp_path):
    """Two damaged story tellers; people judge what their merges write."""
    begun = ["Lily and Tom", "One day, a little", "The big dog", "Mom said", "There was a boy"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"begin": b}) + "\n" for b in begun))
    run = yaml.safe_load((siblings / "run.yaml").read_text())
    run["recipe"]["models"] = [{"model": str(siblings / name)} for name in ("front", "back")]
    data = {s: {"path": str(tmp_path / "rows.jsonl"), "rows": r} for s, r in (("search", [0, 3]), ("heldout", [3, 5]))}
    task = {"name": "style", "prompt": "{begin}", "score": {"people": {"raters": ["Ann", "Ben"], "votes": 6}}}
    search = {"strategy": "random", "evaluations": 8, "population": 4}
    return {**run, "genome": {"weight": [0, 1]}, "search": search, "tasks": [{**task, **data, "max_new_tokens": 16}]}


def test_people_are_asked_and_heeded(config, tmp_path):
    """Also when the program is stopped while they think: no vote is lost, and none asked for again."""
    run, stopped, rater = tmp_path / "run", Rater(after=4), Rater()
    with pytest.raises(KeyboardInterrupt):
        evolve(config, output=run, observer=stopped)
    before = votes_of(run)
    found = evolve(config, output=run, observer=rater, resume=True)
    votes = votes_of(run)
    assert votes[: len(before)] == before
    assert len(before) >= 4
    rounds = Counter(vote["round"] for vote in votes)
    assert [*rounds] == ["sources", "generation 0", "generation 1", "held out, best"]
    assert all(rounds[f"generation {g}"] <= 7 for g in (0, 1))  # the second of two that were on their way counts
    assert {vote["rater"] for vote in votes} == {"Ann", "Ben"}
    assert len(rater.asked) == len(votes) - len(before)
    keys = [(v["split"], v["prompt"], frozenset((v["left"]["digest"], v["right"]["digest"]))) for v in votes]
    assert len(keys) - len(set(keys)) <= 4  # but for the last one of a round, which both have in view
    assert not re.search(
        "front|back|average|generation|member|best", json.dumps([[a["left"], a["right"]] for a in rater.asked])
    )
    for vote in votes:  # what was shown, and the taste
        difference = english(vote["left"]) - english(vote["right"])
        assert vote["choice"] == ("tie", "left", "right")[int(np.sign(difference))]
        assert vote["asked"]["text"]

    # The scale has its middle at the sources' mean; who is preferred is above it, and the best of all is taken.
    values = found.values
    scores = [row["search"] for row in values["sources"].values()] + [values["average"]["search"]]
    assert np.log(np.array(scores) / (1 - np.array(scores))).mean() == pytest.approx(0, abs=0.02)
    assert values["best"]["search"] >= max(scores)
    met = {name for vote in votes for side in ("left", "right") for name in vote[side]["by"]}
    assert "generation 1, member 0" in met

    # Held out, every pair on every prompt: the shares are counted.
    won = defaultdict(lambda: defaultdict(list))
    heldout = json.loads((run / "heldout.json").read_text())
    for vote in (v for v in votes if v["split"] == "heldout"):
        part = {"left": 1.0, "right": 0.0, "tie": 0.5}[vote["choice"]]
        for one in vote["left"]["by"]:
            for other in vote["right"]["by"]:
                won[one, vote["prompt"]][other].append(part)
                won[other, vote["prompt"]][one].append(1 - part)
    models = {**heldout["sources"], "plain average": heldout["average"], "best": heldout["best"]}
    for name, model in models.items():
        for d, share in enumerate(model["scores"]["style"]):
            same = 3 - len(won[name, d])  # others that wrote the same
            assert share == pytest.approx((sum(map(np.mean, won[name, d].values())) + 0.5 * same) / 3)
        assert model["heldout"] == pytest.approx(np.mean(model["scores"]["style"]))
    assert main(["report", str(run)]) == 0


@pytest.mark.slow
def test_a_run_that_is_killed_has_its_votes(config, tmp_path):
    """And nothing of a private task's texts, which people alone have seen."""
    config["tasks"][0]["private"] = True
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jevomerge", "evolve", str(file), "--output", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        link = next(found[1] for line in process.stdout if (found := re.search(r"judges at (http\S+)", line)))
        asked = []
        while len(asked) < 4:
            asked += [a] if (a := answer(link)) else []
        process.kill()
    before = votes_of(run)
    assert len(before) == 4
    rater = Rater()
    evolve(file, output=run, observer=rater, resume=True)
    votes = votes_of(run)
    assert votes[:4] == before
    assert len(votes) == 4 + len(rater.asked)
    texts = {a[k]["text"] for a in (*asked, *rater.asked) for k in ("prompt", "left", "right")}
    files = (p.read_bytes() for p in run.rglob("*") if p.is_file() and p.suffix != ".safetensors")
    there = b"".join(files).decode("latin-1")
    assert [t for t in texts if len(t) > 8 and (t in there or json.dumps(t)[1:-1] in there)] == []


def test_what_cannot_be_is_refused(config, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jevomerge", "evolve", str(file), "--output", str(tmp_path / "run"), "--offline"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--offline: people judge style in a page, behind a socket" in refused.stderr
    for key, value, message in (
        ("anchors", {"examples": 2}, r"search\.anchors: not with tasks that people judge such as style"),
        ("racing", "exact", r"search\.racing: not with style"),
        ("examples_per_generation", 2, "people judge style, and are asked about what tells most"),
    ):
        search = {**config["search"], key: value}
        with pytest.raises(InputError, match=message):
            evolve({**config, "search": search}, output=tmp_path / "run", observer=SILENT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config["tasks"][0]["score"]["people"]["port"] = taken.getsockname()[1]
        with pytest.raises(InputError, match=r"cannot be used .*give another `port`"):
            evolve(config, output=tmp_path / "run", observer=SILENT)
    assert not (tmp_path / "run").exists()


def test_people_do_not_judge_a_model_alone(config, siblings, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config["tasks"][0]))
    assert main(["evaluate", str(siblings / "base"), "--task", str(tmp_path / "task.yaml")]) == 2
    assert "people compare models with each other" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "nsga2"])
def test_people_are_one_judge_of_two(strategy, config, siblings, tmp_path):
    """By weight, or as a goal of its own: with what the metric scores of the same candidates."""
    metric = {"name": "stories", "prompt": "{begin}", "answer": "{end}", "weight": 3.0}
    metric |= {s: {"path": str(siblings / f"{s}.jsonl"), "limit": 4} for s in ("search", "heldout")}
    search = config["search"] | {"strategy": strategy, "finalists": 2}
    values = evolve(
        {**config, "tasks": [*config["tasks"], metric], "search": search}, output=tmp_path / "run", observer=Rater()
    ).values
    heldout = json.loads((tmp_path / "run" / "heldout.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    for record in records:
        liked, likely = record["scores"]["style"], record["scores"]["stories"]
        assert (len(liked), len(likely)) == (1, 4)
        assert record["fitness"] == pytest.approx((liked[0] + 3 * np.mean(likely)) / 4, abs=1e-5)
    best = heldout["best"]["scores"]
    assert values["best"]["heldout"] == pytest.approx((np.mean(best["style"]) + 3 * np.mean(best["stories"])) / 4)
    if strategy == "nsga2":
        for point in (point for point in values["front"] if "heldout" in point):
            assert 0 <= point["heldout"]["style"] <= 1
    assert main(["report", str(tmp_path / "run")]) == 0
