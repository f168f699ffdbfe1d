"""Picture tasks: what is drawn does not depend on who is drawn beside it, and broken pictures are the worst."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jevomerge.errors import InputError
from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.ready import make_ready
from jevomerge.fitness.rollouts.drawing import Asked, smaller
from jevomerge.models.diffusion.pipeline import draw, noise_keys
from jevomerge.models.specs import flatten, unflatten
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from tests.pipelines import FILES, write_minis

PROMPTS = ["柴犬", "a cat", "a hill", "雪"]
seen = []  # what the judge has been shown


def judge_of_tests(pictures, rows):
    seen.extend(zip((row["text"] for row in rows), pictures, strict=True))
    return pictures.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_minis(tmp_path_factory.mktemp("minis"), ("base", "a"))
    lines = [json.dumps({"text": text, "en": f"<{text}>"}) + "\n" for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(lines))
    return folder


def task(folder, **changes):
    source = {"path": str(folder / "prompts.jsonl")}
    given = {
        "name": "pictures", "search": source | {"rows": [0, 3]}, "heldout": source | {"rows": [3, 4]},
        "prompts": "{text}", "steps": 2, "guidance": 3, "scheduler": "euler",
        "score": {"function": judge_of_tests},
    }  # fmt: skip
    return PictureTask.model_validate({k: v for k, v in (given | changes).items() if v is not None})


def sources(folder, **more):
    models = [{"model": str(folder / "base")}]
    return Sources(Recipe.model_validate({"merge_method": "passthrough", "models": models, **more}))


def judge(folder, opened, splits=("search",), size=16384, **changes):
    ready = make_ready([task(folder, **changes)], None, opened.model, assembly=opened.assembly)
    return make_judge(ready, opened.model, splits=splits, tokens_per_batch=size)


def drawn(folder, opened, split="search", **changes):
    """Scores, and the pictures that were judged, by prompt."""
    seen.clear()
    scores = judge(folder, opened, (split,), **changes).model(opened.load()[0][0], split)
    pictures = {}
    for text, picture in seen:
        pictures.setdefault(text, []).append(picture)
    return scores, pictures


def test_noise_is_the_same_in_every_batch():
    keys = noise_keys(PROMPTS * 2, [0] * 4 + [1] * 4)
    whole = jax.jit(lambda keys: draw(keys, (8, 8, 1), 2))(keys)
    for start, stop in ((0, 1), (1, 4), (3, 8)):
        part = jax.jit(lambda keys: draw(keys, (8, 8, 1), 2))(keys[start:stop])
        np.testing.assert_array_equal(part, whole[:, start:stop])


def test_pictures_are_the_same_in_every_batch(folder):
    opened = sources(folder)
    _, all_at_once = drawn(folder, opened)
    _, one_by_one = drawn(folder, opened, size=1)
    assert all_at_once.keys() == one_by_one.keys() == {*PROMPTS[:3]}
    for text, [picture] in all_at_once.items():
        assert np.ptp(picture) > 50
        np.testing.assert_array_equal(picture, one_by_one[text][0])
    texts, seeds = drawn(folder, opened, seeds=[0, 7], negative="雪")[1], drawn(folder, opened, seeds=2)[1]
    np.testing.assert_array_equal(seeds["a cat"][0], all_at_once["a cat"][0])
    assert np.any(seeds["a cat"][0] != seeds["a cat"][1])
    assert np.any(texts["a cat"][0] != seeds["a cat"][0])


def test_texts_read_once_are_those_that_candidates_read(folder):
    """Candidates that have text encoders of their own make of prompts what is else made once."""
    own = sources(folder, parts=["unet", "text_encoder"])
    (_, once), (_, read) = drawn(folder, sources(folder)), drawn(folder, own)
    for text, [picture] in once.items():
        np.testing.assert_allclose(picture.astype(int), read[text][0], atol=1)
    other = own.load()[0][0]
    other["text_encoder"] = jax.tree.map(lambda x: 2 * x, other["text_encoder"])
    seen.clear()
    judge(folder, own).model(other, "search")
    assert any(np.any(picture != once[text][0]) for text, picture in seen)


def test_a_score_is_the_mean_over_seeds(folder):
    scores, pictures = drawn(folder, sources(folder), seeds=3)
    expected = [np.mean([p.mean() / 255 for p in pictures[text]]) for text in PROMPTS[:3]]
    np.testing.assert_allclose(scores.fitness["pictures"], expected, rtol=1e-6)
    assert len(scores.drawn["pictures"]) == 3
    assert not scores.broken


def test_people_see_the_very_pictures_of_each_seed(folder):
    """A document is a picture; what stands for the prompt is what is shown, and no score is known."""
    opened = sources(folder)
    _, pictures = drawn(folder, opened, seeds=2)
    people = judge(folder, opened, score="people", seeds=2, judged_by="{en}")
    (ready,), scores = people.tasks, people.model(opened.load()[0][0], "search")
    shown = [ready.output(made) for made in scores.made["pictures"]]
    for k, output in enumerate(shown):
        np.testing.assert_array_equal(output.pixels, pictures[PROMPTS[k // 2]][k % 2])
    assert len({output.digest for output in shown}) == len(shown) == 6
    documents = people.material["search"]["pictures"].documents
    assert [ready.prompt(d).shown["text"] for d in documents] == [f"<{p}>" for p in PROMPTS[:3] for _ in range(2)]
    assert np.isnan(scores.fitness["pictures"]).all()
    assert len(scores.drawn["pictures"]) == 6
    hidden = judge(folder, opened, score="people", seeds=2, private=True).model(opened.load()[0][0], "search")
    assert (hidden.drawn, len(hidden.made["pictures"])) == ({}, 6)


def test_heldout_pictures_have_other_noise(folder):
    assert task(folder, seeds=2).seeds_of("heldout") == (2, 3)
    assert task(folder, seeds=[0, 7]).seeds_of("heldout") == (8, 9)
    ready = make_ready([task(folder, seeds=2, judged_by="{en}")], None, None, assembly=sources(folder).assembly)
    assert ready[0].material("heldout").examples == [Asked("雪", "<雪>", 2), Asked("雪", "<雪>", 3)]


@pytest.mark.parametrize("value", [np.nan, 1e9])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_broken_pictures_are_the_worst(folder, value, bounds):
    """Of NaN, and all black: nothing raises, nobody is asked to judge them, and they are counted."""
    opened = sources(folder)
    leaves = flatten(opened.load()[0][0])
    leaves["unet.conv_out.bias"] = jnp.full_like(leaves["unet.conv_out.bias"], value)
    seen.clear()
    own = {"function": judge_of_tests, "bounds": bounds}
    found = judge(folder, opened, score=own)
    scores = found.model(unflatten(leaves), "search")
    assert seen == []
    assert scores.broken == {"pictures": 3}
    np.testing.assert_array_equal(scores.fitness["pictures"], [np.nan if bounds is None else -1.0] * 3)


def test_small_pictures():
    pictures = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 512, 768, 3)), jnp.uint8)
    found = smaller(pictures)
    assert found.shape == (2, 128, 192, 3)
    np.testing.assert_allclose(found[1, 3, 5], np.asarray(pictures)[1, 12:16, 20:24].mean(axis=(0, 1)), atol=0.51)
    assert smaller(pictures[:, :24, :16]).shape == (2, 24, 16, 3)


def test_scorers_judge_on_the_device(folder, tmp_path):
    """CLIP's score of the very pictures, told what `judged_by` says."""
    from jevomerge.fitness.scorers.registry import open_scorer
    from tests import clips

    clips.make(tmp_path)
    opened = sources(folder)
    _, pictures = drawn(folder, opened)
    found, _ = drawn(folder, opened, score="clip", weights=str(tmp_path), judged_by="{en}")
    scorer = open_scorer("clip", str(tmp_path))
    params = scorer.load()
    images = jnp.asarray(np.stack([pictures[text][0] for text in PROMPTS[:3]]), jnp.float32) / 255
    expected = scorer.score(params, images, scorer.told([f"<{text}>" for text in PROMPTS[:3]], params))
    np.testing.assert_allclose(found.fitness["pictures"], expected, atol=0.3)  # these were rounded to 256 colours
    assert np.ptp(expected) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": None}, "PNDMScheduler"),
        ({"size": 12, "scheduler": "lcm", "steps": 60}, "steps: 60: must be 1 to 50"),
        ({"score": "clip", "weights": "/nowhere"}, "/nowhere"),
        ({"score": "aesthetic"}, "`weights` is missing"),
        ({"score": {"function": len}}, "is called with"),
    ],
)
def test_what_cannot_be_drawn_or_judged_is_refused(folder, changes, message):
    with pytest.raises(InputError, match=message):
        make_ready([task(folder, **changes)], None, None, assembly=sources(folder).assembly)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 0, "negative": "a cat"}, "`negative` takes `guidance` above 1"),
        ({"seeds": [0, 0]}, "give each seed once"),
        ({"seeds": 0}, "one seed or more"),
        ({"score": "aestetic"}, "did you mean `aesthetic`"),
        ({"score": {"function": "m:f", "of": "texts"}}, "judges no pictures"),
        ({"weights": "somewhere"}, "`weights` is of a scorer"),
        ({"score": "people", "clip": "somewhere"}, "`clip` is of a scorer, .*; people needs none"),
        ({"score": "peopel"}, "did you mean `people`"),
    ],
)
def test_what_means_nothing_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        task(folder, **changes)


