"""How long texts are taken to be, where models may wait, and the numbers of a plan as a file."""

import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jevomerge.cli import main
from jevomerge.config import RunConfig
from jevomerge.fitness.batches import Layout
from jevomerge.planning.chips import Chip, assumed_chip
from jevomerge.planning.lengths import Expected, expected_lengths, loops_of
from jevomerge.planning.measure import best_plan, plan_on
from jevomerge.planning.report import lines_of
from jevomerge.run.search import choose_mesh
from jevomerge.search.baselines import Baselines, lengths_of, score_model
from jevomerge.search.setup import set_up
from tests.unit.devices.test_mesh import KINDS, mesh_of
from tests.unit.planning.test_measure import Quiet, config_of, setup_of, with_memory

QUICKSTART = str(Path(__file__).parents[3] / "configs" / "quickstart.yaml")
NOTHING = {"examples": {}, "sources": {}, "average": None, "best": None}


def test_who_says_how_long_texts_are(tmp_path):
    setup = setup_of("task_arithmetic", ("generation",))
    (task,) = setup.config.tasks

    def lengths(setup, asked=None):
        (found,) = expected_lengths(setup, asked, tmp_path).values()
        return found[:2], found.told

    assert lengths(setup) == ((6, 6), "its `max_new_tokens`, for nobody said less")
    (tmp_path / "heldout.json").write_text(
        json.dumps(NOTHING | {"new_tokens": {"generation": {"mean": 2.5, "longest": 5}}})
    )
    assert lengths(setup) == ((2.5, 5), f"as the sources wrote in {tmp_path}")
    own = config_of("task_arithmetic", ("generation",))
    own = set_up(own.model_copy(update={"tasks": (task.model_copy(update={"expected_new_tokens": 4}),)}))
    assert lengths(own) == ((4, 4), "its `expected_new_tokens`")
    assert lengths(own, 3) == ((3, 3), "as asked for")
    assert lengths(own, 100)[0] == (6, 6)  # there is no more room
    rollout = setup.judge.tasks[0].rollout
    found = loops_of(rollout, Layout(8, 16, 6), Expected(2.5, 5, ""))
    assert found == {"decode": 4.0, "reach": 0.0}  # all wait for the longest
    refilled = loops_of(rollout, Layout(16, 16, 6, together=8), Expected(2.5, 5, ""))
    assert refilled["refill"] * refilled["decode"] == pytest.approx(2 * 1.5)
    # 120 to 134 slots are filled, of which 128 are read, then all; later texts lie where the longest ends.
    long, alone = (
        loops_of(rollout, Layout(n, 120, 40, together=m), Expected(15, 15, "")) for n, m in ((16, 8), (8, None))
    )
    assert alone["reach"] == pytest.approx(6 / 15)  # 129 to 134
    assert long["reach"] == pytest.approx((6 / 15 + 1) / 2)
    assert expected_lengths(setup_of("task_arithmetic", ("likelihood",)), 3, tmp_path) == {}


def test_lengths_on_record_are_those_of_the_texts():
    """Counted from texts with their ends, as the tokens were counted when these were written."""
    setup = setup_of("task_arithmetic", ("generation",))
    judge = setup.judge.on(mesh_of(1, 1))
    sources = {c.name: score_model(judge, c.load(judge.mesh), c.model) for c in setup.problem.checkpoints[:2]}
    found = lengths_of(judge, Baselines(None, sources))["generation"]
    spent = [s.heldout.tokens.answer for s in sources.values()]
    assert found["mean"] == pytest.approx(np.sum(spent) / (2 * 8), abs=0.5)
    assert found["mean"] <= found["longest"] <= 6


def planned(capsys, tmp_path, *more):
    """Exit status, what was said, and the numbers of a plan of the quickstart."""
    numbers = tmp_path / "numbers.json"
    status = main(["plan", QUICKSTART, "--json", str(numbers), *more])
    return status, capsys.readouterr().out, json.loads(numbers.read_text())


def test_a_device_that_is_too_small_and_what_fits_on_it(capsys, tmp_path):
    _, said, (device,) = planned(capsys, tmp_path, "--device-memory", "24GiB", "--new-tokens", "5")
    assert device["memory"] == "device"
    assert device["host"] == 0
    assert "texts of japanese_math: 5 tokens (as asked for)" in said
    assert f"useful: {100 * device['useful']:.0f} %" in said
    assert f"utilisation: {100 * device['utilisation']:.1f} % of the peak" in said
    (hours,) = re.findall(r"what is done once: ([\d.]+) s", said)
    assert float(hours) == pytest.approx(device["seconds"], rel=0.01)
    small = f"{(device['peak'] - device['sources'] / 2) / 1e9:.6f}GB"
    status, said, (host,) = planned(capsys, tmp_path, "--device-memory", small, "--host-bandwidth", "0.5")
    assert status == 0
    assert host["memory"] == "host"
    assert 0 < host["sources"] < 0.02 * host["host"]  # vectors
    assert host["sources"] + host["host"] == device["sources"]
    assert "memory: host: the models wait in that of the host" in said
    merge = host["programs"][0]
    assert merge["fetched"] == host["host"]
    assert merge["link"] == pytest.approx(host["host"] / 0.5e9)
    assert host["beside_scoring"] == pytest.approx(
        merge["runs"] * merge["seconds"] / host["seconds_per_generation"], rel=1e-6
    )
    least = f"{host['peak'] / 2 / 1e9:.6f}GB"
    status, said, (fewer,) = planned(capsys, tmp_path, "--device-memory", least)
    assert status == 0
    assert re.search(r"to make it fit: set `tokens_per_batch: \d+`", said)
    assert fewer["fits"]
    assert fewer["way"].startswith("set `tokens_per_batch")


