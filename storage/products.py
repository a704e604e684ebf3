"""Digests of what a run's stages write besides their commits.

They are stored in the run's manifest, and verify checks them.
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
# Folders of products; a judge's folder may also hold a user's answers. The files of review/ grow
# while they are written, so only their writer, at its end, lists their digests.
FILES = ("plan.json", "config.yaml", "probe.json", "report.html")
FOLDERS = ("input", "score", "attribution", "interventions", "judge", "augment")
JUDGES = re.compile(r"judge/(prompts|retry|scores|live|calibration)[^/]*")


def product_digests(store: Store, before: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return bytes and sha256 of each product, by path.

    Files that this process wrote have the digest of the bytes that it wrote; the others have their
    digest in `before`, the products of the current manifest. Where `before` is None (the manifest
    lists no products), the existing files are read. A file that was damaged since keeps its digest
    from when it was written.
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
    """Yield a Parquet product some thousand rows at a time, with those of the columns that it has.

    BadData where its bytes do not match the digest of this process or of the manifest.
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
    """Yield a line for each product that is missing or changed; holds one in memory at a time."""
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
