"""Refinement: the gradient is that of the model in float64, what has none stays, and in a run it helps."""

import dataclasses
import json
import shutil

import cma
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.devices.mesh import make_mesh
from jevomerge.search.refine import shortened
from jevomerge.search.setup import refiner_of, set_up
from jevomerge.strategies.registry import make_strategy
from jevomerge.strategies.schema import Refine


def configured(siblings, tmp_path, *changes):
    """A copy of the siblings' run; `changes`: (old, new) in its text."""
    copy = tmp_path / "siblings"
    if not copy.exists():
        shutil.copytree(siblings, copy)
    (copy / "other.yaml").write_text((copy / "task.yaml").read_text().replace("name: stories", "name: other"))
    text = (copy / "run.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (copy / "changed.yaml").write_text(text)
    return copy / "changed.yaml"


SEARCH = "search: {evaluations: 120, checkpoint_every: 2}"
TASKS = "tasks: [task.yaml]"
HARNESS = "tasks: [{harness: {task: arc_easy}, search: {rows: [0, 5]}, heldout: {rows: [5, 9]}}]"


def refiner_on(config, mesh=None, **refine):
    setup = set_up(read_run(config).model_copy(update={"refine": Refine(**refine)}))
    if mesh is not None:
        setup = dataclasses.replace(setup, judge=setup.judge.on(mesh))
    return refiner_of(setup, setup.problem.load(setup.mesh)), setup


# --- the gradient -------------------------------------------------------------------------------------------


class Torch:
    """The losses of the siblings' merge in float64, with transformers' Llama and weights merged by NumPy."""

    def __init__(self, folder, setup):
        import torch
        from transformers import AutoModelForCausalLM

        self.sources = [load_file(folder / name / "model.safetensors") for name in ("front", "back")]
        self.model = AutoModelForCausalLM.from_pretrained(folder / "base").to(torch.float64)
        self.problem = setup.problem

    def load(self, genome):
        import torch

        values = self.problem.values(np.asarray(genome, np.float64))
        state = {}
        for name, tensor in self.sources[0].items():
            layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else None
            group = "embedding" if "embed" in name else "head" if layer is None else None
            group = group or {0: "layers 0-1", 1: "layers 2-3", 2: "layer 4"}[layer // 2]
            w = np.array([values[f"{group}/{source}/weight"] for source in ("front", "back")])
            merged = (w[0] * tensor.astype(np.float64) + w[1] * self.sources[1][name]) / w.sum()
            state[name] = torch.tensor(merged)
        missing = self.model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        self.model.tie_weights()

    def loss(self, objective, genome, batch):
        import torch

        self.load(genome)
        values, weights = [], []
        for row, valid, length in zip(batch.tokens, batch.valid, batch.answer_length, strict=True):
            tokens = np.asarray(row)[np.asarray(valid)].tolist()
            with torch.no_grad():
                logs = torch.log_softmax(self.model(torch.tensor([tokens])).logits[0], -1).numpy()
            if objective == "likelihood":
                start = len(tokens) - int(length)
                values.append(-logs[range(start - 1, len(tokens) - 1), tokens[start:]].mean())
                weights.append(1)
            else:
                values += list(-(np.exp(logs) * logs).sum(axis=1))
                weights += [1] * len(tokens)
        return np.average(values, weights=weights)


@pytest.mark.parametrize("objective", ["likelihood", "entropy"])
def test_the_gradient_is_that_of_the_model_in_float64(objective, siblings):
    """As a step of gradient descent shows it."""
    settings = {"optimizer": "sgd", "learning_rate": 0.03, "steps": 1, "examples_per_step": 3}
    refiner, setup = refiner_on(siblings / "run.yaml", objective=objective, **settings)
    genome = np.random.default_rng(0).uniform(0.2, 0.8, len(setup.problem.names)).astype(np.float32)
    key = jax.random.key(0)
    [(value, end)] = refiner.walk(genome, key)
    gradient = (genome.astype(np.float64) - end) / 0.03  # no gene meets its bound
    batches = refiner.batches(jax.random.fold_in(key, 0))

    torch = Torch(siblings, setup)
    assert value == pytest.approx(torch.loss(objective, genome, *batches), rel=1e-5)
    h, expected = 4e-3, []  # fourth order: transformers' norms compute in float32, which a smaller step would show
    middle = [i for i, name in enumerate(setup.problem.names) if name.startswith("layer")]
    for i in middle:
        unit = np.arange(len(genome)) == i
        near, far = (
            [torch.loss(objective, genome.astype(np.float64) + sign * step * unit, *batches) for sign in (1, -1)]
            for step in (h, 2 * h)
        )
        expected.append((8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h))
    scale = np.abs(expected).max()
    assert scale > 0.01
    np.testing.assert_allclose(gradient[middle], expected, rtol=1e-3, atol=1e-4 * scale + 5e-6)
    np.testing.assert_allclose(np.delete(gradient, middle), 0, atol=1e-5)  # embedding and head are the same in both


@pytest.mark.slow
def test_the_same_on_a_mesh(siblings):
    settings = {"steps": 1, "examples_per_step": None}
    genome = np.full(8, 0.5)
    ends = []
    for mesh in (None, make_mesh(4, 2)):
        refiner, setup = refiner_on(siblings / "run.yaml", mesh, **settings)
        ends.append(refiner(np.resize(genome, len(setup.problem.names)), jax.random.key(0)))
    assert np.abs(ends[0] - 0.5).max() > 0.01
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4)


def test_the_loss_falls_in_the_box_and_what_has_no_gradient_stays(siblings):
    refiner, setup = refiner_on(siblings / "run.yaml", steps=12, learning_rate=0.05, examples_per_step=None)
    refiner.free = np.arange(len(setup.problem.names)) != 4
    start = np.random.default_rng(0).uniform(0.4, 0.6, len(refiner.free))
    steps = list(refiner.walk(start, jax.random.key(0)))
    assert steps[-1][0] < steps[0][0] - 0.05
    genomes = np.array([genome for _, genome in steps])
    assert 0 <= genomes.min() <= genomes.max() <= 1
    assert ((genomes == start).all(axis=0) == ~refiner.free).all()


def test_which_genes_have_no_gradient(siblings, tmp_path):
    config = configured(
        siblings,
        tmp_path,
        ("merge_method: linear", "merge_method: ties\n  base_model: base"),
        ("genome:", "refine: {}\ngenome:\n  density: [0, 1]\n  normalize: [0, 1]"),
    )
    setup = set_up(read_run(config))
    weights = [name.endswith("/weight") for name in setup.problem.names]
    np.testing.assert_array_equal(setup.problem.gradient, weights)
    [note] = [n for n in setup.problem.notes if n.startswith("refine")]
    assert "density, normalize: no gradient" in note


# --- between generations ------------------------------------------------------------------------------------


def test_shortened_as_the_author_of_cma_es_does():
    search = cma.CMAEvolutionStrategy([0.5] * 5, 0.1, {"seed": 1, "verbose": -9})
    for _ in range(8):
        population = search.ask()
        search.tell(population, [float(x @ np.arange(1, 6)) for x in population])
    genomes = np.random.default_rng(0).uniform(0, 1, (20, 5))
    state = {"mean": search.mean, "std": search.sigma, "C": search.C}
    expected = np.array([search.repair_genotype(x, copy_if_changed=True) for x in genomes])
    moved = (expected != genomes).any(axis=1)
    assert moved.sum() > 0
    np.testing.assert_allclose(shortened(state, genomes), np.clip(expected, 0, 1), atol=1e-9)


@pytest.mark.parametrize("name", ["cma_es", "sep_cma_es"])
def test_injected_genomes_are_no_farther_than_a_draw_may_be(name):
    size, key = 6, jax.random.key(0)
    strategy = make_strategy(name, size, 12)
    state, rng = strategy.init(key), np.random.default_rng(0)
    for generation in range(5):
        keys = jax.random.split(jax.random.fold_in(key, generation))
        population, state = strategy.ask(keys[0], state)
        target = np.linspace(0.2, 0.7, size)
        state = strategy.tell(keys[1], state, population, -((population - target) ** 2) @ np.arange(1, size + 1))
    population, state = strategy.ask(key, state)
    covariance = state["C"] if state["C"].ndim == 2 else np.diag(state["C"])
    inverse = np.linalg.inv(covariance * state["std"] ** 2)
    genomes = np.concatenate([rng.uniform(0, 1, (20, size)), population])
    moved = shortened(state, genomes)
    before, after = (
        np.sqrt(np.einsum("ki,ij,kj->k", x - state["mean"], inverse, x - state["mean"])) for x in (genomes, moved)
    )
    most = np.sqrt(size) + 2 * size / (size + 2)
    np.testing.assert_allclose(after, np.minimum(before, most), rtol=1e-6)
    assert (before[:20] > most).any()
    np.testing.assert_array_equal(moved[before < most], genomes[before < most])
    # One that is best pulls the mean towards itself.
    population = np.concatenate([population[:-1], moved[:1]])
    told = strategy.tell(key, state, population, np.arange(12.0))
    assert np.linalg.norm(told["mean"] - moved[0]) < np.linalg.norm(state["mean"] - moved[0])


# --- in a run -----------------------------------------------------------------------------------------------


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "crc32")} for r in records]


