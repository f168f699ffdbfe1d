"""Qwen2-VL's pictures against transformers: pixels to the bit, and sizes."""

import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from jevomerge import InputError
from jevomerge.models.qwen2_5_vl.qwen2_5_vl import PROCESSORS
from jevomerge.models.vision.processor import read_processor
from tests.seeing import picture

SIZES = [(30, 50), (64, 64), (20, 100), (100, 21), (28, 28), (27, 29), (1, 1), (1, 90), (190, 1), (42, 14), (200, 133)]
CASES = {
    "as released": {"min_pixels": 3136, "max_pixels": 12845056},
    "all defaults": {},
    "few pixels": {"min_pixels": 1, "max_pixels": 3000},
    "saved again": {"size": {"shortest_edge": 5000, "longest_edge": 20000}, "resample": 2, "image_std": [1, 2, 3]},
    "said twice": {"size": {"shortest_edge": 5000, "longest_edge": 20000}, "max_pixels": 9000},
    "other patches": {"patch_size": 7, "merge_size": 3, "temporal_patch_size": 1, "do_normalize": False},
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case):
    values = CASES[case]
    theirs = Qwen2VLImageProcessorPil(**values)
    names = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast")
    ours, fast = (read_processor(values | {"image_processor_type": n}, PROCESSORS, "a.json") for n in names)
    assert ours == fast == read_processor(theirs.to_dict(), PROCESSORS, "a.json")
    for size in SIZES:
        expected = theirs([picture(*size)])
        (_, rows, columns), m, p = expected["image_grid_thw"][0], ours.merge, ours.patch
        patches = expected["pixel_values"].reshape(rows // m, columns // m, m, m, 3, ours.frames, p, p)
        (found,) = ours.views(picture(*size), "")
        whole = found.reshape(3, rows // m, m, p, columns // m, m, p).transpose(1, 4, 2, 5, 0, 3, 6)
        for frame in range(ours.frames):
            np.testing.assert_array_equal(whole, patches[:, :, :, :, :, frame])


def test_sizes_are_those_of_transformers():
    ours = read_processor({"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 10**6}, PROCESSORS, "a.json")
    for width, height in np.random.default_rng(0).integers(1, 3000, (2000, 2)).tolist():
        if max(width, height) <= 200 * min(width, height):
            high, wide = smart_resize(height, width, 28, 56 * 56, 10**6)
            assert ours.resized((width, height), "") == (wide, high)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do_resize": False}, "do_resize: False"),
        ({"size": {"max_pixels": 9}}, "size: `shortest_edge` is missing"),
        ({"size": 28}, "size: 28` must be an object"),
        ({"min_pixels": "many"}, "min_pixels: many` must be a whole number"),
        ({"image_processor_type": "CLIPImageProcessor"}, "only Qwen2VL"),
    ],
)
def test_what_is_not_supported_is_refused(values, words):
    with pytest.raises(InputError, match=r"^a\.json") as caught:
        read_processor({"image_processor_type": "Qwen2VLImageProcessor"} | values, PROCESSORS, "a.json")
    assert words in str(caught.value)


def test_lines_are_refused():
    ours = read_processor({"image_processor_type": "Qwen2VLImageProcessor"}, PROCESSORS, "a.json")
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(1, 201)
    with pytest.raises(InputError, match=r"line\.png: 201 x 1 pixels are longer than 200 times the other side"):
        ours.views(picture(1, 201), "line.png")
