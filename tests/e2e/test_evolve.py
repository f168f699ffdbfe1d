"""The whole command, as a user runs it: on a real small merging problem, and with bad input; faults: `test_faults`."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jevomerge.cli import main
from jevomerge.config import read_run
from jevomerge.fitness.members import make_members, run_members
from jevomerge.reports.record import read_record, weight_space
from jevomerge.search.setup import set_up


@pytest.fixture(scope="module")
def run(siblings, tmp_path_factory):
    """A finished run of `siblings/run.yaml`, and how often each jitted function was traced on the way."""
    folder = tmp_path_factory.mktemp("runs") / "repair"
    jitted = (run_members, make_members)
    for function in jitted:
        function.clear_cache()
    assert main(["evolve", str(siblings / "run.yaml"), "--output", str(folder), "--debug"]) == 0
    traces = {f.__name__: f._cache_size() for f in jitted}
    return folder, json.loads((folder / "result.json").read_text()), traces


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_the_merge_repairs_what_no_source_can(run):
    _, result, _ = run
    for other in (*result["sources"].values(), result["average"]):
        assert result["best"]["heldout"] > other["heldout"] + 0.1
    genes = result["best"]["genome"]
    # `front` is damaged at the front, `back` at the back
    assert genes["layers 0-1/back/weight"] > 2 * genes["layers 0-1/front/weight"]
    assert genes["layer 4/front/weight"] > 2 * genes["layer 4/back/weight"]


def test_result_and_log_are_as_documented(run):
    folder, result, _ = run
    assert result.keys() == {
        "sources", "average", "best", "notes", "evaluations", "tokens", "seconds", "ran_on", "export"
    }  # fmt: skip
    assert result["tokens"].keys() == {"sources", "result"}  # neither gradients nor finalists
    models = len(result["sources"]) + 1  # and the average, each on what the result is scored on
    assert result["tokens"]["sources"] == {k: models * n for k, n in result["tokens"]["result"].items()}
    records = lines(folder)
    assert result["evaluations"] == len(records) == 120
    best = records[result["best"]["evaluation"]]
    assert best["fitness"] == max(r["fitness"] for r in records)
    np.testing.assert_allclose(np.mean(best["scores"]["stories"]), best["fitness"], atol=1e-5)
    assert {"config.yaml", "environment.json", "checkpoints", "best"} <= {p.name for p in folder.iterdir()}


def test_the_report_is_that_of_the_run(run, tmp_path):
    folder, result, _ = run
    page = (folder / "report.html").read_text()
    for row in (*result["sources"].values(), result["average"], result["best"]):
        assert f"{row['heldout']:.4f}".replace("-", "−") in page
    heldout = json.loads((folder / "heldout.json").read_text())
    for name, model in {**heldout["sources"], "average": heldout["average"], "best": heldout["best"]}.items():
        np.testing.assert_allclose(np.mean(model["scores"]["stories"]), model["heldout"], rtol=1e-6, err_msg=name)
    record = read_record(folder, read_run(folder / "config.yaml"))
    assert weight_space(record).values(record.genomes[record.best]) == result["best"]["genome"]
    assert main(["report", str(folder), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page


def test_its_card_is_written_again_as_it_was_and_what_people_wrote_is_left(run, tmp_path, capsys):
    shutil.copytree(run[0], folder := tmp_path / "again")
    files = [folder / "best" / name for name in ("README.md", "bom.cdx.json")]
    before = [path.read_text() for path in files]
    assert "| front |" in before[0]
    assert "└─ judged by stories: 16 examples chose, 8 held out" in before[0]
    assert main(["card", str(folder)]) == 0
    assert [path.read_text() for path in files] == before
    files[0].write_text(before[0] + "More.\n")
    assert main(["card", str(folder)]) == 2
    assert "README.md was changed since it was written, and is not overwritten" in capsys.readouterr().err
    assert files[0].read_text() == before[0] + "More.\n"


def test_what_was_scored_is_what_is_exported(run, siblings, tmp_path):
    folder, result, _ = run
    record = lines(folder)[result["best"]["evaluation"]]
    np.testing.assert_allclose(result["best"]["search"], record["fitness"], atol=1e-5)
    for split in ("search", "heldout"):
        out = tmp_path / f"{split}.json"
        arguments = ["--task", str(siblings / "task.yaml"), "--split", split, "--json", str(out)]
        assert main(["evaluate", str(folder / "best"), *arguments]) == 0
        np.testing.assert_allclose(
            json.loads(out.read_text())["results"]["stories"]["likelihood"], result["best"][split], atol=1e-6
        )


def test_the_export_is_an_ordinary_folder(run, siblings):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, result, _ = run
    model = AutoModelForCausalLM.from_pretrained(folder / "best")
    tokenizer = AutoTokenizer.from_pretrained(folder / "best")
    scores = []
    for line in (siblings / "heldout.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["begin"])["input_ids"]
        answer = [*tokenizer(row["end"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        scores.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].mean().item())
    np.testing.assert_allclose(np.mean(scores), result["best"]["heldout"], atol=1e-4)
    assert "license: mit" in (folder / "best" / "README.md").read_text()


@pytest.mark.parametrize("how", ["export best", "export number", "merge recipe"])
def test_the_same_weights_again(how, run, tmp_path):
    folder, result, _ = run
    commands = {
        "export best": ["export", str(folder), "--genome", "best"],
        "export number": ["export", str(folder), "--genome", str(result["best"]["evaluation"])],
        "merge recipe": ["merge", str(folder / "best" / "recipe.yaml")],
    }
    assert main([*commands[how], str(tmp_path / "out")]) == 0
    expected, found = (load_file(f / "model.safetensors") for f in (folder / "best", tmp_path / "out"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_everything_is_compiled_once(run, siblings):
    """Once per shape of batch, whatever the number of generations, members, sources and splits."""
    _, _, traces = run
    shapes = len(set_up(read_run(siblings / "run.yaml")).judge.layouts["stories"])
    assert shapes <= 2
    assert traces == {"run_members": 2 * shapes, "make_members": 0}  # merges and models


# --- bad input ----------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """Run a command that must exit with 2 and one message without a traceback."""
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("jevomerge: ")
    assert "Traceback" not in message
    return message


def with_run(siblings, tmp_path, old, new):
    """The siblings with one thing changed in run.yaml."""
    copy = tmp_path / "siblings"
    shutil.copytree(siblings, copy)
    text = (copy / "run.yaml").read_text()
    assert old in text
    (copy / "run.yaml").write_text(text.replace(old, new))
    return copy


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("merge_method: linear", "merge_method: liner", "did you mean `linear`"),
        ("evaluations: 120", "evaluations: 3", "less than one generation"),
        ("checkpoint_every: 2", "strategy: cmaes", "did you mean 'cma_es'"),
        ("checkpoint_every: 2", "strategy: pso, examples_per_generation: 4", "compares candidates across"),
        ("- model: front", "- model: nowhere", "neither a folder nor a hub name"),
        ("weight: {range", "wieght: {range", "has no parameter `wieght`"),
        ("merge_method: linear", "merge_method: ties", "needs a `base_model`"),
    ],
)
def test_bad_runs(old, new, expected, siblings, tmp_path, capsys):
    copy = with_run(siblings, tmp_path, old, new)
    assert expected in refused(capsys, "evolve", copy / "run.yaml", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nan_in_a_source_leaves_no_run_behind(siblings, tmp_path, capsys):
    copy = with_run(siblings, tmp_path, "name: repair", "name: broken")
    weights = load_file(copy / "back" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(weights, copy / "back" / "model.safetensors", metadata={"format": "pt"})
    message = refused(capsys, "evolve", copy / "run.yaml", "--output", tmp_path / "run")
    assert "layers.1.mlp.up_proj.weight contains NaN" in message
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(run, siblings, tmp_path, capsys):
    folder, *_ = run
    (tmp_path / "taken").mkdir()
    assert "exists already" in refused(capsys, "evolve", siblings / "run.yaml", "--output", folder)
    assert "exists already" in refused(capsys, "merge", folder / "best" / "recipe.yaml", tmp_path / "taken")
    assert "exists already" in refused(capsys, "export", folder, "--genome", "0", tmp_path / "taken")
    assert "is finished" in refused(capsys, "evolve", "--resume", folder)


def test_other_bad_commands(run, siblings, tmp_path, capsys):
    folder, *_ = run
    assert "no whole line of evaluation 120" in refused(capsys, "export", folder, "--genome", "120", tmp_path / "x")
    assert "neither `best` nor a number" in refused(capsys, "export", folder, "--genome", "-1", tmp_path / "x")
    assert "either a CONFIG" in refused(capsys, "evolve")
    assert "not a run folder" in refused(capsys, "evolve", "--resume", tmp_path / "none")
    assert "cannot be read" in refused(capsys, "evaluate", folder / "best", "--task", tmp_path / "none.yaml")


def test_changed_data_is_noticed_on_resume(run, siblings, tmp_path, capsys):
    copy = with_run(siblings, tmp_path, "name: repair", "name: changed")
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "result.json").unlink()
    data = (copy / "search.jsonl").read_text().splitlines()
    (copy / "search.jsonl").write_text("\n".join(data[1:]) + "\n")
    assert "has changed" in refused(capsys, "evolve", "--resume", tmp_path / "run")


def test_a_changed_source_is_noticed_on_resume(siblings, tmp_path, capsys):
    copy = with_run(siblings, tmp_path, "evaluations: 120", "evaluations: 10")
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "result.json").unlink()
    weights = load_file(copy / "back" / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in weights.items()}, copy / "back" / "model.safetensors")
    assert "back: weights changed since" in refused(capsys, "evolve", "--resume", tmp_path / "run")


def test_seed_and_minibatches(siblings, tmp_path):
    """Another seed is another search; with minibatches the winner is chosen on the whole search split."""
    copy = with_run(siblings, tmp_path, "evaluations: 120", "evaluations: 30, examples_per_generation: 4")
    results = []
    for seed in (1, 2):
        assert main(["evolve", str(copy / "run.yaml"), "--output", str(tmp_path / f"{seed}"), "--seed", str(seed)]) == 0
        records = lines(tmp_path / str(seed))
        assert all(len(r["scores"]["stories"]) == len(r["examples"]["stories"]) == 4 for r in records)
        generations = {r["generation"]: r["examples"]["stories"] for r in records}
        assert all(r["examples"]["stories"] == generations[r["generation"]] for r in records)
        assert len({tuple(x) for x in generations.values()}) > 1
        results.append(json.loads((tmp_path / str(seed) / "result.json").read_text()))
    assert results[0]["best"]["genome"] != results[1]["best"]["genome"]


def test_the_search_starts_from_a_recipe(siblings, tmp_path):
    """A stack of slices, whose coefficients in `start.yml` are where the first generation is drawn around."""
    stack = """
