"""Image bytes to arrays and back; each kind of bad bytes has its own reason."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
# of zlib: on drawn and on photographed faces a third less time than 6 takes, for 3 % more bytes
LEVEL = 4
Crop = tuple[int, int, int, int]

ImageFile.LOAD_TRUNCATED_IMAGES = False  # this is the default, but some packages change it
# `max_pixels` decides, with a reason
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadRow(ValueError):  # noqa: N818 (the row is bad, not the program)
    """A row that cannot be used; str() is the reason for quarantine, without the row's content."""


def decode(
    data: bytes | None, *, size: int | Sequence[int], crop: Crop | None, max_pixels: int
) -> NDArray[np.uint8]:
    """Decode PNG, JPEG or WebP bytes to (H,W,3) RGB: first crop, then resize if the size differs.

    size: the side of a square, or (width, height). crop: (left, top, right, bottom). Resizing is
    bicubic, with antialiasing when it shrinks; it does not preserve the aspect ratio. EXIF
    orientation and profiles are not applied. BadRow where there are no bytes or broken ones, more
    than `max_pixels` (by the header, before decoding), a mode other than RGB and grey, several
    frames, or a crop that reaches outside.
    """
    if data is None:
        raise BadRow("no image: null")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadRow(f"no image: expected bytes, got {type(data).__name__}")
    if len(data) == 0:
        raise BadRow("no image: 0 bytes")
    image = _header(bytes(data), max_pixels)
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        mode = image.mode if image.mode not in ("RGB", "L") else f"{image.mode} with transparency"
        raise BadRow(f"image mode: expected RGB or L, got {mode}")
    # Pillow reads a camera's JPEG with a preview or a second view behind the picture as an MPO:
    # its first frame is the picture.
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise BadRow("image frames: expected 1, got several")
    width, height = image.size
    if crop is not None and not (
        0 <= crop[0] < crop[2] <= width and 0 <= crop[1] < crop[3] <= height
    ):
        raise BadRow(
            f"crop: expected {list(crop)} inside the image, got an image of {width}x{height}"
        )
    try:
        image.load()
    except Exception as error:
        # zlib, struct, OSError, SyntaxError ... : Pillow's decoders raise almost any error
        kind = "truncated" if "truncated" in str(error) else "corrupt"
        raise BadRow(f"image: {kind} {image.format}") from None
    picture = image.convert("RGB") if image.mode == "L" else image
    if crop is not None:
        picture = picture.crop(crop)
    if picture.size != sides(size):
        picture = picture.resize(sides(size), Image.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8)


def decode_mask(
    cell: object, *, size: int | Sequence[int], crop: Crop | None, of: tuple[int, int]
) -> NDArray[np.uint8]:
    """Decode PNG bytes of region indices, grey or with a palette, to (H,W) uint8.

    The mask is cropped and resized as its image is, but with nearest-neighbour sampling. cell:
    bytes, or a struct with them as `bytes`; of: the image's width and height, which the mask must
    have. BadRow where there are no bytes or broken ones, or another format (JPEG would mix
    indices), mode or size.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise BadRow(
            "no mask:"
            f" {'null' if data is None else '0 bytes' if data == b'' else type(data).__name__}"
        )
    try:
        image = _header(data, of[0] * of[1])
    except BadRow as reason:
        raise BadRow(f"mask: {reason}") from None
    if image.format != "PNG" or image.mode not in ("L", "P"):
        raise BadRow(
            f"mask: expected a PNG of mode L or P, got {image.format} of mode {image.mode}"
        )
    if image.size != of:
        (a, b), (c, d) = of, image.size
        raise BadRow(f"mask: expected the image's {a}x{b} pixels, got {c}x{d}")
    try:
        image.load()
    except Exception:
        raise BadRow("mask: truncated or corrupt PNG") from None
    if crop is not None:
        image = image.crop(crop)
    if image.size != sides(size):
        image = image.resize(sides(size), Image.Resampling.NEAREST)
    return np.array(image, dtype=np.uint8)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (width, height) of a working size, given as the side of a square or as these two."""
    width, height = (size, size) if isinstance(size, int) else size
    return width, height


def dimensions(data: bytes, *, max_pixels: int) -> tuple[int, int]:
    """Read width and height from the header of PNG, JPEG or WebP bytes; BadRow where unreadable."""
    return _header(data, max_pixels).size


def encode(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey uint8 as PNG; equal arrays have equal bytes."""
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not shaped or image.size == 0:
        raise ValueError(
            f"expected uint8 of shape (H, W, 3) or (H, W), got {image.dtype} of {image.shape}"
        )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, format="PNG", compress_level=LEVEL)
    return out.getvalue()


def _header(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it; BadRow where its header states too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadRow("image: neither PNG, JPEG nor WebP, or a broken header") from None
    except Image.DecompressionBombError:
        raise BadRow(f"image size: expected at most {max_pixels} pixels, got far more") from None
    except Exception:
        raise BadRow("image: truncated, or a broken header") from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadRow(f"image size: expected at most {max_pixels} pixels, got {width}x{height}")
    return image
