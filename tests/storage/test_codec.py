"""The image codec: exact where it may be, and a reason for everything else."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from storage.codec import BadRow, decode, decode_mask, encode

RNG = np.random.default_rng(0)


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def pack(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def read(
    data: Any, size: int | tuple[int, int] = 8, crop: Any = None, max_pixels: int = 10_000
) -> NDArray[np.uint8]:
    return decode(data, size=size, crop=crop, max_pixels=max_pixels)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header states any size, with right checksums and almost no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_an_image_of_the_right_size_passes_bit_for_bit() -> None:
    image = noise(16, 16, 3)
    assert np.array_equal(read(encode(image), size=16), image)
    assert np.array_equal(read(pack(image, "WEBP", lossless=True), size=16), image)


def test_a_size_of_two_is_width_and_height() -> None:
    image = noise(8, 16, 3)
    assert np.array_equal(read(encode(image), size=(16, 8)), image)
    assert read(encode(image), size=(5, 9)).shape == (9, 5, 3)


def test_grey_is_three_equal_channels() -> None:
    image = noise(8, 8)
    out = read(encode(image))
    assert out.shape == (8, 8, 3)
    assert all(np.array_equal(out[:, :, channel], image) for channel in range(3))


def test_encode_is_deterministic_and_read_by_anyone() -> None:
    image = noise(5, 7, 3)
    assert encode(image) == encode(image.copy())
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode(image)))), image)
    turned = np.asfortranarray(image)[::-1]  # not contiguous
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode(turned)))), turned)


@pytest.mark.parametrize(
    "bad", [noise(4, 4, 4), noise(4, 4, 1), noise(4), np.zeros((4, 4, 3)), noise(0, 4, 3)]
)
def test_encode_refuses_other_arrays(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        encode(bad)


def test_a_crop_is_exact_and_comes_first() -> None:
    image = noise(20, 30, 3)
    assert np.array_equal(read(encode(image), crop=(4, 2, 12, 10)), image[2:10, 4:12])
    outside = image.copy()
    outside[:2], outside[10:], outside[:, :4], outside[:, 12:] = 0, 0, 0, 0
    for size in (5, 8, 13):  # nothing outside the crop bleeds in by resizing
        crop = (4, 2, 12, 10)
        assert np.array_equal(
            read(encode(image), size=size, crop=crop), read(encode(outside), size=size, crop=crop)
        )


def test_shrinking_averages() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    out = read(encode(board)).astype(int)
    assert np.abs(out - 127).max() <= 3  # picking pixels would give 0 or 255
    image = noise(64, 64, 3)
    means = image.reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert np.abs(read(encode(image)).astype(float).mean() - means.mean()) < 1
    assert np.corrcoef(read(encode(image)).ravel(), means.ravel())[0, 1] > 0.8


def test_growing_keeps_flat_colours_and_where_things_are() -> None:
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, 2:] = [250, 100, 30]
    out = read(encode(halves), size=16)
    assert np.abs(out[:, 0].astype(int)).max() <= 2
    assert np.abs(out[:, 15].astype(int) - [250, 100, 30]).max() <= 2
    assert (out[:, 7, 0] < 125).all()
    assert (out[:, 8, 0] > 125).all()


def test_exif_orientation_is_left_alone() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    assert np.array_equal(read(pack(image, "PNG", exif=exif)), image)


def test_jpegs_are_read_as_pillow_reads_them() -> None:
    data = pack(Image.fromarray(noise(4, 4, 3)).resize((8, 8)), "JPEG", quality=90)
    assert np.array_equal(read(data), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "crop", [(0, 0, 9, 8), (0, 0, 8, 9), (-1, 0, 4, 4), (0, -1, 4, 4), (4, 4, 4, 8), (5, 0, 4, 8)]
)
def test_a_crop_outside_is_a_bad_row(crop: Any) -> None:
    with pytest.raises(BadRow, match=r"crop: expected .* inside the image, got an image of 8x8"):
        read(encode(noise(8, 8, 3)), crop=crop)


MODES = {
    "RGBA": pack(noise(8, 8, 4)),
    "LA": pack(Image.new("LA", (8, 8))),
    "P": pack(Image.new("P", (8, 8))),
    "1": pack(Image.new("1", (8, 8))),
    "I;16": pack(Image.new("I;16", (8, 8))),
    "CMYK": pack(Image.new("CMYK", (8, 8)), "JPEG"),
    "RGB with transparency": pack(noise(8, 8, 3), transparency=(1, 2, 3)),
}


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_are_bad_rows(mode: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(MODES[mode])
    assert str(caught.value) == f"image mode: expected RGB or L, got {mode}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no image: null"),
        (b"", "no image: 0 bytes"),
        ("a/path.png", "no image: expected bytes, got str"),
        (float("nan"), "no image: expected bytes, got float"),
        (b"secret words", "neither PNG, JPEG nor WebP"),
        (pack(noise(8, 8, 3), "GIF"), "neither PNG, JPEG nor WebP"),
        (pack(noise(8, 8, 3), "TIFF"), "neither PNG, JPEG nor WebP"),
    ],
)
def test_what_is_no_image_is_a_bad_row(data: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as caught:
        read(data)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("WEBP", {})]
)
def test_every_truncation_is_a_bad_row(kind: str, options: dict[str, Any]) -> None:
    data = pack(noise(24, 24, 3), kind, **options)
    for length in range(1, len(data) * 9 // 10, 13):
        with pytest.raises(BadRow) as caught:
            read(data[:length])
        assert len(str(caught.value)) < 80
    with pytest.raises(BadRow, match=r"truncated|corrupt"):
        read(data[: len(data) * 9 // 10])


def test_a_truncated_image_says_so() -> None:
    data = pack(noise(64, 64, 3), "JPEG")
    with pytest.raises(BadRow, match="image: truncated JPEG"):
        read(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_flipped_bytes_never_raise_anything_else() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = pack(noise(16, 16, 3), kind)
        for place in RNG.integers(0, len(data), 120):
            broken = bytearray(data)
            broken[place] ^= 1 << int(place) % 8
            with contextlib.suppress(BadRow):
                assert read(bytes(broken)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "size", [(101, 100), (9000, 9500), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_bombs_are_refused_by_their_header(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(BadRow, match="expected at most 10000 pixels"):
        read(png_of_size(*size))


def test_the_pixel_limit_itself_is_allowed() -> None:
    assert read(encode(noise(100, 100, 3)), max_pixels=10_000).shape == (8, 8, 3)
    with pytest.raises(BadRow, match="at most 9999 pixels, got 100x100"):
        read(encode(noise(100, 100, 3)), max_pixels=9_999)


def test_animations_are_bad_rows() -> None:
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    for kind in ("PNG", "WEBP"):
        data = pack(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(BadRow, match="frames: expected 1"):
            read(data)


def test_a_cameras_jpeg_with_a_second_view_is_its_first() -> None:
    flat = [Image.new("RGB", (8, 8), (value, value, value)) for value in (40, 200)]
    assert (
        np.abs(
            read(pack(flat[0], "MPO", save_all=True, append_images=flat[1:])).astype(int) - 40
        ).max()
        <= 2
    )


def test_real_faces_decode_as_designed() -> None:
    """CelebA's crop of the design: 61x61 of an 89x109 JPEG, to 64."""
    path = Path(__file__).parents[2] / "../shared/data/celeba/part-00000.parquet"
    if not path.exists():
        pytest.skip("no real data beside the checkout")
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        cells = next(file.iter_batches(batch_size=4, columns=["image"])).to_pylist()
    for cell in cells:
        data, crop = cell["image"]["bytes"], (14, 29, 75, 90)
        plain = np.array(Image.open(io.BytesIO(data)))[29:90, 14:75]
        assert np.array_equal(read(data, size=61, crop=crop), plain)
        assert abs(read(data, size=64, crop=crop).mean() - plain.mean()) < 1