def test_a_run_between_generations_and_at_the_end(siblings, tmp_path):
    """Refined candidates are scored and recorded like others, help, and a killed run goes on as if it had not been."""
    refine = "search: {evaluations: 30}\nrefine: {every: 2, best: 2, steps: 4, learning_rate: 0.05}"
    config, run = configured(siblings, tmp_path, (SEARCH, refine)), tmp_path / "run"
    assert main(["evolve", str(config), "--output", str(run)]) == 0
    records, result = lines(run), json.loads((run / "result.json").read_text())
    size = json.loads((run / "environment.json").read_text())["population"]
    generations = 30 // size
    refined = [r for r in records if "refined" in r]
    expected = [(g, m) for g in range(2, generations, 2) for m in (size - 2, size - 1)]
    assert [(r["generation"], r["member"]) for r in refined] == [*expected, (generations, 0), (generations, 1)]
    by_place = {(r["generation"], r["member"]): r for r in records}
    for r in refined[-2:]:
        assert r["fitness"] > by_place[tuple(r["refined"])]["fitness"]
    best = records[result["best"]["evaluation"]]
    assert best["fitness"] == max(r["fitness"] for r in records)
    assert "refined" in best
    np.testing.assert_allclose(result["best"]["search"], best["fitness"], atol=1e-5)

    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "result.json").unlink()
    shutil.rmtree(again / "best")
    shutil.rmtree(again / "checkpoints")
    kept = (again / "evaluations.jsonl").read_text().splitlines(keepends=True)[: 3 * size - 1]  # one of two refined
    (again / "evaluations.jsonl").write_text("".join(kept))
    assert main(["evolve", "--resume", str(again)]) == 0
    assert without_times(lines(again)) == without_times(records)
    resumed = json.loads((again / "result.json").read_text())
    assert resumed["best"] == result["best"]
    assert resumed["tokens"] == result["tokens"]
    steps = len(refined) * 4
    examples = set_up(read_run(config)).judge.examples["search"]["stories"]
    assert result["tokens"]["gradients"] == {  # all examples at each step
        "prompt": steps * sum(len(e.prompt_tokens) for e in examples),
        "answer": steps * sum(len(e.answer_tokens) for e in examples),
    }


