"""Pictures into pixels, bit for bit as transformers' PIL processors make them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jevomerge import InputError
from jevomerge.models.llava.llava import PROCESSORS
from jevomerge.models.vision.processor import read_processor
from tests.seeing import picture

SIZES = [(30, 50), (64, 64), (20, 100), (100, 21), (28, 28), (27, 29), (7, 9), (1, 1), (1, 5), (200, 133)]
CLIP, LLAVA, SIGLIP = CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil
CASES = {
    "clip": (CLIP, {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
    "clip, numbers": (CLIP, {"size": 30, "crop_size": 28}),
    "clip, stretched": (CLIP, {"size": {"height": 31, "width": 40}, "crop_size": [28, 26]}),
    "clip, black edges": (CLIP, {"size": 9, "crop_size": 28}),
    "clip, as it is": (CLIP, {"do_resize": False, "crop_size": 28}),
    "clip, no crop": (CLIP, {"size": [17, 28], "do_center_crop": False}),
    "clip, bare": (CLIP, {"size": 28, "crop_size": 28, "do_rescale": False, "do_normalize": False}),
    "clip, not scaled": (CLIP, {"size": 28, "crop_size": 28, "do_rescale": False}),
    "clip, own numbers": (
        CLIP,
        {
            "size": 28,
            "crop_size": 28,
            "resample": 2,
            "rescale_factor": 0.007,
            "image_mean": 0.4,
            "image_std": [1, 2, 3],
        },
    ),
    "clip, all defaults": (CLIP, {}),
    "siglip": (SIGLIP, {"size": {"height": 28, "width": 28}}),
    "siglip, a number": (SIGLIP, {"size": 28, "resample": 1}),
    "siglip, squared": (SIGLIP, {"size": 28, "default_to_square": True}),
    "llava": (LLAVA, {"size": {"shortest_edge": 28}, "crop_size": 28}),
    "llava, squared": (LLAVA, {"size": {"shortest_edge": 28}, "crop_size": 28, "do_pad": True}),
    "llava, squared, bare": (LLAVA, {"size": 28, "do_center_crop": False, "do_pad": True, "do_normalize": False}),
}


def read(values, name="preprocessor_config.json"):
    return read_processor(values, PROCESSORS, name)


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_transformers(case):
    kind, values = CASES[case]
    theirs = kind(**values)
    names = [kind.__name__, kind.__name__.removesuffix("Pil"), kind.__name__.removesuffix("Pil") + "Fast"]
    ours = [read(values | {"image_processor_type": name}) for name in names]
    assert ours[0] == ours[1] == ours[2]
    for size in SIZES:
        expected = theirs(picture(*size), return_tensors="np")["pixel_values"][0]
        found = ours[0].views(picture(*size), "")[0]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert ours[0].view_size in (None, found.shape[1:])


def test_what_transformers_writes_is_read():
    values = LLAVA(size=28, crop_size=28, do_pad=True).to_dict()
    old = {"feature_extractor_type": "LlavaFeatureExtractor", "size": 28, "crop_size": 28, "do_pad": True}
    nested = {"processor_class": "LlavaProcessor", "image_processor": values, "patch_size": 7}
    assert read(values) == read(old) == read(nested)
    assert dataclasses.replace(read(values), square=None) == read(values | {"do_pad": False})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "image_processor_type` is missing"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "only CLIP, Siglip, Llava"),
        ({"size": {"longest_edge": 28}}, "is no size"),
        ({"size": 0}, "is no size"),
        ({"size": [1, 2, 3]}, "is no size"),
        ({"crop_size": [28]}, "is no size"),
        ({"resample": 9}, "none of Pillow's filters"),
        ({"image_mean": [0.5, 0.5]}, "one per colour"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"do_resize": "yes"}, "do_resize: yes` must be true or false"),
        ({"rescale_factor": 0}, "rescale_factor: 0` must be a number above 0"),
    ],
)
def test_what_is_not_understood_is_refused(values, words):
    with pytest.raises(InputError, match=r"^a\.json: ") as caught:
        read({"image_processor_type": "CLIPImageProcessor"} | values if values else {}, "a.json")
    assert words in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"do_pad": True}])
def test_a_thread_is_not_blown_up_to_gigabytes(values):
    processor = read({"image_processor_type": "LlavaImageProcessor"} | values)
    with pytest.raises(InputError, match=r"^thread\.png: would be enlarged to \d+ x \d+ pixels"):
        processor.views(Image.new("RGB", (200000, 1)), "thread.png")
