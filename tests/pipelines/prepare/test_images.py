"""Image folders: classes from folders or a CSV, splits, and what is left out."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.prepare.images import images
from pipelines.prepare.shards import parquet, schema_of
from pipelines.prepare.source import Row, Skipped, Source
from storage.codec import decode


def paint(
    path: Path, colour: tuple[int, ...] = (10, 20, 30), mode: str = "RGB", **save: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), colour).save(path, **save)
    return path


def both(source: Source) -> tuple[list[Row], dict[str, str]]:
    rows = list(source.rows)
    assert len(rows) == source.total
    return [r for r in rows if isinstance(r, Row)], {
        r.path: r.reason for r in rows if isinstance(r, Skipped)
    }


def test_a_subfolder_is_a_class(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.jpg", "cat/deep/er/c.webp", "10/x.png", "cat/.hidden.png"):
        paint(tmp_path / name)
    source = images(tmp_path)
    rows, skipped = both(source)
    assert source.classes == ("10", "cat", "dog")
    assert [(r.id, source.classes[r.label]) for r in rows] == [
        ("10/x.png", "10"),
        ("cat/deep/er/c.webp", "cat"),
        ("dog/a.jpg", "dog"),
        ("dog/b.png", "dog"),
    ]
    assert not skipped
    assert rows[2].image == (tmp_path / "dog/a.jpg").read_bytes()


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        paint(tmp_path / name / "x.png")
    assert images(tmp_path).classes == ("1", "9", "10")


def test_folders_of_splits_name_the_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("cat", "dog"):
            paint(tmp_path / split / label / "x.png")
    rows, _ = both(images(tmp_path, test_fraction=1))
    assert [(r.split, r.label) for r in rows] == [
        ("test", 0), ("test", 1), ("train", 0), ("train", 1), ("validation", 0), ("validation", 1),
    ]  # fmt: skip


def test_what_cannot_be_used_is_skipped_with_a_reason(tmp_path: Path) -> None:
    paint(tmp_path / "a/good.png")
    paint(tmp_path / "b/good.png")
    paint(tmp_path / "b/alpha.png", (1, 2, 3, 4), "RGBA")
    whole = paint(tmp_path / "a/cut.png").read_bytes()
    (tmp_path / "a/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a/notes.txt").write_text("not a picture")
    paint(tmp_path / "beside.png")
    rows, skipped = both(images(tmp_path))
    assert [r.id for r in rows] == ["a/good.png", "b/good.png"]
    assert set(skipped) == {"a/cut.png", "a/notes.txt", "b/alpha.png", "beside.png"}
    assert "expected an image file" in skipped["a/notes.txt"]
    assert "RGBA" in skipped["b/alpha.png"]
    assert "class's folder" in skipped["beside.png"]


def test_convert_takes_alpha_palettes_cmyk_and_lying_photographs(tmp_path: Path) -> None:
    paint(tmp_path / "a/alpha.png", (0, 0, 0, 0), "RGBA")
    paint(tmp_path / "a/cmyk.jpg", (0, 255, 255, 0), "CMYK")
    paint(tmp_path / "a/palette.gif", (5,), "P")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    (tmp_path / "b").mkdir()
    lying.save(tmp_path / "b/lying.png", exif=exif)
    plain = paint(tmp_path / "b/plain.jpg")
    assert len(both(images(tmp_path))[1]) == 3
    rows, skipped = both(images(tmp_path, convert=True))
    assert not skipped
    assert [r.id for r in rows] == [
        "a/alpha.png",
        "a/cmyk.jpg",
        "a/palette.gif",
        "b/lying.png",
        "b/plain.jpg",
    ]
    assert decode(rows[0].image, size=4, crop=None, max_pixels=99).min() == 255, (
        "what is transparent becomes white"
    )
    assert decode(rows[1].image, size=4, crop=None, max_pixels=99)[0, 0].argmax() == 0, (
        "red stays red"
    )
    turned = np.asarray(Image.open(io.BytesIO(rows[3].image)))
    assert np.array_equal(turned, np.rot90(np.asarray(lying), -1))
    assert rows[4].image == plain.read_bytes(), "what can be used is not touched"


def test_a_csv_names_labels_splits_and_further_columns(tmp_path: Path) -> None:
    for name in ("x.png", "y.png", "z.png"):
        paint(tmp_path / "pictures" / name)
    listed = tmp_path / "labels.csv"
    listed.write_text(
        "file,label,split,glasses,city\nz.png,old,test,1,Oslo\nx.png,young,,0,Rome\ny.png,old,val,true,Oslo\n"
    )
    source = images(tmp_path / "pictures", labels=listed, test_fraction=0)
    rows, _ = both(source)
    assert source.classes == ("old", "young")
    assert source.columns == {"glasses": "bool", "city": "string"}
    assert [(r.id, r.label, r.split, *r.columns.values()) for r in rows] == [
        ("z.png", 0, "test", True, "Oslo"),
        ("x.png", 1, "train", False, "Rome"),
        ("y.png", 0, "validation", True, "Oslo"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nx.png,a\n", "expected the columns file and label, got name, label"),
        ("file,label\nx.png\n", "line 2: expected 2 values"),
        ("file,label\nx.png,a,b\n", "line 2: expected 2 values"),
        ("file,label\nx.png,\n", "line 2: expected a file and a label"),
        ("file,label\nx.png,a\nx.png,b\n", "line 3: expected every file once, got x.png again"),
        ("file,label,split\nx.png,a,dev\n", "line 2: expected a split out of .*, got 'dev'"),
        ("file,label\n", "expected rows under its header"),
        (
            "file,label\nx.png,a\ny.png,a\n",
            "expected at least 2 classes in the labels of .*, got a$",
        ),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text(text)
    with pytest.raises(ValueError, match=message):
        images(tmp_path, labels=listed)


def test_folders_without_classes_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"expected image files \(\.jpg .*\) in .*, got none"):
        images(tmp_path)
    paint(tmp_path / "cat/x.png")
    with pytest.raises(
        ValueError, match=r"expected at least 2 classes in the subfolders of .*, got cat$"
    ):
        images(tmp_path)
    paint(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"expected a folder of images at .*, got a file"):
        images(tmp_path / "x.png")


def classes_of(folder: Path, *paths: str) -> tuple[tuple[str, ...], set[tuple[str, str]], str]:
    """Classes, the good rows' class and split, and the notes of a folder with images at paths."""
    for path in paths:
        paint(folder / path)
    source = images(folder, test_fraction=0)
    rows, _ = both(source)
    found = {(source.classes[r.label], r.split) for r in rows if r.label is not None}
    return source.classes, found, "; ".join(source.notes)