def test_a_search_puts_models_where_they_fit(monkeypatch):
    """`evolve` on devices that say how much memory they have; and going on, with the scores that it began with."""
    fixed = {"mesh": {"pop": 8, "model": 1}, "members_per_device": 1}
    setups = {m: set_up(config_of("ties", ("generation",), memory=m, **fixed)) for m in ("auto", "device", "host")}
    setup, whole, hosted = setups["auto"], *(best_plan(setups[m], jax.devices()) for m in ("device", "host"))
    assert hosted.sources + hosted.host == whole.sources
    with_memory(monkeypatch, (hosted.peak + 1000) / 2**30)
    monkeypatch.setattr("jevomerge.run.search.memory_limit", lambda device: 1.0)
    heard = Quiet()
    chosen = choose_mesh(setups["host"], heard)
    assert chosen.memory == "host"
    assert [note.split(":")[1] for note in heard.notes] == [" host"]
    assert choose_mesh(setups["host"], Quiet(), "int8").memory == "int8"
    with_memory(monkeypatch, (hosted.peak + whole.sources / 4) / 2**30)
    assert choose_mesh(setup, Quiet(), "device").memory == "mesh"


def test_an_assumed_device_computes_in_the_dtype_of_the_weights():
    """A CPU computes in float32, and its compiler would keep a copy of all weights in it while texts are written."""
    recipe = {**KINDS["task_arithmetic"]["recipe"], "dtype": "bfloat16"}
    config = config_of("task_arithmetic", ("generation",), compute_dtype="bfloat16").model_dump()
    setup = set_up(RunConfig.model_validate({**config, "recipe": recipe}))
    here, there = (plan_on(setup, mesh_of(1, 1), 1, chip=chip) for chip in (None, assumed_chip("24GiB")))
    blocks = sum(math.prod(s.leaf_shape) for s in setup.problem.sources.specs if s.block and len(s.shape) == 2)
    assert here.uses[1].merged == there.uses[1].merged
    assert here.uses[1].temporaries - there.uses[1].temporaries > 0.9 * 4 * blocks


def test_parts_on_all_devices_are_gathered():
    setup, mesh = set_up(config_of("ties", ("generation",), memory="mesh")), mesh_of(4, 2)
    found, whole = plan_on(setup, mesh, 1), plan_on(setup_of("ties", ("generation",)), mesh, 1)
    assert found.memory == "mesh"
    vectors = sum(3 * 2 * math.prod(s.leaf_shape) for s in setup.problem.sources.specs if len(s.shape) < 2)
    assert found.sources - vectors == (whole.sources - vectors) / 4
    # Three quarters of what a slice has otherwise come from the others; a CPU may send it in float32.
    assert 0.99 < found.uses[0].exchanged["pop"] / (0.75 * (whole.sources - vectors)) < 2.01
    assert [use.merged for use in found.uses[:2]] == [use.merged for use in whole.uses[:2]]
    assert "pop" not in {**found.uses[1].exchanged, **whole.uses[0].exchanged}


def test_more_devices_for_a_candidate_if_that_is_much_faster():
    """Where reading weights takes the time, half of them for each device takes half of it."""
    setup, devices = (
        set_up(config_of("ties", ("generation",), search={"population": 4, "evaluations": 4})),
        jax.devices(),
    )
    chip = Chip("a chip", "", 1e18, 1e9, math.inf, 1e9)
    seconds = {m: plan_on(setup, mesh_of(8 // m, m), 1, chip=chip).generation for m in (1, 2, 4, 8)}
    best = 1
    while best < 8 and seconds[2 * best] < 0.8 * seconds[best]:
        best *= 2
    assert best > 1
    assert best_plan(setup, devices, chip).mesh.shape["model"] == best


def test_what_cannot_fit_is_not_compiled(monkeypatch):
    setup, mesh = setup_of("ties", ("generation",)), mesh_of(1, 1)
    whole = plan_on(setup, mesh, 1)
    for use, share in ((whole.uses[0], 0.99), (whole.uses[1], 1.01)):
        with_memory(monkeypatch, (whole.sources + whole.prepared + share * use.merged) / 2**30)
        found = plan_on(setup, mesh, 1)
        assert not found.fits
        assert found.failed == f"`{use.name}` needs more than there is"
        assert (found.uses[-1].name, found.uses[-1].flops, found.uses[-1].temporaries) == (use.name, 0, 0)
    assert found.uses[-1].cache == whole.uses[1].cache


@pytest.mark.slow
def test_the_memory_of_the_host_is_counted():
    setup = setup_of("ties", ("likelihood",))
    setups = {m: set_up(config_of("ties", ("likelihood",), memory=m)) for m in ("host", "int8")}
    chip = assumed_chip("24GiB")
    plans = {m: plan_on(s, mesh_of(1, 1), 1, chip=chip) for m, s in setups.items()}
    assert plans["int8"].host < plans["host"].host < plan_on(setup, mesh_of(1, 1), 1).sources
    few = plan_on(setups["host"], mesh_of(1, 1), 1, chip=chip._replace(host=plans["host"].host - 1.0))
    assert not few.fits
    assert not few.uses
    assert plan_on(setups["int8"], mesh_of(1, 1), 1, chip=chip._replace(host=plans["int8"].host)).fits
    assert any("task vectors in eight bits" in line for line in lines_of(plans["int8"], "here"))
