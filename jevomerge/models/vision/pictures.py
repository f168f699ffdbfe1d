"""What is in a file -> an RGB picture, as transformers' loaders and processors have them.

- Rotated as EXIF says, which `load_image` of transformers and the image columns of `datasets` do (a processor that is
  handed a PIL image does not).
- Transparent pixels on white, as processors do since transformers 5 (`load_image`, handed a path, drops alpha instead).
- Of an animation the first frame.
- Grey with more than 8 bits is refused where Pillow's conversion, which transformers uses, would clip it to white.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from jevomerge.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP = ("I", "F")  # modes, and beginnings of modes, with more than 8 bits per channel


def pillow() -> Any:
    """Pillow's modules, imported on first use."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError("pictures need Pillow, which is not installed: pip install 'jevomerge[vision]'") from error
    return Image, ImageOps


def open_picture(source: bytes | Image, name: str) -> Image:
    """A picture in RGB, the right way up.

    Args:
        source: what is in a file, or a picture that is open already.
        name: what error messages call it.

    Raises:
        InputError: for what is no picture, is broken, or has more pixels than Pillow takes for an attack.
    """
    images, operations = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("error", images.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # about metadata
        try:
            picture = images.open(io.BytesIO(source)) if isinstance(source, bytes) else source
            picture.load()
            return _rgb(operations.exif_transpose(picture), name, images)
        except (images.DecompressionBombWarning, images.DecompressionBombError) as error:
            raise InputError(f"{name}: too many pixels ({error}); make the picture smaller") from error
        except InputError:
            raise
        except Exception as error:  # each of Pillow's formats has its own
            raise InputError(f"{name}: cannot be read as a picture ({error}); replace the file") from error


def as_png(pixels: np.ndarray, parameters: str = "") -> bytes:
    """A PNG of (H, W, 3), or grey (H, W, 1), colours from 0 to 1, rounded as diffusers does.

    `parameters`: how it was made, where programs that draw look for it.
    """
    images, _ = pillow()
    from PIL.PngImagePlugin import PngInfo

    about, buffer, colours = PngInfo(), io.BytesIO(), (pixels * 255).round().astype(np.uint8)
    if parameters:
        about.add_itxt("parameters", parameters)
    images.fromarray(colours[..., 0] if colours.shape[-1] == 1 else colours).save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


SIDE = 240  # pixels of the longer side of a small picture


def as_small_jpeg(picture: Image) -> bytes:
    """A JPEG of at most SIDE pixels a side; of a tiny one each pixel is a square."""
    if (factor := SIDE // max(picture.size)) > 1:
        images, _ = pillow()
        width, height = picture.size
        picture = picture.resize((width * factor, height * factor), images.Resampling.NEAREST)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _rgb(picture: Image, name: str, images: Any) -> Image:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        white = images.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = images.alpha_composite(white, picture)
    elif picture.mode.startswith(DEEP) and not _fits(picture.getextrema()):
        raise InputError(
            f"{name}: has more than 8 bits per pixel (mode {picture.mode}), which would be clipped to white; "
            "save it with 8 bits"
        )
    return picture.convert("RGB")


def _fits(extrema: Any) -> bool:
    low, high = extrema
    return low >= 0 and high <= 255


def limited(size: tuple[int, int], name: str) -> tuple[int, int]:
    """A (width, height) to which a picture is enlarged, unless that is more than Pillow would open."""
    limit = pillow()[0].MAX_IMAGE_PIXELS
    if limit and size[0] * size[1] > limit:
        raise InputError(f"{name}: would be enlarged to {size[0]} x {size[1]} pixels; cut it to a squarer shape")
    return size
