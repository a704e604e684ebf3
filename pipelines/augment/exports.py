"""The augmentation set in further formats, made from its Parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.engine.tables import to_csv
from storage.products import read_batches
from storage.uri import Store

TARS = "augment/webdataset/part-"
TAR_BYTES = 64_000_000  # size of a tar before the next one begins
IMAGES = ("image", "original")
Row = dict[str, Any]


def write_webdataset(store: Store, files: Sequence[str]) -> list[str]:
    """Write augment/webdataset/part-00000.tar and further parts, and return their names.

    A sample is CF_ID.png, CF_ID.original.png, CF_ID.cls (the class index) and CF_ID.json (the other
    columns). The same set results in the same bytes. Empties further parts of an earlier set.
    """
    written: list[str] = []
    out, tar = _begin()
    for row in _rows(store, files):
        if out.tell() >= TAR_BYTES:
            written.append(_end(store, out, tar, len(written)))
            out, tar = _begin()
        plain = {name: value for name, value in row.items() if name not in IMAGES}
        for ending, data in (
            ("cls", str(row["label"]).encode()),
            ("json", json.dumps(plain, sort_keys=True).encode()),
            ("original.png", row["original"]["bytes"]),
            ("png", row["image"]["bytes"]),
        ):
            # the format keeps no time and no owner unless told; its defaults are zeros
            member = tarfile.TarInfo(f"{row['id']}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    written.append(_end(store, out, tar, len(written)))
    for path in store.list("augment/webdataset"):
        if path.startswith(TARS) and path not in written:
            _end(store, *_begin(), int(path.removeprefix(TARS).partition(".")[0]))
    return written


def write_folder(store: Store, files: Sequence[str], name: str) -> str:
    """Write augment/folder/NAME/metadata.csv and the images that it names; returns the folder.

    Counterfactuals are images/LABEL/CF_ID.png, originals are originals/CF_ID.png. `name` must
    differ between sets, so that no image of another set is in the folder.
    """
    folder = f"augment/folder/{name}"
    lines: list[Row] = []
    columns: list[str] = []
    for row in _rows(store, files):
        paths = {
            "file_name": f"images/{row['label']}/{row['id']}.png",
            "original_file_name": f"originals/{row['id']}.png",
        }
        for path, column in zip(paths.values(), IMAGES, strict=True):
            store.replace(f"{folder}/{path}", row[column]["bytes"])
        plain = {key: value for key, value in row.items() if key not in IMAGES}
        plain["probabilities"] = json.dumps(row["probabilities"]) if row["probabilities"] else None
        lines.append({**paths, **plain})
        columns = list(lines[0])
    store.replace(f"{folder}/metadata.csv", to_csv(columns or ["file_name"], lines))
    return folder


def _rows(store: Store, files: Sequence[str]) -> Iterator[Row]:
    """Return the set's rows with few in memory at a time."""
    for file in files:
        for batch in read_batches(store, file, _columns(store, file)):
            for at in range(0, len(batch), 64):
                yield from batch.slice(at, 64).to_pylist()


def _columns(store: Store, file: str) -> list[str]:
    with store.parquet(file) as opened:
        return list(opened.schema_arrow.names)


def _begin() -> tuple[io.BytesIO, tarfile.TarFile]:
    out = io.BytesIO()
    return out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT)


def _end(store: Store, out: io.BytesIO, tar: tarfile.TarFile, number: int) -> str:
    tar.close()
    path = f"{TARS}{number:05d}.tar"
    store.replace(path, out.getvalue())
    return path
