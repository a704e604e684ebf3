"""Digests of what a run's stages write besides their commits: kept in its manifest, checked by
verify.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from storage.errors import BadData
from storage.seal import read_sealed
from storage.tables import is_damage, open_parquet
from storage.uri import Digest, Store, digest_of

MANIFEST = "MANIFEST.json"
# where products lie; a judge's folder may hold a user's answers besides
FILES = ("plan.json", "config.yaml", "report.html")
FOLDERS = ("input", "score", "attribution", "judge", "augment")
JUDGES = re.compile(r"judge/(prompts|scores)[^/]*")


def product_digests(store: Store, before: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each product, by path: of what this process wrote as it wrote it, of the
    others as `before` has them.

    before: the products of the manifest that stands; None where it has none: then what is there is
    read. A file that was damaged since keeps the digest that it was written with.
    """
    found = {path: Digest(**digest) for path, digest in (before or {}).items()} | store.replaced
    there = [path for path in FILES if store.is_file(path)] if before is None else []
    there += [path for name in FOLDERS if before is None for path in store.list(name)]
    for path in there:
        if path not in found and (path.split("/")[0] != "judge" or JUDGES.fullmatch(path)):
            found[path] = digest_of(store.read(path))
    return {
        path: digest._asdict()
        for path, digest in sorted(found.items())
        if path != MANIFEST and not path.startswith("commit/")
    }


def read_batches(store: Store, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet product, some thousand rows at a time, of the columns those that it has; BadData if
    its bytes are not those that this process, or the manifest, knows.
    """
    data = store.read(path)
    known = store.replaced.get(path)
    if known is None and store.exists(MANIFEST):
        told = read_sealed(store, MANIFEST).get("products", {}).get(path)
        known = Digest(**told) if told else None
    try:
        if known is not None and digest_of(data) != known:
            raise pa.ArrowInvalid(f"{len(data)} other bytes")
        with open_parquet(pa.BufferReader(data)) as file:
            there = [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(batch_size=4096, columns=there)
    except (OSError, ValueError, pa.ArrowException) as error:
        if not is_damage(error):
            raise
        raise BadData(
            f"{store.url(path)}: expected the table as it was written, got"
            f" {' '.join(str(error).split())}: put it back, or give the command that wrote it again"
        ) from None


def product_lines(store: Store, products: Mapping[str, Any]) -> Iterator[str]:
    """Products that are not there, or not as they were written, a line each; one is in memory at a
    time.
    """
    for path, told in products.items():
        expected = Digest(**told)
        try:
            found = digest_of(store.read(path))
        except FileNotFoundError:
            yield f"{path}: expected a file of {expected.bytes} bytes, got none"
            continue
        if found != expected:
            yield (
                f"{path}: expected {expected.bytes} bytes with sha256 {expected.sha256}, got"
                f" {found.bytes} with {found.sha256}"
            )
