"""Rows are read and decoded while others are worked on, never too far ahead, and always in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.rows import Ahead, read, rows_ahead
from storage.plan import plan_shards

SOON = 60.0  # a limit for a test that would otherwise hang


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
    assert rows_ahead(size) == count


def test_a_shard_of_large_images_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    cells = [{"bytes": os.urandom(400_000), "path": None} for _ in range(128)]
    # A row group of large images is one page, which Parquet can only read as a whole: less than that cannot be held.
    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet", compression="none", row_group_size=8)
    (shard,), _ = plan_shards(str(tmp_path), shard_rows=128, rows=None)
    del cells
    data = {"image": "image", "label": None, "id": None, "columns": [], "split": None}
    before, most = pa.total_allocated_bytes(), 0
    for record in read(shard, data, {"column": None}):
        assert len(record.content) == 400_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 26e6  # of 51e6
