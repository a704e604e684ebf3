"""Plans and shards against a brute-force reading of the same files, and what may not be read at
all.
"""

import errno
import io
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import StorageError
from storage.plan import FileChanged, iterate_shard, plan_shards, read_shard
from storage.uri import Store, open_store

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("n", pa.int64()), ("image", KIND), ("label", pa.int64())])


def table(first: int, rows: int) -> pa.Table:
    cells = [
        {"n": n, "image": {"bytes": b"%d" % n * 20, "path": f"{n}.png"}, "label": n % 2}
        for n in range(first, first + rows)
    ]
    return pa.Table.from_pylist(cells, schema=SCHEMA)


def parquet(first: int, groups: list[int], **options: Any) -> bytes:
    out = io.BytesIO()
    with pq.ParquetWriter(out, SCHEMA, **options) as writer:
        for rows in groups:
            writer.write_table(table(first, rows), row_group_size=max(rows, 1))
            first += rows
    return out.getvalue()


ODD = {
    "a.parquet": [7, 1, 5],
    "b.parquet": [],
    "c/d.parquet": [1],
    "c/e.parquet": [3, 300, 2],
    "f.parquet": [10],
}
TOTAL = sum(sum(groups) for groups in ODD.values())


@pytest.fixture
def odd(store: Store) -> Store:
    """Five files of odd row groups, whose column n counts through them in name order."""
    first = 0
    for name, groups in ODD.items():
        store.write(name, parquet(first, groups))
        first += sum(groups)
    return store


SLICES = [None, ":", "0:1", "5:6", "6:9", "12:14", "13:", ":13", "14:321", "17:20", "100:1000000"]


@pytest.mark.parametrize(
    ("rows", "folder"),
    [(rows, "disk") for rows in SLICES] + [(rows, "s3") for rows in ("5:6", "12:330")],
    indirect=["folder"],
)
def test_shards_are_the_selected_rows_in_order(odd: Store, rows: str | None) -> None:
    first, stop = (int(part) if part else None for part in (rows or ":").split(":"))
    expected = list(range(TOTAL))[first:stop]
    for shard_rows in (60, 10_000) if odd.uri.startswith("s3://") else (7, 60, 10_000):
        shards, schema = plan_shards(odd.uri, shard_rows=shard_rows, rows=rows)
        assert schema == SCHEMA
        assert [shard.index for shard in shards] == list(range(len(shards)))
        seen: list[int] = []
        for shard in shards:
            assert set(shard.to_json()) == {
                "index",
                "file",
                "name",
                "version",
                "start",
                "rows",
                "offset",
            }
            assert shard.offset == len(seen)
            assert 1 <= shard.rows <= shard_rows
            part = read_shard(shard, ["n"])
            assert part.num_rows == shard.rows
            assert part.column_names == ["n"]
            seen += part["n"].to_pylist()
        assert seen == expected
        whole = -(-len(expected) // shard_rows)
        assert whole <= len(shards) <= whole + len(ODD)  # no needless cuts


def test_random_files_slices_and_shard_sizes_against_brute_force(tmp_path: Path) -> None:
    rng = random.Random(3)
    for trial in range(12):
        store, first = open_store(tmp_path / str(trial)), 0
        for i in range(rng.randint(1, 4)):
            groups = [rng.choice([0, 1, 2, 9, 31]) for _ in range(rng.randint(0, 4))]
            store.write(f"{i}.parquet", parquet(first, groups))
            first += sum(groups)
        for _ in range(4):
            a, b = rng.randint(0, first), rng.randint(0, first + 5)
            expected = [(n, f"{n}.png") for n in range(first)][a:b]
            if not expected:
                with pytest.raises(ValueError, match="expected rows"):
                    plan_shards(store.uri, shard_rows=5, rows=f"{a}:{b}")
                continue
            shards, _ = plan_shards(store.uri, shard_rows=rng.randint(1, 40), rows=f"{a}:{b}")
            got = [row for shard in shards for row in read_shard(shard, ["image", "n"]).to_pylist()]
            assert [(row["n"], row["image"]["path"]) for row in got] == expected


def test_only_footers_overlapping_groups_and_asked_columns_are_read(tmp_path: Path) -> None:
    """Everything else is made unreadable, and nobody notices; then the wanted part is, and it is
    noticed.
    """
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet(0, [10, 10, 10], compression="zstd"))
    data, footer = bytearray(path.read_bytes()), pq.read_metadata(path)

    def ruin(group: int, column: int) -> None:
        chunk = footer.row_group(group).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xee" * chunk.total_compressed_size

    names = [footer.row_group(0).column(i).path_in_schema for i in range(4)]
    assert names == ["n", "image.bytes", "image.path", "label"]
    for group in range(3):
        for column in range(4):
            if group != 1 or names[column] != "n":
                ruin(group, column)
    path.write_bytes(data)
    shards, _ = plan_shards(str(path), shard_rows=5, rows=None)
    assert [n for shard in shards[2:4] for n in read_shard(shard, ["n"])["n"].to_pylist()] == list(
        range(10, 20)
    )
    for shard, columns in [
        (shards[0], ["n"]),
        (shards[4], ["n"]),
        (shards[2], ["label"]),
        (shards[2], ["image"]),
    ]:
        with pytest.raises((OSError, ValueError)):
            read_shard(shard, columns)


