"""The miniature with image models: what it asks, what its models are, and that its README says what was measured."""

import gzip
import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from safetensors.numpy import load_file

import jevomerge as jm
from jevomerge.search.setup import problem_of

FOLDER = Path(__file__).parents[2] / "experiments" / "japanese_diffusion_mini"
NAMES = ("arguments", "tables", "clothes", "judge", "train", "tuning", "run", "table")


@pytest.fixture(scope="module")
def parts():
    """The experiment's modules by name, which import each other by their bare names."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


def test_every_prompt_is_read_and_no_two_are_one(parts):
    clothes = parts["clothes"]
    texts = [text for language in ("en", "ja") for of_class in clothes.prompts(language) for text in of_class]
    tokens = clothes.encoded(texts)
    assert len(np.unique(tokens, axis=0)) == len(set(texts)) == len(texts)
    assert clothes.make_tokenizer().unk_token_id not in tokens
    assert ((tokens[:, 0] == 0) & (tokens[:, -1] == 1)).all()
    searched, heldout = ({row["prompt"] for row in clothes.asked()[split]} for split in ("search", "heldout"))
    assert searched.isdisjoint(heldout)
    assert searched | heldout == {text for of_class in clothes.prompts("ja") for text in of_class}


def test_the_prompts_on_file_are_those_that_are_made(parts, tmp_path, monkeypatch):
    clothes = parts["clothes"]
    monkeypatch.setattr(clothes, "DATA", tmp_path)
    monkeypatch.setattr(sys, "argv", ["clothes.py"])
    clothes.main()
    for split in ("search", "heldout"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / "data" / f"{split}.jsonl").read_bytes()


def test_the_distance_is_that_between_normal_distributions(parts):
    rng, judge = np.random.default_rng(0), parts["judge"]
    one, other = rng.normal(size=(200, 8)), rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)) + 1
    a, b = np.cov(one.T), np.cov(other.T)
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert judge.frechet(one, other) == pytest.approx(expected, rel=1e-6)
    assert judge.frechet(one, one) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("task", "file"), [("task", "classifier"), ("task_outlines", "classifier_outlines")])
def test_the_fitness_is_how_probable_its_classifier_finds_what_was_asked_for(parts, task, file):
    """As PyTorch says of the same weights."""
    module, _, function = yaml.safe_load((FOLDER / f"{task}.yaml").read_text())["score"].partition(":")
    weights = {name: torch.from_numpy(x) for name, x in load_file(FOLDER / "models" / f"{file}.safetensors").items()}
    shown = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    x = torch.from_numpy(shown[..., 0] / np.float32(127.5) - 1)[:, None]
    for name in ("Conv_0", "Conv_1"):
        kernel = weights[f"{name}.kernel"].permute(3, 2, 0, 1)
        x = torch.max_pool2d(torch.relu(torch.conv2d(x, kernel, weights[f"{name}.bias"], padding=1)), 2)
    x = torch.relu(x.permute(0, 2, 3, 1).flatten(1) @ weights["Dense_0.kernel"] + weights["Dense_0.bias"])
    expected = torch.log_softmax(x @ weights["Dense_1.kernel"] + weights["Dense_1.bias"], dim=1).T
    found = [getattr(parts[module], function)(shown, [{"class": c}] * 2) for c in range(10)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_training_costs_what_a_search_does(parts):
    """In passes of a U-Net by a picture, less than a step of it left over."""
    train, tuning, ways = parts["train"], parts["tuning"], parts["tuning"].WAYS
    cost = {train.denoising: 3, train.distilling: 2 * 4 + 3}  # forward and twice that back; its teacher guided, 4 steps
    for way in (way for drawn in ways for way in ways[drawn].values()):
        spent = sum(way.steps(measure) * 64 * cost[measure] for measure in way.measures)
        assert 200 * 60 * 4 - 64 * sum(cost[m] for m in way.measures) < spent <= 200 * 60 * 4 == tuning.PASSES


def test_its_searches_have_as_many_genes_as_it_says(parts, tmp_path):
    run, counts = parts["run"], {}
    for name in ("evolved, 3 genes", "evolved, 6 genes", "evolved, blocks"):
        arm = run.SEARCHED[name]
        config = {"name": "run", "recipe": run.Bench(tmp_path, drawn=True).recipe(arm, 0), "genome": arm.genome}
        config |= {"tasks": [str(FOLDER / "task_outlines.yaml")], "search": {"evaluations": 9}}
        counts[name] = len(problem_of(jm.read_run(config)).space.names)
    assert counts == {"evolved, 3 genes": 3, "evolved, 6 genes": 6, "evolved, blocks": 30}


@pytest.mark.parametrize("name", ["base", "ja", "fast", "style"])
def test_its_models_are_diffusers_own(name):
    pipe = StableDiffusionXLPipeline.from_pretrained(FOLDER / "models" / name, vae=None)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        [file] = (FOLDER / "models" / name / part).glob("*.safetensors")
        # Transformers 5 leaves the prefix out of one of its two classes.
        prefix = "text_model." if part == "text_encoder" else ""
        written = {name.removeprefix(prefix): x for name, x in load_file(file).items()}
        read = {name: x.float().numpy() for name, x in getattr(pipe, part).state_dict().items()}
        assert read.keys() == written.keys()
        assert all(np.array_equal(read[name], written[name]) for name in read)


@pytest.mark.parametrize("part", ["pictures", "outlines"])
def test_the_readme_says_what_was_measured(parts, part, capsys):
    text, run = (FOLDER / "README.md").read_text(encoding="utf-8"), parts["run"]
    results = parts["arguments"].known(run.of_part(FOLDER / "results.json", part))
    parts["table"].tell(results, run.PARTS[part])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 40
    assert [line for line in printed if line not in text] == []
    assert results["rows"] == run.summary(results[run.ROOM])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, NumPy 2
def test_what_is_scored_is_what_diffusers_draws(parts):
    """Of the prompts of a split, from the same noise."""
    run, folder = parts["run"], FOLDER / "models" / "ja"
    texts, _, noise = run.asked("search")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, vae=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.asarray(noise[0]).transpose(0, 3, 1, 2).copy())
    side = 8 * parts["clothes"].SIZE  # without an autoencoder diffusers takes eight pixels for a latent
    given = {"height": side, "width": side, "original_size": (8, 8), "target_size": (8, 8)}
    theirs = pipe(
        list(texts), num_inference_steps=4, guidance_scale=0, latents=latents, output_type="latent", **given
    ).images
    expected = np.clip(theirs.numpy().transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255
    assert np.abs(run.pictures(folder, "search") - expected).max() < 1


@pytest.mark.slow
def test_a_model_learns_from_pictures_and_from_a_teacher(parts, tmp_path, monkeypatch):
    """The whole of `train.py` in few steps, from pictures made here."""
    clothes, train, rng = parts["clothes"], parts["train"], np.random.default_rng(0)
    labels = rng.integers(10, size=500).astype(np.uint8)
    pixels = np.full((500, 28, 28), 20, np.uint8) * (1 + labels[:, None, None])
    for name, content, header in (("images-idx3", pixels, 16), ("labels-idx1", labels, 8)):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + content.tobytes()))
    monkeypatch.setattr(clothes, "FOLDER", tmp_path)
    clothes.pictures.cache_clear()
    monkeypatch.setattr(train, "RUNS", {name: run._replace(steps=30) for name, run in train.RUNS.items()})
    batch, key = next(train.batches("en", 1, 9)), jax.random.key(9)

    def loss(measure, params, teacher):
        given, still = jax.tree.map(jnp.copy, params), dict.fromkeys(params, jnp.zeros(()))
        return float(train.step(measure, given, train.OPTIMIZER.init(given), teacher, batch, key, still)[2])

    with jax.numpy_dtype_promotion("standard"):  # which optax takes for granted
        start = train.beginning(0)
        base = train.learn("base", start)
        fast = train.learn("fast", base)
        assert loss(train.denoising, base, base) < 0.9 * loss(train.denoising, start, base)
        assert loss(train.distilling, fast, base) < 0.9 * loss(train.distilling, base, base)
    clothes.pictures.cache_clear()
    train.write(tmp_path / "made", fast, "Made.")
    read, texts = train.load(tmp_path / "made"), ("text_encoder", "text_encoder_2")
    assert all(np.abs(a - b).max() < 2e-3 for a, b in zip(*map(jax.tree.leaves, (read, fast)), strict=True))
    for part in texts:  # a student learns with its U-Net alone
        assert all(map(np.array_equal, *map(jax.tree.leaves, (fast[part], base[part]))))