def test_masks_are_cropped_and_resized_without_new_values() -> None:
    mask = np.array([[0, 9, 9, 0], [7, 0, 9, 0], [7, 7, 0, 0], [1, 2, 3, 4]], dtype=np.uint8)
    palette = Image.fromarray(mask, "P")
    palette.putpalette([200, 100, 0] * 10)
    for data in (pack(mask), {"bytes": pack(mask), "path": None}, pack(palette)):
        assert np.array_equal(decode_mask(data, size=4, crop=None, of=(4, 4)), mask)
    assert np.array_equal(
        decode_mask(pack(mask), size=4, crop=(0, 0, 2, 2), of=(4, 4)),
        [[0, 0, 9, 9]] * 2 + [[7, 7, 0, 0]] * 2,
    )
    wide = decode_mask(pack(noise(31, 47) % 5), size=(20, 10), crop=None, of=(47, 31))
    assert wide.shape == (10, 20)
    assert set(np.unique(wide)) <= set(range(5))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "no mask: null"),
        ({"bytes": None}, "no mask: null"),
        (b"", "no mask: 0 bytes"),
        ("a.png", "no mask: str"),
        (b"hello", "mask: image: neither PNG"),
        (pack(noise(8, 8), "JPEG"), "mask: expected a PNG of mode L or P, got JPEG of mode L"),
        (pack(noise(8, 8, 3)), "mask: expected a PNG of mode L or P, got PNG of mode RGB"),
        (pack(noise(8, 4)), "mask: expected the image's 8x8 pixels, got 4x8"),
        (pack(noise(8, 9)), "mask: image size: expected at most 64 pixels"),
        (pack(noise(8, 8))[:-30], "mask: truncated or corrupt PNG"),
    ],
)
def test_a_bad_mask_has_a_reason(data: Any, why: str) -> None:
    with pytest.raises(BadRow, match=f"^{why}"):
        decode_mask(data, size=8, crop=None, of=(8, 8))
