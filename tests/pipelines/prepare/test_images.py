"""Image folders: classes from folders or a CSV, splits, and what is left out."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare.images import images
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
    paint(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"expected at least 2 classes in the subfolders of .*, got none"
    ):
        images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a folder of images at .*, got a file"):
        images(tmp_path / "x.png")