def test_one_huge_row_group_does_not_fill_the_memory(tmp_path: Path) -> None:
    cells = [{"bytes": os.urandom(20_000), "path": None} for _ in range(1000)]
    pq.write_table(
        pa.table({"image": pa.array(cells, KIND)}), tmp_path / "x.parquet", compression="none"
    )
    shards, _ = plan_shards(str(tmp_path), shard_rows=10, rows=":10")
    del cells
    before = pa.total_allocated_bytes()
    part = read_shard(shards[0], ["image"])
    held = pa.total_allocated_bytes() - before
    assert part.num_rows == 10
    assert held < 12e6  # of 20e6


def test_a_row_group_is_not_read_past_the_shard(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    numbers = pa.table({"n": pa.array(range(4000), pa.int64())})
    pq.write_table(
        numbers,
        path,
        data_page_size=512,
        write_batch_size=64,
        use_dictionary=False,
        compression="none",
    )
    data, chunk = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(0)
    end = chunk.data_page_offset + chunk.total_compressed_size
    data[end - 16_000 : end] = b"\xee" * 16_000
    path.write_bytes(data)
    shards, _ = plan_shards(str(path), shard_rows=100, rows=None)
    assert read_shard(shards[3], ["n"])["n"].to_pylist() == list(range(300, 400))
    with pytest.raises((OSError, ValueError)):
        read_shard(shards[-1], ["n"])


def test_columns_come_in_the_order_asked_and_once(odd: Store) -> None:
    shards, _ = plan_shards(odd.uri, shard_rows=64, rows=None)
    assert read_shard(shards[0], ["label", "n", "label"]).column_names == ["label", "n"]
    with pytest.raises(ValueError, match="at least one column"):
        read_shard(shards[0], [])


def test_a_missing_column_names_the_nearest(odd: Store) -> None:
    shards, _ = plan_shards(odd.uri, shard_rows=64, rows=None)
    with pytest.raises(
        ValueError, match=r"a.parquet: expected a column 'lable', got none: did you mean 'label'\?"
    ):
        read_shard(shards[0], ["n", "lable"])
    with pytest.raises(
        ValueError, match="expected a column 'zzz', got none: there is n, image, label"
    ):
        read_shard(shards[0], ["zzz"])


def test_every_file_must_have_the_columns_that_are_needed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "label": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"n": ["1"], "label": [1]}), tmp_path / "c.parquet")
    assert len(plan_shards(str(tmp_path), shard_rows=1, rows=None)[0]) == 3
    with pytest.raises(ValueError, match=r"b.parquet: expected a column 'label', got none"):
        plan_shards(str(tmp_path), shard_rows=1, rows=None, columns=["label"])
    with pytest.raises(ValueError, match=r"c.parquet: expected column 'n' as int64, got string"):
        plan_shards(str(tmp_path), shard_rows=1, rows=None, columns=["n"])


