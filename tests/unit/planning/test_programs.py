"""What a run does once, beside its generations: as it is planned, and as it is done."""

import dataclasses
import json
import math
import re
from collections import Counter

import jax
import numpy as np
import optax
import pytest
from transformers import AutoTokenizer

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.devices.mesh import by_member, everywhere, put
from jevomerge.fitness import judge as judging
from jevomerge.fitness import members as running
from jevomerge.fitness.rollouts.rollout import make_batches
from jevomerge.fitness.slices import Placing
from jevomerge.planning.cost import cost_of
from jevomerge.planning.measure import bytes_per_device, plan_on
from jevomerge.planning.programs import programs, refining, scores_of
from jevomerge.planning.report import lines_of
from jevomerge.problems.problem import Whole
from jevomerge.reports.record import read_record, read_run_folder
from jevomerge.search import refine
from jevomerge.search.gradient import step
from jevomerge.search.setup import refiner_of, set_up
from tests.unit.devices.test_mesh import MODELS, mesh_of
from tests.unit.planning.test_measure import compiled, config_of, setup_of

REFINE = {"steps": 3, "examples_per_step": 5}


@pytest.mark.parametrize("objective", ["likelihood", pytest.param("entropy", marks=pytest.mark.slow)])
def test_the_gradient_step_is_that_of_the_run(objective):
    """Compiled from shapes, it takes the arrays of a real run, gives its genome, and needs what that step needs."""
    setup = set_up(config_of("ties", ("likelihood",), refine={**REFINE, "objective": objective, "steps": 1}))
    mesh = mesh_of(2, 2)
    setup = dataclasses.replace(setup, judge=setup.judge.on(mesh))
    refiner, key = refiner_of(setup, setup.problem.load(mesh)), jax.random.key(3)
    genome, where = np.full(len(setup.problem.names), 0.4, np.float32), everywhere(mesh)
    [(value, end)] = refiner.walk(genome, key)
    start = put(genome, where)
    momentum = jax.tree.map(lambda x: put(np.asarray(x), where), optax.adam(0.02).init(start))
    batches = refiner.batches(jax.random.fold_in(key, 0))
    real = (refiner.candidates, put(refiner.free, where), put(np.float32(0.02), where), (start, momentum), batches)

    [(program, executable)] = refining(setup, setup.judge, setup.problem.load(mesh, abstract=True), compiled)
    (moved, _), loss = executable(*real)
    assert float(loss) == value
    np.testing.assert_array_equal(np.where(refiner.free, np.asarray(moved, np.float64), genome), end)
    assert np.abs(end - genome).max() > 0.01
    names = ("objective", "optimizer", "mesh", "shares", "model", "rollouts", "layouts", "dtype")
    given = ("likelihood" if objective == "likelihood" else "entropy", "adam", mesh, (1.0,), setup.judge.subject)
    theirs = step.lower(
        *real, **dict(zip(names, (*given, refiner.rollouts, refiner.layouts, "float32"), strict=True))
    ).compile()
    use = plan_on(setup, mesh, 1, refining).uses[0]
    analysis = theirs.memory_analysis()
    assert use.temporaries == analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert program.once == {"gradients": 1}
    assert set(use.exchanged) == {"model"}  # slices of the population make the same step each


def test_whole_models_are_scored_as_the_plan_says():
    setup, mesh = setup_of("task_arithmetic", ("likelihood",)), mesh_of(2, 2)
    judge, checkpoint = setup.judge.on(mesh), Checkpoint(MODELS["japanese"])
    params = jax.tree.map(lambda x: x.astype(np.float32), checkpoint.load(mesh))
    [(program, executable)] = [
        (p, e)
        for p, e in programs(setup, judge, setup.problem.load(mesh, abstract=True), compiled)
        if p.name.endswith("whole")
    ]
    scores = []
    for split in judging.SPLITS:
        rollout, examples = judge.tasks[0].rollout, judge.examples[split]["likelihood"]
        parts = make_batches(rollout, judge.subject, examples, judge.layouts["likelihood"])
        members, place = put(np.zeros((2, 0), np.float32), by_member(mesh)), Placing(mesh)
        for _, index, batch in parts:
            likelihood, _ = executable(Whole(params), None, members, place([batch]))
            scores += list(np.asarray(likelihood)[0][index >= 0])
    expected = [judge.model(params, split).fitness["likelihood"] for split in judging.SPLITS]
    np.testing.assert_array_equal(np.sort(scores), np.sort(np.concatenate(expected).astype(np.float32)))
    parameters = sum(math.prod(s.leaf_shape) for s in setup.problem.sources.specs)
    size = bytes_per_device(program.model)
    assert size < parameters * 4 <= 2 * size  # split over two devices, but for norms
    assert program.once == {"sources": 3 * 2, "result": 2}  # two and their average; one batch of each split


