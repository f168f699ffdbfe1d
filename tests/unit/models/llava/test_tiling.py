"""LLaVA-NeXT's tiles against transformers: pixels, numbers of tokens, packed features."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from jevomerge import InputError
from jevomerge.models.fields import Fields
from jevomerge.models.llava.llava import TILING_PROCESSORS, Llava
from jevomerge.models.llava.tiling import PINPOINTS, best, read_pinpoints, tiling
from jevomerge.models.vision.processor import read_processor
from tests.seeing import PINPOINTS as SMALL
from tests.seeing import picture

PAIRS = [tuple(p) for p in SMALL]
SIZES = [(30, 50), (64, 64), (20, 100), (100, 20), (28, 28), (56, 56), (57, 113), (200, 133), (7, 9), (1, 90), (90, 1)]


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        {"size": 28, "crop_size": 28, "resample": 2},
        {"size": {"height": 28, "width": 28}, "do_center_crop": False, "do_pad": False},
        {"size": 30, "crop_size": 28},  # views are cut once more
    ],
)
def test_views_are_those_of_transformers(values):
    values = values | {"image_grid_pinpoints": SMALL, "image_processor_type": "LlavaNextImageProcessor"}
    theirs = LlavaNextImageProcessorPil(**values)
    ours = read_processor(values, TILING_PROCESSORS, "preprocessor_config.json")
    assert ours == read_processor(theirs.to_dict(), TILING_PROCESSORS, "preprocessor_config.json")
    for size in SIZES:
        expected = theirs(picture(*size), return_tensors="np")
        np.testing.assert_array_equal(ours.views(picture(*size), ""), expected["pixel_values"][0])
        assert tuple(expected["image_sizes"][0]) == size


def test_as_many_tokens_as_transformers_puts_into_the_text():
    processor = object.__new__(LlavaNextProcessor)
    processor.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=SMALL)
    processor.patch_size, processor.num_additional_image_tokens = 7, 1
    for size in itertools.product(range(1, 140, 3), range(1, 140, 4)):
        assert tiling(size, PAIRS, 28, 4).tokens(4) == processor._get_number_of_features(*size, 28, 28) - 1


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (77, 140), (5, 140), (140, 5), (1, 139), (139, 1), (1, 1)])
def test_features_are_packed_as_by_transformers(size):
    model = object.__new__(LlavaNextModel)
    torch.nn.Module.__init__(model)
    vision = SimpleNamespace(image_size=28, patch_size=7)
    model.config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=SMALL)
    layout = tiling(size, PAIRS, 28, 4)
    rng = np.random.default_rng(0)
    newline = rng.normal(size=3).astype(np.float32)
    x = rng.normal(size=(1 + layout.grid[0] * layout.grid[1], 16, 3)).astype(np.float32)
    expected, _ = model.pack_image_features([torch.tensor(x)], [list(size)], "default", torch.tensor(newline))
    tower = SimpleNamespace(side=4)
    order = Llava.order(SimpleNamespace(config=SimpleNamespace(per_view=16, vision=tower)), layout)
    found = np.concatenate([x.reshape(-1, 3), newline[None]])[order]
    np.testing.assert_array_equal(found, expected[0].numpy())
    assert (0 in layout.kept) == (max(size) > 20 * min(size))  # of the longest pictures a side vanishes


@pytest.mark.parametrize(
    ("size", "resolution", "tokens"),
    [
        ((336, 336), (336, 672), 1176),
        ((480, 640), (672, 672), 2340),
        ((640, 480), (672, 672), 2352),
        ((672, 672), (672, 672), 2928),
        ((1080, 1920), (672, 672), 1948),
        ((1000, 100), (1008, 336), 1224),
        ((100, 1000), (336, 1008), 1160),
    ],
)
def test_known_pictures_of_the_real_model(size, resolution, tokens):
    assert best(size, PINPOINTS) == resolution
    assert tiling(size, PINPOINTS, 336, 24).tokens(24) == tokens


@pytest.mark.parametrize("pinpoints", [[], 3, [[336]], [[0, 336]], ["ab"]])
def test_what_is_no_list_of_resolutions_is_refused(pinpoints):
    with pytest.raises(InputError, match=r"^a\.json: image_grid_pinpoints must be a list"):
        read_pinpoints(Fields({"image_grid_pinpoints": pinpoints}, "a.json"))