def test_a_folder_without_images_is_no_class_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "bird").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    classes, _, notes = classes_of(tmp_path, "cat/0.png", "dog/0.png")
    assert classes == ("cat", "dog")
    assert notes == "left out bird/: no image in it; left out notes/: no image in it, 1 files"


@pytest.mark.parametrize("helper", ["__MACOSX/train/cat/._0.png", "masks/0.png", "labels/a.xml"])
def test_a_folder_beside_splits_is_left_out_and_named(tmp_path: Path, helper: str) -> None:
    made = paint(tmp_path / helper) if helper.endswith("png") else tmp_path / helper
    made.parent.mkdir(exist_ok=True)
    made.touch()
    (tmp_path / "train" / "none").mkdir(parents=True)
    classes, found, notes = classes_of(
        tmp_path, "train/cat/0.png", "train/dog/0.png", "Test/cat/0.png"
    )
    assert classes == ("cat", "dog")
    assert found == {("cat", "train"), ("dog", "train"), ("cat", "test")}
    assert notes.startswith(f"left out {helper.split('/')[0]}/: ")
    assert notes.endswith("left out train/none/: no image in it")


def test_one_split_alone_may_have_flat_folders_beside_it(tmp_path: Path) -> None:
    classes, found, notes = classes_of(
        tmp_path, "train/cat/0.png", "train/dog/0.png", "masks/0.png", "masks/1.png"
    )
    assert (classes, found) == (("cat", "dog"), {("cat", "train"), ("dog", "train")})
    assert notes == "left out masks/: 2 images beside train"


def test_trains_beside_buses_are_a_class(tmp_path: Path) -> None:
    classes, found, _ = classes_of(tmp_path, "bus/0.png", "car/0.png", "train/0.png")
    assert classes == ("bus", "car", "train")
    assert ("train", "train") in found


