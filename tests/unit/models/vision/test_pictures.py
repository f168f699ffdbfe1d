"""Files into pictures: what Pillow has modes for, and what is none."""

import io

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from jevomerge import InputError
from jevomerge.models.vision.pictures import open_picture
from tests.seeing import picture


def stored(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def see_through(image):
    mask = Image.fromarray(np.linspace(0, 255, image.width, dtype=np.uint8)[None].repeat(image.height, 0))
    image = image.copy()
    image.putalpha(mask)
    return image


PLAIN = picture(21, 34)
PALETTE = PLAIN.quantize(7)
FILES = {
    "rgb": stored(PLAIN, "png"),
    "jpeg": stored(PLAIN, "jpeg"),
    "cmyk": stored(PLAIN.convert("CMYK"), "jpeg"),
    "grey": stored(PLAIN.convert("L"), "png"),
    "bits": stored(PLAIN.convert("1"), "png"),
    "palette": stored(PALETTE, "png"),
    "palette with a transparent colour": stored(PALETTE, "png", transparency=2),
    "palette with alpha": stored(PALETTE, "png", transparency=bytes(range(0, 210, 30))),
    "grey with alpha": stored(see_through(PLAIN.convert("L")), "png"),
    "rgba": stored(see_through(PLAIN), "png"),
    "rgb with a transparent colour": stored(PLAIN, "png", transparency=(1, 2, 3)),
    "webp": stored(see_through(PLAIN), "webp", lossless=True),
    "16 bits that fit 8": stored(Image.fromarray(np.asarray(PLAIN.convert("L"), np.uint16)), "png"),
    "gif": stored(PALETTE, "gif"),
}


@pytest.mark.parametrize("name", FILES)
def test_colours_are_those_of_transformers_processors(name):
    expected = convert_to_rgb(Image.open(io.BytesIO(FILES[name])), return_numpy=True)
    for source in (FILES[name], Image.open(io.BytesIO(FILES[name]))):
        found = open_picture(source, name)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("turned", range(1, 9))
def test_pictures_are_the_right_way_up(turned, tmp_path):
    """As for the loaders of transformers and datasets, whose pictures then go to a processor."""
    exif = Image.Exif()
    exif[0x0112] = turned
    path = tmp_path / "photo.jpg"
    path.write_bytes(stored(PLAIN, "jpeg", exif=exif))
    found = np.asarray(open_picture(path.read_bytes(), "photo.jpg"))
    np.testing.assert_array_equal(found, np.asarray(load_image(str(path))))
    column = Dataset.from_dict({"image": [str(path)]}).cast_column("image", ImageColumn())
    np.testing.assert_array_equal(found, np.asarray(column[0]["image"]))
    assert found.shape == ((21, 34, 3) if turned < 5 else (34, 21, 3))


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_seen(kind):
    frames = [PALETTE.convert("RGB"), *(picture(21, 34, seed) for seed in (1, 2))]
    options = {"lossless": True} if kind == "webp" else {}
    moving = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 3
    np.testing.assert_array_equal(np.asarray(open_picture(moving, "a")), np.asarray(frames[0]))


def header_only(width, height):
    """A PNG that claims a size."""
    return stored(Image.new("1", (width, height)), "png")[:100]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as a picture"),
        (FILES["rgb"][:-400], "cannot be read as a picture"),
        (FILES["jpeg"][:300], "cannot be read as a picture"),
        (header_only(20000, 5000), "too many pixels"),
        (header_only(20000, 10000), "too many pixels"),
        (stored(Image.fromarray(np.full((4, 4), 300, np.uint16)), "png"), "more than 8 bits per pixel"),
        (stored(Image.fromarray(np.full((4, 4), 0.5, np.float32) * 600), "tiff"), "more than 8 bits per pixel"),
    ],
    ids=range(8),
)
def test_what_is_no_picture_is_refused_by_name(content, words):
    with pytest.raises(InputError, match=r"^images/7\.png: ") as caught:
        open_picture(content, "images/7.png")
    assert words in str(caught.value)