def counting(monkeypatch, module, name, calls, kind):
    """Count the executions of a jitted function, which are made as ever."""
    function = getattr(module, name)

    def counted(*args, **static):
        calls[kind(*args)] += 1
        return function(*args, **static)

    monkeypatch.setattr(module, name, counted)


SAVINGS = {"minibatches": "examples_per_generation: 4, finalists: 3", "anchors": "anchors: {examples: 4}, finalists: 3"}


def counted_by_its_tokenizer(folder, split):
    """(2,) tokens of the prompts, and of the answers with their ends, of a split."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    prompts = [tokenizer(row["begin"])["input_ids"] for row in rows]
    answers = [tokenizer(row["end"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"] for row in rows]
    return np.array([sum(map(len, prompts)), sum(map(len, answers))])


@pytest.mark.parametrize("saving", ["minibatches", pytest.param("anchors", marks=pytest.mark.slow)])
def test_a_run_does_as_much_as_was_planned(saving, siblings, tmp_path, monkeypatch):
    text = (siblings / "run.yaml").read_text()
    search = f"search: {{evaluations: 30, population: 10, {SAVINGS[saving]}}}\nrefine: {{every: 2, best: 2, steps: 3}}"
    config = siblings / f"{saving}.yaml"
    config.write_text(re.sub(r"search: \{evaluations.*\}", search, text))
    setup = set_up(read_run(config))
    plan = plan_on(setup, setup.mesh, 1)
    planned = Counter()
    for use in plan.uses:
        kind = "whole" if use.name.endswith("whole") else use.kind
        planned[kind] += use.runs * plan.generations + sum(use.once.values())
    calls = Counter()
    for module in (judging, running):  # whoever calls it
        kind = lambda c, *_: "whole" if isinstance(c, Whole) else "score"  # noqa: E731
        counting(monkeypatch, module, "run_members", calls, kind)
    counting(monkeypatch, refine, "step", calls, lambda *_: "refine")
    assert main(["evolve", str(config), "--output", str(tmp_path / "run")]) == 0
    assert calls == {k: n for k, n in planned.items() if n}
    assert calls["refine"] == 3 * 2 * 2  # steps x best x (in generation 2, and after the search)
    search, heldout = (counted_by_its_tokenizer(siblings, split) for split in judging.SPLITS)
    expected = {  # a step's 16 examples are all there are; whole models are scored on both splits
        "gradients": 12 * search, "finalists": 3 * search, "sources": 3 * (search + heldout), "result": search + heldout
    }  # fmt: skip
    found = json.loads((tmp_path / "run" / "result.json").read_text())["tokens"]
    assert {k: [v["prompt"], v["answer"]] for k, v in found.items()} == {k: v.tolist() for k, v in expected.items()}
    record = read_record(tmp_path / "run", read_run_folder(tmp_path / "run"))
    lines = [json.loads(line)["tokens"] for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert record.spent == {"search": (sum(t["prompt"] for t in lines), sum(t["answer"] for t in lines))} | {
        k: tuple(v.tolist()) for k, v in expected.items()
    }


def test_refining_needs_memory_of_its_own():
    without = plan_on(setup_of("task_arithmetic", ("likelihood",)), mesh_of(1, 1), 1)
    both = [
        plan_on(
            set_up(config_of("task_arithmetic", ("likelihood",), refine={**REFINE, "examples_per_step": n})),
            mesh_of(1, 1),
            1,
        )
        for n in (2, 8)
    ]
    assert without.peak < both[0].peak < both[1].peak
    assert "gradients" not in without.work
    for plan in both:
        [use] = [u for u in plan.uses if u.kind == "refine"]
        assert plan.work["gradients"] == 3 * use.flops
        assert re.search(r"\(search .* %, gradients .* %\)", "\n".join(lines_of(plan, "here")))


def test_a_gradient_costs_about_three_forward_passes():
    """In matrix products; of the same rows."""
    config, mesh = config_of("task_arithmetic", ("likelihood",), refine={"examples_per_step": None}), mesh_of(1, 1)
    setup = set_up(config)
    candidates, judge = setup.problem.load(mesh, abstract=True), setup.judge.on(mesh)
    refiner = refiner_of(dataclasses.replace(setup, judge=judge), candidates)
    [layout] = refiner.layouts
    forward = scores_of(
        "likelihood", setup.judge.tasks[0].rollout, layout, setup.judge.on(mesh),
        (candidates, None, jax.ShapeDtypeStruct((1, len(setup.problem.names)), np.float32)), None, {},
    )  # fmt: skip
    ratio = cost_of(refiner.traced().jaxpr).matmul / cost_of(forward.traced.jaxpr).matmul
    assert 2.7 < ratio < 3.3