def test_texts_and_pictures_are_told_apart(folder):
    """A pipeline writes no texts, and what writes texts draws nothing."""
    from jevomerge.fitness.schema import Task

    source = {"path": str(folder / "prompts.jsonl")}
    texts = Task(name="t", search=source, heldout=source, prompt="{text}", answer="{en}")
    with pytest.raises(InputError, match="image pipelines write no texts; give `prompts`"):
        make_ready([texts], None, None, assembly=sources(folder).assembly)
    with pytest.raises(InputError, match="drawn by image pipelines, and these models are none"):
        make_ready([task(folder)], None, None)


@pytest.mark.slow
def test_judges_of_folders_are_given_pipelines(folder):
    """Sources as they would be exported: a U-Net of their own in the pipeline of the first."""
    from jevomerge.fitness.schema import FunctionTask
    from jevomerge.genome.schema import Gene
    from jevomerge.problems.weights import WeightProblem
    from jevomerge.search.baselines import score_baselines

    found = []

    def parts(path):
        found.append(
            {p.name: load_file(next(p.glob("*.safetensors"))) for p in path.iterdir() if [*p.glob("*.safet*")]}
        )
        return 0.5

    models = [{"model": str(folder / name)} for name in ("base", "a")]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})
    problem = WeightProblem(recipe, {"weight": Gene.model_validate([0, 1])})
    own = FunctionTask.model_validate({"name": "parts", "score": {"function": parts, "of": "folder"}})
    ready = make_ready([own], problem.tokenizer(), problem.model, assembly=problem.sources.assembly)
    candidates = problem.load()
    score_baselines(problem, make_judge(ready, problem.model), candidates, lambda stage: None)
    last = found[-1]  # of `a`
    for part, whose in (("unet", "a"), ("text_encoder", "base")):
        for name, x in load_file(folder / whose / FILES[part]).items():
            np.testing.assert_array_equal(last[part][name], x)
