"""What a picture task draws, against diffusers with the same noise."""

import json

import jax
import numpy as np
import pytest
import torch

from jevomerge.fitness.judge import make_judge
from jevomerge.fitness.picture_task import PictureTask
from jevomerge.fitness.ready import make_ready
from jevomerge.models.diffusion.pipeline import draw, noise_keys
from jevomerge.recipe.schema import Recipe
from jevomerge.recipe.sources import Sources
from tests.diffusion import make

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, NumPy 2
PROMPTS, SEEDS, NEGATIVE = ["柴犬", "a cat on a hill"], (0, 5), "blurred"
seen = []


def look(pictures, rows):
    seen.extend(zip((row["text"] for row in rows), pictures, strict=True))
    return np.zeros(len(rows))


def test_pictures_are_those_of_diffusers(tmp_path):
    """SDXL's kind: two texts, two seeds, guidance away from a text; colours differ by one of 256 at most."""
    theirs = make(tmp_path / "made")
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    task = PictureTask(
        name="t", search=str(tmp_path / "prompts.jsonl"), heldout=str(tmp_path / "prompts.jsonl"), prompts="{text}",
        steps=2, guidance=3, negative=NEGATIVE, size=32, seeds=SEEDS, score={"function": look},
    )  # fmt: skip
    models = [{"model": str(tmp_path / "saved")}]
    opened = Sources(Recipe.model_validate({"merge_method": "passthrough", "models": models}))
    judge = make_judge(
        make_ready([task], None, opened.model, assembly=opened.assembly), opened.model, splits=["search"]
    )
    judge.model(opened.load()[0][0], "search")
    asked = [(text, seed) for text in PROMPTS for seed in SEEDS]
    assert [text for text, _ in seen] == [text for text, _ in asked]
    noise = np.asarray(jax.jit(lambda keys: draw(keys, (16, 16, 4)))(noise_keys(*zip(*asked, strict=True))))[0]
    with torch.no_grad():
        expected = theirs(
            [text for text, _ in asked],
            negative_prompt=[NEGATIVE] * 4,
            num_inference_steps=2,
            guidance_scale=3,
            height=32,
            width=32,
            latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
            output_type="np",
        ).images
    found = np.stack([picture for _, picture in seen])
    assert np.abs(found - expected * 255).max() < 1
    assert np.ptp(expected, axis=0).mean() > 0.1  # they are different pictures
