"""Rows are read and decoded while others are worked on, never too far ahead, and
always in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.modality import Images
from actors.rows.read import Ahead, Unusable, decoded, read
from configs.schema import ImageData, TargetConfig, load_run
from storage.plan import plan_shards
from storage.schema import row_id

SOON = 60.0  # a limit for a test that would otherwise hang

NONE = TargetConfig(rule="opposite")  # of no column


def test_the_next_items_are_made_while_the_first_is_worked_on() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for i, event in enumerate(made):
            event.set()
            yield i

    reader = iter(Ahead(items(), 3))
    assert next(reader) == 0
    assert made[3].wait(SOON)  # without asking for another
    assert list(reader) == [1, 2, 3]


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    asked = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            asked.release()
            yield i

    ahead = Ahead(items(), 3)
    reader = iter(ahead)
    for taken in range(20):
        assert asked.acquire(timeout=SOON)
        assert next(reader) == taken
        assert len(made) <= taken + 1 + 3 + 1  # taken, waiting, and one in the thread's hand
    ahead.close()


def test_an_error_is_raised_where_the_items_are_read_after_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("planted")

    reader = iter(Ahead(items(), 8))
    assert next(reader) == 1
    with pytest.raises(ValueError, match="planted"):
        next(reader)


def test_what_is_closed_lets_its_thread_end() -> None:
    ended = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    ahead = Ahead(items(), 2)
    next(iter(ahead))
    ahead.close()
    del ahead
    assert ended.wait(SOON)


@pytest.mark.parametrize(("size", "count"), [(8, 256), (64, 256), (512, 85), (1024, 21), (8192, 2)])
def test_large_images_wait_in_smaller_numbers(size: int, count: int) -> None:
    assert Images(ImageData(path="x", size=size)).ahead() == count


def test_a_shard_of_large_images_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    cells = [{"bytes": os.urandom(400_000), "path": None} for _ in range(128)]
    # A row group of large images is one page, which Parquet can only read as a whole: less than
    # that cannot be held.
    pq.write_table(
        pa.table({"image": cells}), tmp_path / "x.parquet", compression="none", row_group_size=8
    )
    (shard,), _ = plan_shards(str(tmp_path), shard_rows=128, rows=None)
    del cells
    data = ImageData(path="x", id=None, columns=[])
    before, most = pa.total_allocated_bytes(), 0
    for record in read(shard, data, NONE, Images(data)):
        assert len(record.source) == 400_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 26e6  # of 51e6


@pytest.mark.parametrize("own", [True, False])
def test_rows_behind_a_damaged_page_are_set_aside_by_their_names(tmp_path: Path, own: bool) -> None:
    """Of two row groups the first has a damaged page of images; of each row that is not behind it
    nothing is lost.
    """
    path = tmp_path / "x.parquet"
    cells = [{"bytes": os.urandom(3000), "path": None} for _ in range(48)]
    table = pa.table({"image": cells, "name": [f"row {i}" for i in range(48)]})
    pq.write_table(
        table,
        path,
        row_group_size=32,
        data_page_size=9000,
        write_batch_size=4,
        use_dictionary=False,
    )
    chunk = pq.read_metadata(path).row_group(0).column(0)
    assert chunk.path_in_schema == "image.bytes"
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 6000] = b"\xee" * 6000  # at least one page's header is in there
    path.write_bytes(content)
    data = ImageData(path="x", id="name" if own else None, columns=[])
    shards, _ = plan_shards(str(tmp_path), shard_rows=24, rows=None)
    found = [record for shard in shards for record in read(shard, data, NONE, Images(data))]
    good = [i for i, record in enumerate(found) if record.lost is None]
    lost = sorted(set(range(48)) - set(good))
    assert lost == list(range(lost[0], 32))
    assert 4 <= lost[0] <= 20
    assert [found[i].source for i in good] == [cells[i]["bytes"] for i in good]
    for i in lost:
        assert found[i].id == (f"row {i}" if own else row_id(b"", f"x.parquet#{i}"))
    assert f"{path}: rows {lost[0]}:24 cannot be read: OSError: " in str(found[lost[0]].lost)
    assert f"{path}: rows 24:32 cannot be read: OSError: " in str(found[24].lost)
    config = load_run("demo-plain").model_copy(update={"data": data, "target": NONE})
    (row,) = decoded([found[31]], shards[1], config, (), set(), Images(data))
    assert isinstance(row, Unusable)
    assert row.reason == found[31].lost


def test_a_text_that_is_none_sets_its_row_aside(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2", b"3"], "name": ["a", "bbbb", "c"]})
    pq.write_table(
        table,
        tmp_path / "x.parquet",
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content.replace(b"bbbb", b"\xff\xff\xff\xff"))
    data = ImageData(path="x", id=None, columns=["name"])
    (shard,), _ = plan_shards(str(tmp_path), shard_rows=3, rows=None)
    found = list(read(shard, data, NONE, Images(data)))
    assert [record.source for record in found] == [b"1", None, b"3"]
    assert [record.lost for record in found] == [
        None,
        "a text of its 'name' cannot be read: invalid start byte",
        None,
    ]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 10**8, 2], pa.date32()),
        pa.array([1, 2**62, 2], pa.timestamp("us")),
        pa.array([1, -(2**50), 2], pa.timestamp("s", "UTC")),
        pa.array([1, 2**60, 2], pa.duration("ms")),
        pa.array([[1], [2**62], [2]], pa.list_(pa.timestamp("us"))),
    ],
    ids=str,
)
@pytest.mark.parametrize("own", [True, False])
def test_a_value_that_python_has_not_sets_its_row_aside(
    tmp_path: Path, values: pa.Array, own: bool
) -> None:
    table = pa.table({"image": [b"1", b"2", b"3"], "at": values, "name": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "x.parquet")
    data = ImageData(path="x", id="name" if own else None, columns=["at"])
    (shard,), _ = plan_shards(str(tmp_path), shard_rows=3, rows=None)
    found = list(read(shard, data, NONE, Images(data)))
    assert [record.lost is None for record in found] == [True, False, True]
    assert str(found[1].lost).startswith("its 'at' (")
    assert str(found[1].lost).endswith(
        "cannot be read: Python has no such value, or no such time zone"
    )
    if own:
        assert [record.id for record in found] == ["a", "b", "c"]


def test_a_time_zone_that_nobody_knows_is_each_rows_reason(tmp_path: Path) -> None:
    at = pa.array([1, 2], pa.timestamp("us", "Mars/Olympus"))
    pq.write_table(pa.table({"image": [b"1", b"2"], "at": at}), tmp_path / "x.parquet")
    (shard,), _ = plan_shards(str(tmp_path), shard_rows=3, rows=None)
    data = ImageData(path="x", columns=["at"])
    found = list(read(shard, data, NONE, Images(data)))
    assert ["Mars/Olympus" in str(record.lost) for record in found] == [True, True]
