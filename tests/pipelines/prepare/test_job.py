"""`counterfactory prepare`: what is written reads back the same everywhere, and nothing is
overwritten.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from configs.schema import ImageData
from configs.strict import UserError, check, read_preset
from counterfactory.worlds.faces import ATTRIBUTES, draw, labels, masks
from counterfactory.worlds.faces_masks import REGIONS
from pipelines.prepare import job as prepare
from pipelines.prepare import shards as prepare_shards
from pipelines.prepare.job import prepare_digits, prepare_faces, prepare_images
from pipelines.prepare.source import Row, Skipped, Source, png
from storage.codec import decode, decode_mask
from storage.plan import plan_shards, read_shard
from storage.schema import IMAGE

REAL = Path(__file__).parents[3] / "../shared/data/celeba/part-00003.parquet"


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.arguments(parser)
    return prepare.main(parser.parse_args([str(word) for word in words]))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def rows_of(folder: Path | str) -> list[dict[str, object]]:
    shards, schema = plan_shards(str(folder), shard_rows=7, rows=None)
    return [row for shard in shards for row in read_shard(shard, schema.names).to_pylist()]


def test_drawn_faces_read_back_as_they_were_drawn(tmp_path: Path) -> None:
    prepare_faces(
        str(tmp_path), rows=25, test_rows=5, seed=3, start=100, size=32, label="Male", shard_rows=10
    )
    assert list(files(tmp_path)) == [
        "test-00000.parquet",
        *(f"train-0000{i}.parquet" for i in range(3)),
    ]
    rows = sorted(rows_of(tmp_path), key=lambda row: row["row"])
    numbers = np.arange(100, 130)
    assert [row["row"] for row in rows] == numbers.tolist()
    assert [row["split"] for row in rows] == ["train"] * 25 + ["test"] * 5
    bits = labels(3, numbers, label="Male")
    assert np.array_equal([[row[name] for name in ATTRIBUTES] for row in rows], bits)
    assert [row["label"] for row in rows] == bits[:, ATTRIBUTES.index("Male")].tolist()
    pixels = [decode(row["image"]["bytes"], size=32, crop=None, max_pixels=1024) for row in rows]
    assert np.array_equal(pixels, draw(3, numbers, attributes=bits, size=32))
    assert len({row["id"] for row in rows}) == 30


def test_masks_are_a_further_column_and_change_no_other(tmp_path: Path) -> None:
    for name, words in {"plain": (), "masked": ("--masks",)}.items():
        assert (
            command("faces", tmp_path / name, "--rows", 3, "--test-rows", 1, "--seed", 3, *words)
            == 0
        )
    plain, masked = rows_of(tmp_path / "plain"), rows_of(tmp_path / "masked")
    outlines = [
        decode_mask(row.pop("mask")["bytes"], size=64, crop=None, of=(64, 64)) for row in masked
    ]
    assert masked == plain
    bits = np.array([[row[name] for name in ATTRIBUTES] for row in plain])
    assert np.array_equal(
        outlines, masks(3, np.array([row["row"] for row in plain]), attributes=bits)
    )
    schema = pq.read_schema(tmp_path / "masked/train-00000.parquet")
    assert json.loads(schema.metadata[b"regions"]) == list(REGIONS)
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["mask"] == {
        "_type": "Image"
    }
    with pytest.raises(UserError, match="masks = True, not None"):
        command("faces", tmp_path / "masked", "--rows", 3, "--test-rows", 1, "--seed", 3)


def test_files_have_the_layout_that_readers_want(tmp_path: Path) -> None:
    prepare_faces(str(tmp_path), rows=250, test_rows=0, size=8)
    file = pq.ParquetFile(tmp_path / "train-00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        100,
        100,
        50,
    ]
    chunks = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    assert {chunk.compression for chunk in chunks} == {"ZSTD"}
    assert not next(c for c in chunks if c.path_in_schema == "image.bytes").is_stats_set
    assert file.schema_arrow.field("image").type == IMAGE
    assert file.schema_arrow.field("label").type == pa.bool_()
    assert len(pd.read_parquet(tmp_path)) == 250, "pandas takes the folder as it is"


def test_datasets_reads_images_and_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    prepare_digits(str(tmp_path / "digits"))
    found = datasets.load_dataset(str(tmp_path / "digits"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in found.items()} == {"train": 1430, "test": 367}
    assert found["train"].features["label"].names == [str(i) for i in range(10)]
    assert isinstance(found["train"].features["image"], datasets.Image)
    picture = found["test"][0]["image"]
    first = pq.read_table(tmp_path / "digits/test-00000.parquet").slice(0, 1).to_pylist()[0]
    assert np.array_equal(
        np.asarray(picture), decode(first["image"]["bytes"], size=8, crop=None, max_pixels=64)
    )
    prepare_faces(str(tmp_path / "faces"), rows=8, test_rows=2, size=8)
    faces = datasets.load_dataset(str(tmp_path / "faces"), cache_dir=str(tmp_path / "cache"))
    assert faces["test"].features["Smiling"].dtype == "bool"


def test_the_same_command_gives_the_same_bytes_and_then_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--rows", 12, "--test-rows", 4, "--size", 16, "--shard-rows", 5)
    assert command("faces", tmp_path / "a", *words) == command("faces", tmp_path / "b", *words) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert "12 train rows in 4 files" in capsys.readouterr().out
    monkeypatch.setattr(prepare_shards, "_stream", lambda *_: pytest.fail("drew them again"))
    assert command("faces", tmp_path / "a", *words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_interrupted_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"rows": 12, "test_rows": 4, "size": 8, "shard_rows": 5}
    prepare_faces(str(tmp_path / "whole"), **settings)

    def killed(self: object, receipt: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_shards.Progress, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_faces(str(tmp_path / "cut"), **settings)
    (tmp_path / "cut/test-00000.parquet").unlink()
    assert yaml.safe_load((tmp_path / "cut/_prepare.yaml").read_text())["complete"] is False
    before = (tmp_path / "cut/train-00000.parquet").stat().st_mtime_ns
    assert prepare_faces(str(tmp_path / "cut"), **settings) is not None
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert (tmp_path / "cut/train-00000.parquet").stat().st_mtime_ns == before


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    prepare_faces(str(tmp_path), rows=6, test_rows=0, size=8)
    kept = files(tmp_path)
    with pytest.raises(UserError, match="written with rows = 6, not 7: choose another folder"):
        prepare_faces(str(tmp_path), rows=7, test_rows=0, size=8)
    with pytest.raises(
        UserError,
        match="expected a folder without Parquet files, got 1 written with source = 'faces'",
    ):
        prepare_digits(str(tmp_path))
    (tmp_path / "_prepare.yaml").unlink()
    with pytest.raises(
        UserError, match=r"got 1, such as train-00000.parquet: choose another folder"
    ):
        prepare_faces(str(tmp_path), rows=6, test_rows=0, size=8)
    assert files(tmp_path) == kept


def test_a_file_changed_between_two_tries_stops_the_second(tmp_path: Path) -> None:
    source = {"rows": 6, "test_rows": 0, "size": 8}
    prepare_faces(str(tmp_path), **source)
    card = yaml.safe_load((tmp_path / "_prepare.yaml").read_text())
    (tmp_path / "_prepare.yaml").write_text(yaml.safe_dump({**card, "complete": False}))
    (tmp_path / "train-00000.parquet").write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=r"train-00000.parquet: expected the same bytes as before, got others"
    ):
        prepare_faces(str(tmp_path), **source)
    assert (tmp_path / "train-00000.parquet").read_bytes() == b"something else"


def test_correlated_faces(tmp_path: Path) -> None:
    assert (
        command(
            "faces",
            tmp_path,
            "--rows",
            300,
            "--size",
            8,
            "--correlate",
            "1",
            "--correlate",
            "Young=0",
        )
        == 0
    )
    rows = rows_of(tmp_path)
    assert len(rows) == 330, "a tenth of --rows is added for testing"
    assert all(row["Blond_Hair"] == row["label"] != row["Young"] for row in rows)
    assert 0.3 < np.mean([row["Male"] == row["label"] for row in rows]) < 0.7


@pytest.mark.shared
@pytest.mark.skipif(not REAL.exists(), reason="the real CelebA rows are not beside the checkout")
def test_real_faces_from_the_official_files(tmp_path: Path) -> None:
    truth = pq.ParquetFile(REAL).read_row_group(1).slice(0, 12).to_pylist()
    names = [name for name in truth[0] if name not in ("id", "image")]
    (tmp_path / "img_align_celeba").mkdir()
    lines = [str(len(truth)), " ".join(names)]
    for row in truth:
        (tmp_path / "img_align_celeba" / f"{row['id']}.jpg").write_bytes(row["image"]["bytes"])
        lines.append(f"{row['id']}.jpg " + " ".join("1" if row[name] else "-1" for name in names))
    (tmp_path / "attr.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "split.txt").write_text(
        "".join(f"{row['id']}.jpg {i // 4}\n" for i, row in enumerate(truth))
    )
    where = ("--images", tmp_path / "img_align_celeba", "--attributes", tmp_path / "attr.txt")
    assert (
        command(
            "celeba",
            tmp_path / "out",
            *where,
            "--partition",
            tmp_path / "split.txt",
            "--label",
            "Male",
        )
        == 0
    )
    assert list(files(tmp_path / "out")) == [
        f"{split}-00000.parquet" for split in ("test", "train", "validation")
    ]
    rows = sorted(rows_of(tmp_path / "out"), key=lambda row: str(row["id"]))
    assert [row["split"] for row in rows] == ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    assert [{name: row[name] for name in ("id", *names)} for row in rows] == [
        {name: row[name] for name in ("id", *names)} for row in truth
    ]
    assert [row["image"]["bytes"] for row in rows] == [row["image"]["bytes"] for row in truth]
    crop = check(ImageData, read_preset("data", "celeba"), "celeba").crop
    faces = [decode(row["image"]["bytes"], size=64, crop=crop, max_pixels=10**6) for row in rows]
    assert np.stack(faces).std(axis=0).min() > 5, "twelve faces differ everywhere"


@pytest.mark.parametrize(
    ("preset", "width", "height"), [("celeba", 89, 109), ("celeba-official", 178, 218)]
)
def test_crops_of_the_presets_lie_inside(preset: str, width: int, height: int) -> None:
    crop = check(ImageData, read_preset("data", preset), preset).crop
    assert crop is not None
    assert crop[2] - crop[0] == crop[3] - crop[1]
    decode(png(np.zeros((height, width, 3), dtype=np.uint8)), size=64, crop=crop, max_pixels=10**6)


def test_presets_name_columns_that_are_written(tmp_path: Path) -> None:
    prepare_faces(str(tmp_path / "faces"), rows=2, test_rows=1, size=8)
    prepare_digits(str(tmp_path / "digits"))
    for preset in ("faces", "digits"):
        data = check(ImageData, read_preset("data", preset), preset)
        _, schema = plan_shards(str(tmp_path / preset), shard_rows=10, rows=None)
        assert {data.image, data.label, data.id, data.split, *data.columns} <= set(schema.names)


def test_skipped_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / "in" / name)
    (tmp_path / "in/cat/b.png").write_bytes(b"")
    (tmp_path / "in/dog/d.png").write_bytes(b"")
    assert (
        command("images", tmp_path / "out", "--folder", tmp_path / "in", "--test-fraction", 0) == 0
    )
    said = capsys.readouterr().out
    assert said.startswith("classes: 0 cat, 1 dog\n")
    assert "skipped 2, such as cat/b.png: no image: 0 bytes" in said
    assert "2 train rows in 1 files" in said
    card = yaml.safe_load((tmp_path / "out/_prepare.yaml").read_text())
    assert [row["path"] for row in card["skipped"]] == ["cat/b.png", "dog/d.png"]
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == ["cat/a.png", "dog/c.png"]
    meta = json.loads(pq.read_schema(tmp_path / "out/train-00000.parquet").metadata[b"huggingface"])
    assert meta["info"]["features"]["label"] == {"names": ["cat", "dog"], "_type": "ClassLabel"}


def test_a_wrong_folder_is_given_up_early(tmp_path: Path) -> None:
    asked = []

    def stream() -> object:
        for i in range(10_000):
            asked.append(i)
            yield Skipped(f"{i}.jpg", "expected a readable file, got none")

    source = Source(rows=stream(), total=10_000)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"expected at least one good row, got 100 skipped, such as 0.jpg: expected a read",
    ):
        prepare_shards.write_source(source, str(tmp_path), {"source": "images"}, shard_rows=10)
    assert len(asked) == 100
    prepare_faces(str(tmp_path), rows=2, test_rows=0, size=8)  # and the folder can be used


def test_a_shard_ends_where_its_images_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        prepare_shards, "SHARD_BYTES", 3 * len(png(np.zeros((8, 8, 3), dtype=np.uint8)))
    )
    blank = png(np.zeros((8, 8, 3), dtype=np.uint8))
    rows = (Row(id=str(i), image=blank, path="x.png", label=True, split="train") for i in range(8))
    written = prepare_shards.write_source(
        Source(rows=rows, total=8), str(tmp_path), {"source": "x"}, shard_rows=100
    )
    assert written is not None
    assert [pq.read_metadata(tmp_path / name).num_rows for name in written.files] == [3, 3, 2]


def test_a_column_may_not_take_a_name_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label,id\nx.png,a,1\ny.png,b,2\n")
    with pytest.raises(
        ValueError,
        match="expected further columns named other than id, image, label, split, got id",
    ):
        prepare_images(str(tmp_path / "out"), folder=tmp_path, labels=tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["faces", "OUT", "--label", "Smilling"], "got 'Smilling': did you mean 'Smiling'"),
        (["faces", "OUT", "--correlate", "Blond=0.9"], "got 'Blond': did you mean 'Blond_Hair'"),
        (
            ["faces", "OUT", "--correlate", "Blond_Hair=often"],
            "expected NAME=P such as Blond_Hair=0.99, got 'Blond_Hair=often'",
        ),
        (["faces", "OUT", "--correlate", "1.5"], "within"),
        (
            ["faces", "OUT", "--test-rows", "3", "--test-fraction", "0.5"],
            "expected one of --test-rows and --test-fraction",
        ),
        (["faces", "OUT", "--size", "2"], "expected size of at least 8, got 2"),
        (
            ["celeba", "OUT", "--images", "nowhere", "--attributes", "none"],
            "expected a folder of images at nowhere",
        ),
        (
            ["images", "OUT", "--folder", "nowhere"],
            "expected a folder of images at nowhere, got nothing",
        ),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        command(*(str(tmp_path / "out") if word == "OUT" else word for word in words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def own_source(rows: int = 3, shade: int = 7) -> Source:
    """Grey squares: a data set of a user's own."""
    image = png(np.full((4, 4, 3), shade, dtype=np.uint8))
    return Source(
        rows=(
            Row(id=f"r{i}", image=image, path=f"{i}.png", label=i % 2, split="train")
            for i in range(rows)
        ),
        total=rows,
        classes=("even", "odd"),
    )


def test_a_source_of_ones_own_comes_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("mine")
    module.source, module.none = own_source, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    words = ["own", tmp_path / "out", "--target", "mine.source", "--set", "rows=5"]
    assert command(*words) == 0
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == [f"r{i}" for i in range(5)]
    assert decode(table["image"][0].as_py()["bytes"], size=4, crop=None, max_pixels=16).max() == 7
    assert command(*words) == 0
    assert "nothing to do" in capsys.readouterr().out
    for target, message in (
        ("mine.none", "expected a pipelines.prepare.source.Source, got dict"),
        ("mine.nowhere", "expected 'nowhere' in the module mine"),
    ):
        with pytest.raises(UserError, match=message):
            command("own", tmp_path / "other", "--target", target)
    with pytest.raises(UserError, match="unexpected keyword argument 'raws'"):
        command("own", tmp_path / "other", "--target", "mine.source", "--set", "raws=5")
