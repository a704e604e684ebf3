"""The input's files when a run is planned, and whether they are still those when it is resumed."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.inputs import read_footers, unchanged
from storage.uri import Store, open_store


def write(folder: Path, name: str, rows: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"n": pa.array(range(rows), pa.int64())}), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(20):
        write(tmp_path / "data", f"{i:02d}.parquet", i)  # the first is empty
    return tmp_path / "data"


def test_footers_give_every_files_rows_in_order(data: Path) -> None:
    files, schema = read_footers(str(data), None, ["n"])
    assert [file.name for file in files] == [f"{i:02d}.parquet" for i in range(20)]
    assert [file.rows for file in files] == list(range(20))
    assert schema.names == ["n"]
    assert all(file.version == open_store(data).version(file.name) for file in files)


def test_files_behind_the_selection_are_not_opened(data: Path) -> None:
    (data / "19.parquet").write_bytes(b"no parquet")
    files, _ = read_footers(str(data), "2:6", ["n"])
    assert [file.rows for file in files] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"19\.parquet"):
        read_footers(str(data), None, ["n"])


def test_an_untouched_input_is_told_without_opening_a_file(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = read_footers(str(data), None)
    monkeypatch.setattr(Store, "parquet", lambda self, path: pytest.fail(f"opened {path}"))
    monkeypatch.setattr(Store, "read", lambda self, path: pytest.fail(f"read {path}"))
    assert unchanged(files, str(data), None)


@pytest.mark.parametrize("rows", [None, "2:", ":100"])
@pytest.mark.parametrize(
    "what", ["touched", "rewritten", "removed", "added before", "added inside", "all gone"]
)
def test_a_change_is_noticed(data: Path, what: str, rows: str | None) -> None:
    files, _ = read_footers(str(data), rows)
    assert unchanged(files, str(data), rows)
    if what == "touched":
        os.utime(data / "03.parquet", ns=(1, 1))
    elif what == "rewritten":
        write(data, "03.parquet", 4)
    elif what == "removed":
        (data / "00.parquet").unlink()
    elif what == "all gone":
        for path in data.glob("*.parquet"):
            path.unlink()
    else:
        write(data, "00-.parquet" if what == "added inside" else "0.parquet", 3)
    assert not unchanged(files, str(data), rows)


def test_files_behind_the_selection_may_come_and_go(data: Path) -> None:
    planned, _ = read_footers(str(data), ":6")
    write(data, "99.parquet", 3)
    (data / "12.parquet").unlink()
    assert unchanged(planned, str(data), ":6")
    whole, _ = read_footers(str(data), ":1000")
    write(data, "100.parquet", 3)
    # the selection had not ended: these rows are in it
    assert not unchanged(whole, str(data), ":1000")
