"""Parquet as this tool writes and reads it: every page has a checksum, verified on reading."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet as pq

from storage.errors import BadData

AHEAD = 64 << 10  # bytes at a file's end that contain most footers


def to_parquet(table: pa.Table, **settings: Any) -> bytes:
    """Return a table as the bytes of one Parquet file; settings: `write_table`'s,
    compression zstd.
    """
    out = io.BytesIO()
    settings = {"compression": "zstd", **settings}
    pq.write_table(table, out, write_page_checksum=True, **settings)
    return out.getvalue()


def parquet_writer(out: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of row groups into an open file."""
    return pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True)


def open_parquet(source: Any, **settings: Any) -> pq.ParquetFile:
    """Open a Parquet file whose pages are verified when they are read.

    Pages of a file without checksums are not verified.
    """
    return pq.ParquetFile(source, page_checksum_verification=True, **settings)


def footer_digest(data: bytes) -> str:
    """Return the sha256 of a Parquet file's footer, with its length and magic.

    The checksums of pages do not cover these bytes.
    """
    return hashlib.sha256(data[-_footer_bytes(data) :]).hexdigest()


def read_footer(file: BinaryIO, digest: str) -> pq.FileMetaData:
    """Read the footer of an open Parquet file; pa.ArrowInvalid where its digest differs."""
    tail = _tail(file, AHEAD)
    if _footer_bytes(tail) > len(tail):
        tail = _tail(file, _footer_bytes(tail))
    if footer_digest(tail) != digest:
        raise pa.ArrowInvalid("its footer is not the one that was committed")
    return pq.read_metadata(pa.BufferReader(tail))


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that a Parquet file is broken.

    A failing disk's error has a number instead, and a store's error has its own type.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    if isinstance(error, MemoryError | pa.ArrowCancelled):
        return False
    return isinstance(error, pa.ArrowException | UnicodeDecodeError)


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Replace the error of a broken Parquet file by BadData that names it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if not is_damage(error):
            raise
        told = " ".join(str(error).split())
        raise BadData(f"{where}: expected Parquet that can be read, got {told}") from None


def _tail(file: BinaryIO, count: int) -> bytes:
    """Read the last `count` bytes of an open file, or all where it is shorter."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - count, 0))
    return file.read(min(size, count))


def _footer_bytes(data: bytes) -> int:
    return int.from_bytes(data[-8:-4], "little") + 8