@pytest.mark.parametrize("objective", ["likelihood", "entropy"])
def test_tokens_are_those_of_the_rows_that_steps_see(objective, siblings):
    refiner, _ = refiner_on(siblings / "run.yaml", objective=objective, steps=3, examples_per_step=5)
    records = [{"generation": 2, "member": 6, "refined": [0, 1]}, {"generation": 2, "member": 7, "refined": [1, 3]}]
    records += [{"generation": 2, "member": 0}, {"generation": 4, "member": 0, "refined": [2, 6]}]
    keys = [refiner.key(*place) for place in ((2, 0), (2, 1), (4, 0))]
    batches = [b for key in keys for n in range(3) for b in refiner.batches(jax.random.fold_in(key, n))]
    read, answers = (sum(int(np.sum(getattr(b, name))) for b in batches) for name in ("valid", "answer_length"))
    assert refiner.tokens(records) == (read - answers, answers)
    assert (answers > 0) == (objective == "likelihood")
    assert refiner.tokens([]) == (0, 0)


def test_alone(siblings, tmp_path):
    """From a recipe, without a search: two candidates, and the gradient's is far better."""
    recipe = "  dtype: float32\n  parameters: {weight: 0.5}\nstart_from: recipe"
    refine = "search: {evaluations: 0}\nrefine: {steps: 15, learning_rate: 0.05}"
    config, run = configured(siblings, tmp_path, ("  dtype: float32", recipe), (SEARCH, refine)), tmp_path / "run"
    assert main(["evolve", str(config), "--output", str(run)]) == 0
    start, end = lines(run)
    result = json.loads((run / "result.json").read_text())
    assert start["fitness"] == pytest.approx(result["average"]["search"], abs=1e-5)
    assert end["refined"] == [0, 0]
    assert end["fitness"] > start["fitness"] + 0.1
    assert result["best"]["evaluation"] == 1
    assert result["best"]["heldout"] > result["average"]["heldout"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(SEARCH, "search: {evaluations: 0}")], "unless `refine`"),
        ([(SEARCH, "search: {strategy: snes}\nrefine: {every: 2}")], "snes cannot learn from candidates"),
        ([(SEARCH, "refine: {best: 99}")], "more than a generation"),
        ([(SEARCH, "search: {strategy: nsga2}"), (TASKS, "tasks: [task.yaml, other.yaml]")], "not with nsga2"),
        ([(TASKS, HARNESS)], "not with tasks of lm-evaluation-harness such as arc_easy"),
        (
            [("linear", "ties\n  base_model: base\n  parameters: {weight: 1}"), ("weight: {range", "density: {range")],
            "no gene",
        ),
        (
            [("genome:\n  weight: {range: [0, 1], layers_per_group: 2}", "path: {models: [front, back]}")],
            "through a path",
        ),
    ],
)
def test_what_cannot_be_refined_is_refused(changes, said, siblings, tmp_path, capsys):
    config = configured(siblings, tmp_path, *changes)
    text = config.read_text()
    if "path:" in text:
        head, tail = text.split("recipe:")[0], text[text.index("path:") :]
        text = head + tail
    config.write_text(text if "refine" in text or "evaluations: 0" in text else f"{text}\nrefine: {{}}\n")
    assert main(["evolve", str(config), "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