merge_method: linear
slices:
  - sources:
      - {model: front, layer_range: [2, 5], parameters: {weight: 0.9}}
      - {model: back, layer_range: [2, 5], parameters: {weight: 0.1}}
  - sources:
      - {model: front, layer_range: [0, 2], parameters: {weight: 0.2}}
      - {model: back, layer_range: [0, 2], parameters: {weight: 0.8}}
parameters: {normalize: false}
dtype: float32
"""
    (siblings / "start.yml").write_text(stack)
    (siblings / "started.yaml").write_text("""
name: started
start_from: start.yml
genome:
  weight: {range: [0, 1], layers_per_group: 3}
  normalize: [0, 1]
tasks: [task.yaml]
search: {evaluations: 20, sigma: 0.01, population: 10}
""")
    folder = tmp_path / "run"
    assert main(["evolve", str(siblings / "started.yaml"), "--output", str(folder), "--debug"]) == 0
    result = json.loads((folder / "result.json").read_text())
    genes = result["best"]["genome"]
    expected = {"embedding": 0.9, "layers 0-2": 0.9, "layers 3-4": 0.2, "head": 0.2}  # of model `front`
    for group, weight in expected.items():
        np.testing.assert_allclose(genes[f"{group}/front/weight"], weight, atol=0.1)
        np.testing.assert_allclose(genes[f"{group}/back/weight"], 1 - weight, atol=0.1)
    assert [genes[f"{group}/normalize"] for group in ("model",)] == [0]
    assert json.loads((folder / "best" / "config.json").read_text())["num_hidden_layers"] == 5
    # The run folder says all that is needed to go on; start.yml may change or vanish.
    (siblings / "start.yml").unlink()
    config = read_run(folder / "config.yaml")
    assert config.start_from == "recipe"
    assert set_up(config).problem.names == set_up(read_run(folder / "config.yaml")).problem.names


def test_several_members_at_once_score_the_same(run, siblings, tmp_path):
    """Groups of sixteen, two on each of eight devices, the last one filled up."""
    copy = with_run(siblings, tmp_path, "search: {evaluations: 120", "members_per_device: 2\nsearch: {evaluations: 10")
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(tmp_path / "run")]) == 0
    alone, together = lines(run[0])[:10], lines(tmp_path / "run")
    assert [r["genome"] for r in together] == [r["genome"] for r in alone]
    np.testing.assert_allclose([r["fitness"] for r in together], [r["fitness"] for r in alone], atol=1e-5)


@pytest.mark.slow  # a quick one without the models is in tests/unit/test_run_folder.py
def test_a_refined_genome_that_is_known_is_copied_also_after_a_crash(siblings, tmp_path):
    """Steps too short for float32 give the best back, which is then no new candidate, whoever scored it."""
    copy = with_run(siblings, tmp_path, "evaluations: 120", "evaluations: 20, population: 10")
    (copy / "run.yaml").write_text((copy / "run.yaml").read_text() + "refine: {steps: 1, learning_rate: 1.0e-12}\n")
    folder = tmp_path / "run"
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(folder), "--debug"]) == 0
    whole = (folder / "evaluations.jsonl").read_bytes()
    best = lines(folder)[-1]["copy_of"]
    assert best[1] > 0  # a member whose number no member of this generation has
    (folder / "evaluations.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "best")
    assert main(["evolve", "--resume", str(folder), "--debug"]) == 0
    assert (folder / "evaluations.jsonl").read_bytes() == whole


def test_fitness_by_generation_is_what_transformers_writes(siblings, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    copy = with_run(siblings, tmp_path, "evaluations: 120", "evaluations: 10")
    judged = "score: generation\npattern: '^ ?(\\w+)'\nmax_new_tokens: 5\n"
    task = (copy / "task.yaml").read_text().replace("score: likelihood\n", judged)
    (copy / "task.yaml").write_text(task)
    # The first word that follows, as the undamaged model writes it for half of these.
    rows = [
        ("Lily and", "her"),
        ("She was very", "happy"),
        ("The cat", "was"),
        ("One", "day"),
        ("Mom and", "Dad"),
        ("He", "ran"),
    ]
    for split, part in (("search", rows), ("heldout", [(f"{b} {e}", "a") for b, e in rows])):
        (copy / f"{split}.jsonl").write_text("".join(json.dumps({"begin": b, "end": e}) + "\n" for b, e in part))
    assert main(["evolve", str(copy / "run.yaml"), "--output", str(tmp_path / "run"), "--debug"]) == 0
    records = lines(tmp_path / "run")
    assert len({r["fitness"] for r in records}) > 1  # the test is about something
    number = max(range(len(records)), key=lambda i: records[i]["fitness"])
    assert main(["export", str(tmp_path / "run"), "--genome", str(number), str(tmp_path / "out")]) == 0
    model, tokenizer = (c.from_pretrained(tmp_path / "out") for c in (AutoModelForCausalLM, AutoTokenizer))
    correct = []
    for begin, end in rows:
        prompt = torch.tensor([tokenizer(begin)["input_ids"]])
        text = tokenizer.decode(model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :])
        correct.append(float((re.match(r" ?(\w+)", text) or ["", ""])[1] == end))
    assert records[number]["scores"]["stories"] == correct
    # What each model wrote is kept with its scores.
    best = json.loads((tmp_path / "run" / "heldout.json").read_text())["best"]
    first = [(re.match(r" ?(\w+)", text) or ["", ""])[1] for text in best["texts"]["stories"]]
    assert best["scores"]["stories"] == [float(word == "a") for word in first]
