"""Columns of one meaning, written in different ways, are one column; those of two meanings are
not.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.columns import mean_the_same, partitions, type_of
from storage.inputs import first_schema, read_footers
from storage.plan import plan_shards, read_shard


def rows(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    shards, _ = plan_shards(str(folder), shard_rows=100, rows=None, columns=columns)
    return [row for shard in shards for row in read_shard(shard, columns).to_pylist()]


PNG = {"bytes": b"png", "path": "x.png"}
WAYS: dict[str, list[pa.Array]] = {
    "texts": [
        pa.array(["cat", None], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())
    ]
    + [pa.array(["cat", None]).dictionary_encode()],
    "numbers": [
        pa.array([1, None], kind)
        for kind in (pa.int64(), pa.int8(), pa.uint16(), pa.float64(), pa.float32())
    ],
    "images": [
        pa.array([PNG, None], pa.struct([("bytes", kind), ("path", pa.string())]))
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    ]
    + [pa.array([PNG, None], pa.struct([("path", pa.large_string()), ("bytes", pa.binary())]))],
}


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.parametrize("first", ["null", "empty", "as it is"])
def test_one_meaning_in_many_types_is_one_column(tmp_path: Path, what: str, first: str) -> None:
    start = {
        "null": pa.table({"x": pa.nulls(2)}),
        "empty": pa.table({"index": pa.array([], pa.int64())}),  # pandas of no rows
        "as it is": pa.table({"x": WAYS[what][0]}),
    }[first]
    pq.write_table(start, tmp_path / "0.parquet")
    for number, values in enumerate(WAYS[what], 1):
        pq.write_table(pa.table({"x": values}), tmp_path / f"{number}.parquet")
    value = WAYS[what][0][0].as_py()
    before = {"null": [None, None], "empty": [], "as it is": [value, None]}[first]
    assert [row["x"] for row in rows(tmp_path, ["x"])] == before + [value, None] * len(WAYS[what])
    _, schema = read_footers(str(tmp_path), None, ["x"])
    assert schema.field("x").type == WAYS[what][0].type


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.string(), pa.int64()),
        (pa.binary(), pa.string()),
        (pa.list_(pa.int8()), pa.int8()),
        (pa.timestamp("us"), pa.int64()),
        (pa.struct([("a", pa.int8())]), pa.struct([("bytes", pa.binary())])),
        (pa.dictionary(pa.int8(), pa.string()), pa.int8()),
    ],
)
def test_two_meanings_are_two(one: pa.DataType, other: pa.DataType) -> None:
    assert not mean_the_same(one, other)
    assert mean_the_same(one, one)
    assert mean_the_same(pa.null(), other)


def test_a_file_of_another_meaning_is_named_even_behind_nulls(tmp_path: Path) -> None:
    for name, values in {"a": [None], "b": ["x"], "c": [3]}.items():
        pq.write_table(pa.table({"x": pa.array(values)}), tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: expected column 'x' as string, got int64"):
        rows(tmp_path, ["x"])


def test_a_name_that_is_there_twice_is_refused_only_where_it_is_wanted(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2], "x": ["a", "b"]})
    pq.write_table(table.append_column("x", table["x"]), tmp_path / "a.parquet")
    assert rows(tmp_path, ["n"]) == [{"n": 1}, {"n": 2}]
    with pytest.raises(ValueError, match=r"a\.parquet: expected one column 'x', got 2"):
        rows(tmp_path, ["n", "x"])


def test_a_field_of_a_struct_is_a_column(tmp_path: Path) -> None:
    cells = [{"id": 1, "of": {"name": "cat", "age": 3}}, None, {"id": 2, "of": None}]
    table = pa.table({"meta": cells, "meta.x": [7, 8, 9], "n": [0, 1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    got = rows(tmp_path, ["meta.of.name", "n", "meta.id", "meta.x"])
    assert [list(row.values()) for row in got] == [["cat", 0, 1, 7], [None, 1, None, 8],
                                                   [None, 2, 2, 9]]  # fmt: skip
    assert rows(tmp_path, ["meta.id", "meta"])[0] == {"meta.id": 1, "meta": cells[0]}
    assert type_of(first_schema(str(tmp_path)), "meta.of") == pa.struct(
        [("name", pa.string()), ("age", pa.int64())]
    )
    for missing in ("meta.of.size", "n.x", "of.name", "meta..id"):
        with pytest.raises(ValueError, match=f"expected a column '{missing}', got none"):
            rows(tmp_path, [missing])


def test_a_field_of_a_struct_may_be_null_in_the_first_file(tmp_path: Path) -> None:
    for name, cells in {
        "a": pa.nulls(1),
        "b": pa.array([{"x": None}]),
        "c": pa.array([{"x": {"y": 3}}]),
    }.items():
        pq.write_table(pa.table({"s": cells, "n": [1]}), tmp_path / f"{name}.parquet")
    assert [row["s.x.y"] for row in rows(tmp_path, ["s.x.y", "n"])] == [None, None, 3]
    assert [row["s"] for row in rows(tmp_path, ["s.x.y", "s"])][2] == {"x": {"y": 3}}
    _, schema = read_footers(str(tmp_path), None, ["s.x.y"])
    assert type_of(schema, "s.x.y") == pa.int64()


def test_a_columns_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1], "bbbb": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"bbbb", b"\xff\xfe\xff\xfe"))
    with pytest.raises(ValueError, match=r"a\.parquet: expected names of columns in UTF-8"):
        rows(tmp_path, ["n"])


def test_folders_named_key_value_are_columns(tmp_path: Path) -> None:
    for value, numbers in {
        "not smiling": [1, 2],
        "50%25": [3],
        "__HIVE_DEFAULT_PARTITION__": [4],
    }.items():
        folder = tmp_path / f"label={value}" / "year=2020"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"n": numbers}), folder / "a.parquet")
    got = {row["n"]: (row["label"], row["year"]) for row in rows(tmp_path, ["label", "n", "year"])}
    assert got == {1: ("not smiling", "2020"), 2: ("not smiling", "2020"), 3: ("50%", "2020"),
                   4: (None, "2020")}  # fmt: skip
    assert [row["year"] for row in rows(tmp_path, ["year"])] == ["2020"] * 4
    (one,) = (tmp_path / "label=50%25").rglob("*.parquet")
    assert rows(one, ["label"]) == [{"label": "50%"}]
    with pytest.raises(ValueError, match=r"expected a column 'lable', got none: .* 'label'"):
        rows(tmp_path, ["lable"])


def test_a_column_of_the_file_comes_before_one_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "x=folder").mkdir()
    pq.write_table(pa.table({"x": ["file"]}), tmp_path / "x=folder" / "a.parquet")
    assert rows(tmp_path, ["x"]) == [{"x": "file"}]


def test_the_inner_of_two_folders_counts() -> None:
    assert partitions("s3://b/k=1/a=x/k=2/=3/p.parquet") == {"k": "2", "a": "x"}
    assert partitions("/k=1") == {}


def test_times_of_any_unit_are_times(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 1, 2, 3, 4, 5)
    for unit in ("s", "ms", "us", "ns"):
        pq.write_table(
            pa.table({"at": pa.array([day], pa.timestamp(unit))}), tmp_path / f"{unit}.parquet"
        )
    assert {row["at"] for row in rows(tmp_path, ["at"])} == {day}
