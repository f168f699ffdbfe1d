"""Idefics3's views against transformers: pixels, rows and columns, what stands in a text for them."""

import numpy as np
import pytest
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from jevomerge.models.idefics3.idefics3 import PROCESSORS
from jevomerge.models.idefics3.splitting import text_of
from jevomerge.models.vision.processor import read_processor
from tests.seeing import picture

SIZES = [(30, 50), (64, 64), (20, 100), (100, 21), (28, 28), (27, 29), (7, 9), (1, 1), (1, 90), (90, 1), (200, 133)]
CASES = {
    "as released": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}},
    "one view": {"size": {"longest_edge": 28}, "max_image_size": {"longest_edge": 28}},
    "odd": {"size": {"longest_edge": 61}, "max_image_size": {"longest_edge": 28}},
    "not split": {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}, "do_image_splitting": False},
    "not resized": {"do_resize": False, "max_image_size": {"longest_edge": 28}, "do_pad": True},
    "stretched": {"size": {"height": 30, "width": 90}, "max_image_size": {"longest_edge": 28}, "resample": 2},
    "at most 4096": {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 512}},
}


@pytest.mark.parametrize("case", CASES)
def test_views_are_those_of_transformers(case):
    values = CASES[case]
    theirs = Idefics3ImageProcessorPil(**values)
    kinds = ("Idefics3ImageProcessor", "SmolVLMImageProcessorPil")
    ours, smol = (read_processor(values | {"image_processor_type": k}, PROCESSORS, "a.json") for k in kinds)
    assert ours == smol == read_processor(theirs.to_dict(), PROCESSORS, "a.json")
    for size in [(3, 400)] if case == "at most 4096" else SIZES:
        found, image = ours.views(picture(*size), ""), picture(*size)
        for kind in (theirs, SmolVLMImageProcessorPil(**values)):
            expected = kind([[image]], return_row_col_info=True)
            np.testing.assert_array_equal(found, expected["pixel_values"][0])
            assert ours.grid(image.size) == (expected["rows"][0][0], expected["cols"][0][0])


@pytest.mark.parametrize("grid", [(0, 0), (1, 2), (3, 4)])
def test_texts_are_those_of_transformers(grid):
    processor = object.__new__(Idefics3Processor)
    processor.fake_image_token, processor.global_image_tag = "<fake_token_around_image>", "<global-img>"
    processor.image_token, processor.image_seq_len = "<image>", 5
    expected = processor.replace_image_token({"rows": [[grid[0]]], "cols": [[grid[1]]]}, 0)
    assert text_of(grid, "<image>" * 5) == expected
