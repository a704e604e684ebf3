"""Images that rows name by a path: found beside the data, never waited for, never fetched from
elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.modality import Images
from actors.rows import files
from actors.rows.files import with_files
from actors.rows.read import no_paths, read
from configs.schema import ImageData, TargetConfig
from storage.codec import BadRow
from storage.plan import plan_shards
from storage.schema import IMAGE, row_id
from storage.uri import open_store


def filled(cell: Any, file: Path | str) -> Any:
    return with_files({"image": cell, "n": 1}, ["image"], str(file))["image"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a b.png").write_bytes(b"png")
    return tmp_path / "data.parquet"


@pytest.mark.parametrize("way", ["struct", "text", "absolute", "url", "parent"])
def test_a_path_is_read_from_the_data_files_folder(data: Path, way: str) -> None:
    path = {
        "absolute": str(data.parent / "pics" / "a b.png"),
        "url": f"file://{data.parent}/pics/a%20b.png",
        "parent": "../pics/a b.png",
    }.get(way, "pics/a b.png")
    at = data.parent / "deep" / "x.parquet" if way == "parent" else data
    at.parent.mkdir(exist_ok=True)
    cell = {"bytes": None, "path": path} if way == "struct" else path
    assert filled(cell, at) == {"bytes": b"png", "path": path}


def test_bytes_count_and_not_the_path(data: Path) -> None:
    for cell in (
        {"bytes": b"own", "path": "pics/a b.png"},
        {"bytes": None, "path": None},
        b"x",
        None,
    ):
        assert filled(cell, data) is cell


def test_a_path_may_count_from_the_current_folder(
    data: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.parquet"
    assert filled("pics/a b.png", elsewhere)["bytes"] == b"png"


def test_no_file_a_pipe_and_a_huge_one_are_a_rows_reason(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(data.parent / "pipe")
    monkeypatch.setattr(files, "FILE_BYTES", 2)
    for path in ("none.png", "pics", "pipe", "/dev/zero", "pics/a b.png", "x" * 5000, "a\0b"):
        cells = with_files({"image": path}, ["image"], str(data))
        assert cells["image"] == {"bytes": None, "path": path}
        with pytest.raises(
            BadRow, match="no image: its bytes are null, and at its path is no file"
        ):
            Images(ImageData(path="x")).read(cells, None)


def test_a_disk_that_fails_is_no_rows_fault(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(5, "planted")

    monkeypatch.setattr(files, "open", fail, raising=False)
    with pytest.raises(OSError, match="planted"):
        filled("pics/a b.png", data)


def test_in_a_bucket_nothing_outside_of_it_is_read(s3_folder: str, data: Path) -> None:
    open_store(s3_folder).write("pics/x.png", b"png")
    file = f"{s3_folder}/data.parquet"
    for path in ("pics/x.png", f"{s3_folder}/pics/x.png"):
        assert filled(path, file)["bytes"] == b"png"
    for path in (
        str(data.parent / "pics" / "a b.png"),
        f"file://{data.parent}/pics/a b.png",
        "../x.png",
        "s3://another-bucket/x.png",
        "http://127.0.0.1:1/x.png",
        "pics/none.png",
    ):
        assert filled(path, file)["bytes"] is None
    assert filled(f"{s3_folder}/pics/x.png", data)["bytes"] is None


def test_rows_are_named_by_what_their_files_hold(data: Path) -> None:
    cells = [{"bytes": None, "path": path} for path in ("pics/a b.png", "pics/none.png")]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), data)
    (shard,), _ = plan_shards(str(data), shard_rows=9, rows=None)
    of = ImageData(path=str(data))
    found = list(read(shard, of, TargetConfig(rule="opposite"), Images(of)))
    assert [record.source for record in found] == [b"png", None]
    assert [record.id for record in found] == [
        row_id(b"png", "data.parquet#0"),
        row_id(b"", "data.parquet#1"),
    ]


def test_texts_that_lead_nowhere_are_told_before_a_run(data: Path) -> None:
    for paths, bad in ((["none", "pics/a b.png"], False), (["a cat", None], True)):
        pq.write_table(pa.table({"image": paths}), data)
        (shard,), _ = plan_shards(str(data), shard_rows=9, rows=None)
        told = no_paths(shard, "image")
        assert bad == ("got texts such as 'a cat', at which is no file" in str(told))
        assert bad == (told is not None)