@pytest.mark.parametrize("rows", [10, 11])
def test_a_changed_file_is_refused_with_both_versions(store: Store, rows: int) -> None:
    store.write("x.parquet", parquet(20, [10], compression="none"))
    size = len(store.read("x.parquet"))
    shards, _ = plan_shards(store.uri, shard_rows=4, rows=None)
    store.replace("x.parquet", parquet(30, [rows], compression="none"))
    assert (len(store.read("x.parquet")) == size) == (rows == 10)
    with pytest.raises(
        FileChanged, match=r"x.parquet changed since it was planned: expected .*, got "
    ) as caught:
        read_shard(shards[0], ["n"])
    assert shards[0].version in str(caught.value)
    assert store.version("x.parquet") in str(caught.value)


def test_a_removed_file_is_named(store: Store) -> None:
    store.write("x.parquet", parquet(0, [10]))
    shards, _ = plan_shards(store.uri, shard_rows=4, rows=None)
    gone = replace(shards[0], file=store.url("y.parquet"))
    with pytest.raises(
        FileChanged, match=r"y\.parquet changed since it was planned: .* got no such file"
    ):
        read_shard(gone, ["n"])


def test_a_file_that_changes_while_it_is_read_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x.parquet", parquet(0, [10]))
    shards, _ = plan_shards(store.uri, shard_rows=4, rows=None)
    real = Store.parquet

    def change(self: Store, path: str, *, streamed: bool = False) -> pq.ParquetFile:
        file = real(self, path, streamed=streamed)
        store.replace("x.parquet", parquet(5, [10, 1]))
        return file

    monkeypatch.setattr(Store, "parquet", change)
    with pytest.raises((FileChanged, OSError)):
        read_shard(shards[0], ["n"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "planted"),
        StorageError("planted"),
        FileNotFoundError("planted"),
        MemoryError("planted"),
    ],
)
def test_a_disk_or_a_server_that_fails_makes_no_row_unreadable(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store.write("x.parquet", parquet(0, [10]))
    (shard,), _ = plan_shards(store.uri, shard_rows=10, rows=None)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(type(error), match="planted"):
        list(iterate_shard(shard, ["n"]))


def test_what_a_changed_file_gives_instead_of_rows_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x.parquet", parquet(0, [10]))
    (shard,), _ = plan_shards(store.uri, shard_rows=10, rows=None)

    def fail(*_: Any, **__: Any) -> Any:
        store.replace("x.parquet", parquet(5, [10, 1]))
        raise OSError("Corrupt snappy compressed data.")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(FileChanged, match="changed since it was planned"):
        list(iterate_shard(shard, ["n"]))


@pytest.mark.parametrize("data", [b"", b"not parquet at all"])
def test_a_file_that_is_no_parquet_stops_the_plan_by_name(odd: Store, data: bytes) -> None:
    odd.write("c/broken.parquet", data)
    with pytest.raises(ValueError, match=f"c/broken.parquet, got {len(data)} bytes"):
        plan_shards(odd.uri, shard_rows=64, rows=None)


def test_a_damaged_schema_stops_the_plan_by_name(tmp_path: Path) -> None:
    data = parquet(0, [3])
    assert b"/////" in data  # how Arrow's own schema begins, in base64
    (tmp_path / "a.parquet").write_bytes(data.replace(b"/////", b"AAAAA"))
    with pytest.raises(ValueError, match=r"a\.parquet, got \d+ bytes of no Parquet"):
        plan_shards(str(tmp_path), shard_rows=64, rows=None)


@pytest.mark.parametrize("folder", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "rows", ["5", "a:b", "-3:", "1:2:3", "9:9", "9:3", "", f"{TOTAL}:", "1000:2000"]
)
def test_slices_that_select_nothing_are_refused(odd: Store, rows: str) -> None:
    with pytest.raises(ValueError, match="expected rows"):
        plan_shards(odd.uri, shard_rows=64, rows=rows)


def test_empty_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected Parquet files at"):
        plan_shards(str(tmp_path), shard_rows=64, rows=None)
    pq.write_table(table(0, 0), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="got none"):
        plan_shards(str(tmp_path), shard_rows=64, rows=None)
    with pytest.raises(ValueError, match="expected shard_rows >= 1"):
        plan_shards(str(tmp_path), shard_rows=0, rows=None)


def test_the_same_files_give_the_same_plan(odd: Store) -> None:
    assert plan_shards(odd.uri, shard_rows=5, rows="3:99") == plan_shards(
        odd.uri, shard_rows=5, rows="3:99"
    )