@pytest.mark.parametrize(
    "paths",
    [
        ("bus/red/0.png", "train/red/0.png", "car/red/0.png"),
        ("train/0.png", "test/0.png", "masks/0.png"),
        ("train/cat/0.png", "train/0.png", "cat/0.png"),
    ],
)
def test_what_may_be_splits_or_classes_is_refused(tmp_path: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"expected folders of classes or of splits in .* give --lab"
    ):
        classes_of(tmp_path, *paths)


@pytest.mark.parametrize("paths", [("b.png", "a.jpg"), ("train/b.png", "test/a.jpg")])
def test_images_without_folders_of_classes_have_no_label(
    tmp_path: Path, paths: tuple[str, ...]
) -> None:
    for path in paths:
        paint(tmp_path / path)
    source = images(tmp_path, test_fraction=0)
    rows, skipped = both(source)
    assert not skipped
    assert sorted((r.id, r.label, r.split) for r in rows) == sorted(
        (path, None, "test" if "test" in path else "train") for path in paths
    )
    assert schema_of(source).names == ["id", "image", "split"]
    assert source.notes == (f"no folders of classes in {tmp_path}: the rows have no label",)
    assert pq.read_table(pa.BufferReader(parquet(rows, schema_of(source)))).num_rows == 2


def test_names_that_are_not_utf8_are_set_aside(tmp_path: Path) -> None:
    paint(tmp_path / "cat/0.png")
    paint(tmp_path / "dog/0.png")
    for at, name in ((b"cat", b"caf\xe9.png"), (b"", b"m\xf6we")):
        os.rename(paint(tmp_path / "x" / "x.png"), os.path.join(os.fsencode(tmp_path), at, name))
    (tmp_path / "x").rmdir()
    os.makedirs(os.path.join(os.fsencode(tmp_path), b"k\xfc"))
    os.rename(paint(tmp_path / "y.png"), os.path.join(os.fsencode(tmp_path), b"k\xfc", b"0.png"))
    source = images(tmp_path)
    rows, skipped = both(source)
    assert source.classes == ("cat", "dog")
    assert [r.id for r in rows] == ["cat/0.png", "dog/0.png"]
    assert skipped == dict.fromkeys(
        ["m\\xf6we", "cat/caf\\xe9.png", "k\\xfc/0.png"], "expected a file name in UTF-8"
    )


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)


def png16(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits and one of its colour types (2 RGB, 6 RGBA), which Pillow cannot write."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def deep(folder: Path) -> None:
    """16-bit images that fill their range, by several ways of writing them."""
    grey = np.rint(RAMP).astype(np.uint16)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).save(folder / "grey.tif")
    (folder / "grey.pgm").write_bytes(b"P5 8 8 65535\n" + grey.astype(">u2").tobytes())
    narrow = np.rint(RAMP / 16).astype(">u2")  # 12 bits, and the file says so
    (folder / "narrow.pgm").write_bytes(b"P5 8 8 4095\n" + narrow.tobytes())
    (folder / "rgb.png").write_bytes(png16(np.repeat(grey[..., None], 3, 2), 2))
    four = np.concatenate([np.repeat(grey[..., None], 3, 2), np.full((8, 8, 1), 65535)], 2)
    (folder / "rgba.png").write_bytes(png16(four, 6))


def test_deep_images_are_scaled_by_their_formats_range(tmp_path: Path) -> None:
    deep(tmp_path)
    rows, skipped = both(images(tmp_path, convert=True))
    assert not skipped
    assert len(rows) == 6
    for row in rows:
        got = decode(row.image, size=8, crop=None, max_pixels=99)
        assert np.abs(got - (RAMP / 257)[..., None]).max() <= 1, row.id
    _, skipped = both(images(tmp_path))
    assert all(reason.endswith(": --convert makes it RGB") for reason in skipped.values())
    assert skipped.keys() == {r.id for r in rows} - {"rgb.png"}


