"""Parquet with checksums: what of a file is not what was written is not read."""

import io
from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import BadData
from storage.tables import AHEAD, damage_named, footer_digest, open_parquet, read_footer, to_parquet
from storage.uri import Store, open_store

ROOT = Path(__file__).parents[2]
# of which the second has a footer that is longer than what is read at first
TABLES = {
    "small": pa.table({"id": [f"row-{i}" for i in range(50)], "x": [i / 7 for i in range(50)]}),
    "wide": pa.table({f"column-{i}": [i] for i in range(600)}),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_footer_is_read_by_its_digest_alone(store: Store, name: str) -> None:
    data = to_parquet(TABLES[name])
    assert (len(data) > AHEAD) == (name == "wide")
    store.write("x.parquet", data)
    with store.parquet("x.parquet", footer=footer_digest(data)) as file:
        assert file.read().equals(TABLES[name])
    with pytest.raises(ValueError, match=r"x\.parquet, got \d+ bytes of others"):
        store.parquet("x.parquet", footer="0" * 64)


def test_no_flipped_bit_of_a_file_is_read(tmp_path: Path) -> None:
    table, store = TABLES["small"], open_store(tmp_path)
    data = to_parquet(table)
    silent = [
        bit
        for bit in range(0, 8 * len(data), 3)
        if (found := read(store, data, bit)) is not None and not found.equals(table)
    ]
    assert silent == []


def read(store: Store, data: bytes, bit: int) -> pa.Table | None:
    """The table with a bit flipped; None where it is refused."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    store.replace("x.parquet", bytes(changed))
    try:
        with store.parquet("x.parquet", footer=footer_digest(data)) as file:
            return file.read(use_threads=False)
    except (ValueError, OSError, pa.ArrowException):
        return None


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 3, b"\xff" * 200])
def test_what_is_no_parquet_has_no_footer(data: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid):
        read_footer(io.BytesIO(data), "0" * 64)


def test_a_file_without_checksums_is_read() -> None:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(TABLES["small"], out)
    with open_parquet(pa.BufferReader(out.getvalue())) as file:
        assert file.read().equals(TABLES["small"])


def test_nobody_else_writes_or_opens_parquet() -> None:
    """Else a file would be without checksums, or read without them."""
    words = ("pq.write_table", "pq.ParquetWriter", "pq.ParquetFile(", "pq.read_table")
    for folder in ("actors", "configs", "pipelines", "storage"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "tables.py" or folder != "storage":
                assert not any(word in path.read_text() for word in words), path


def test_a_broken_file_is_named_and_a_failing_disk_is_not_it(tmp_path: Path) -> None:
    data = bytearray(to_parquet(TABLES["small"]))
    data[40] ^= 1
    store = open_store(tmp_path)
    store.write("x.parquet", bytes(data))
    with (
        pytest.raises(BadData, match=r"/x\.parquet: expected Parquet that can be read, got .*CRC"),
        damage_named(store.url("x.parquet")),
        store.parquet("x.parquet") as file,
    ):
        file.read()
    with pytest.raises(OSError, match="EIO"), damage_named("x"):
        raise OSError(5, "EIO")
