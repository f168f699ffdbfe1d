"""Small pictures: of any size and form, few, and only where the page has a place for them."""

import base64
import io
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from jevomerge.fitness.task import of_examples
from jevomerge.models.vision.pictures import SIDE
from jevomerge.reports.thumbnails import MOST, thumbnail, with_thumbnails
from tests.unit.reports.test_page import model, task


def stored(width, height, mode="RGB", form="PNG"):
    y, x = np.mgrid[:height, :width]
    waves = 128 + 100 * np.sin(x / 40)[..., None] * np.cos(y / 25)[..., None] * np.ones(3)
    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(4000, 1000, (240, 60)), (50, 800, (15, 240)), (240, 180, (240, 180)), (16, 12, (240, 180)), (1, 1, (240, 240))],
)
def test_thumbnails_have_one_size(width, height, size):
    small = thumbnail(stored(width, height), "it")
    assert Image.open(io.BytesIO(small)).size == size
    assert len(small) < 20_000


@pytest.mark.parametrize(("mode", "form"), [("CMYK", "TIFF"), ("P", "GIF"), ("RGBA", "WEBP"), ("1", "PNG")])
def test_thumbnails_of_any_mode_are_jpegs(mode, form):
    small = Image.open(io.BytesIO(thumbnail(stored(300, 200, mode, form), "it")))
    assert (small.format, small.size[0]) == ("JPEG", SIDE)


class Shown(NamedTuple):
    content: bytes
    name: str = "it"


class Asked(NamedTuple):
    prompt: str
    answer: str
    pictures: tuple = ()


def test_pictures_are_kept_of_the_examples_that_the_page_lists():
    count = 60
    pictures = [(Shown(stored(8, 8)),) * (i % 7) for i in range(count)]
    material = of_examples([Asked(f"q{i}", "a", p) for i, p in enumerate(pictures)], None)
    scores = np.where(np.arange(count) % 3 == 0, 0.5, 1.0)  # a third is as good as the source
    heldout = {
        "examples": {"sums": [{"prompt": f"q{i}", "answer": "a"} for i in range(count)]},
        "sources": {"a": model(0.5, {"sums": [0.5] * count})},
        "average": None,
        "best": model(0.8, {"sums": scores.tolist()}),
    }
    found = with_thumbnails(heldout, [task()], {"sums": material})
    assert not any("pictures" in e for e in heldout["examples"]["sums"])  # a copy
    listed = [i for i, e in enumerate(found["examples"]["sums"]) if "pictures" in e]
    assert listed == [i for i in (1, 2, 4, 5, 7, 8, 10, 11, 13, 14) if i % 7]  # the first ten that are won
    kept = [len(found["examples"]["sums"][i]["pictures"]) for i in listed]
    assert kept == [min(i % 7, MOST) for i in listed]
    small = base64.b64decode(found["examples"]["sums"][1]["pictures"][0])
    assert small == thumbnail(stored(8, 8), "it")
    assert with_thumbnails(heldout | {"best": None}, [task()], {"sums": material}) == heldout | {"best": None}