def test_pixels_whose_range_is_unknown_are_set_aside(tmp_path: Path) -> None:
    Image.fromarray(np.rint(RAMP / 16).astype(np.uint16)).save(tmp_path / "12-in-16.png")
    Image.fromarray(np.rint(RAMP / 16).astype(np.uint16)).save(tmp_path / "12-in-16.tif")
    (tmp_path / "rgb-12-in-16.png").write_bytes(
        png16(np.repeat(np.rint(RAMP / 16)[..., None], 3, 2), 2)
    )
    clear = np.concatenate([np.repeat(RAMP[..., None] / 16, 3, 2), np.zeros((8, 8, 1))], 2)
    (tmp_path / "rgba-12-in-16.png").write_bytes(png16(clear, 6))
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "black.png")
    assert "rgb-12-in-16.png" in both(images(tmp_path))[1]
    rows, skipped = both(images(tmp_path, convert=True))
    assert [r.id for r in rows] == ["black.png"]
    twelve = "image values: expected 16 bits, got only small ones"
    assert all(skipped[name].startswith(twelve) for name in skipped if "12-in-16" in name)
    assert skipped["float.tif"].startswith("image values: expected a known range, got mode F")
    assert skipped["int.tif"].startswith("image values: expected a known range, got mode I")
    assert len(skipped) == 6


@pytest.mark.parametrize("ending", ["bmp", "gif", "tif", "ppm"])
def test_other_formats_are_converted_and_the_reason_says_how(tmp_path: Path, ending: str) -> None:
    paint(tmp_path / f"x.{ending}")
    paint(tmp_path / "y.png")
    why = "image: neither PNG, JPEG nor WebP, or a broken header: --convert makes it RGB"
    assert both(images(tmp_path))[1] == {f"x.{ending}": why}
    rows, skipped = both(images(tmp_path, convert=True))
    assert not skipped
    assert (
        np.abs(decode(rows[0].image, size=4, crop=None, max_pixels=99)[0, 0] - [10, 20, 30]).max()
        < 2
    )


def test_several_frames_damage_and_other_formats_are_reasons(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (i, 0, 0)) for i in (1, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tif", save_all=True, append_images=frames[1:])
    whole = paint(tmp_path / "c.bmp").read_bytes()
    (tmp_path / "c.bmp").write_bytes(whole[:60])
    Image.new("RGB", (6, 4)).save(tmp_path / "d.png", format="PCX")
    paint(tmp_path / "y.png")
    for convert in (False, True):
        _, skipped = both(images(tmp_path, convert=convert))
        assert skipped.keys() == {"a.gif", "b.tif", "c.bmp", "d.png"}
        assert not any("--convert" in reason for reason in skipped.values())
    assert skipped["a.gif"] == skipped["b.tif"] == "image frames: expected 1, got 2"
    assert (
        skipped["c.bmp"]
        == skipped["d.png"]
        == "image: neither PNG, JPEG nor WebP, or a broken header"
    )


@pytest.mark.parametrize(
    "text",
    [
        "file, label , city\nx.png, old, Oslo \n y.png ,young,  Rome\n",
        "file;label;city\nx.png;old;Oslo\ny.png;young;Rome\n",
        "file\tlabel\tcity\r\nx.png\told\tOslo\r\n\r\ny.png\tyoung\tRome\r\n",
        ",file,label,city\n0,x.png,old,Oslo\n1,y.png,young,Rome\n",
        'city,"file","label"\nOslo, "x.png", "old"\nRome,y.png,young\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_may_have_spaces_other_separators_and_pandas_numbers(
    tmp_path: Path, text: str, encoding: str
) -> None:
    for name in ("x.png", "y.png"):
        paint(tmp_path / name)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    source = images(tmp_path, labels=tmp_path / "labels.csv")
    rows, skipped = both(source)
    assert not skipped
    assert [(r.id, source.classes[r.label or 0], r.columns) for r in rows] == [
        ("x.png", "old", {"city": "Oslo"}),
        ("y.png", "young", {"city": "Rome"}),
    ]


def test_a_csv_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    for data, words in (
        (
            "file,label\nx.png,a\ny.png,é\n".encode("latin-1"),
            r"labels\.csv line 3: .* byte 0xe9: save",
        ),
        (b"file,label,label\nx.png,a,b\n", "expected each column once, got 'label' twice"),
        (
            b'file,label\nx.png,"' + b"a" * 200_000 + b'"\n',
            "line 2: expected a CSV, got field larger",
        ),
    ):
        listed.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            images(tmp_path, labels=listed)
    listed.write_text("file,label\nx\0.png,a\ny.png,b\n")
    assert set(both(images(tmp_path, labels=listed))[1]) == {"x\0.png", "y.png"}
