"""Writes a data set as Parquet shards that runs, Hugging Face `datasets` and pandas read
directly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml

from configs.strict import UserError, parse_yaml
from pipelines.engine.progress import Progress
from pipelines.prepare.source import Row, Skipped, Source
from storage.records import Receipt
from storage.schema import IMAGE, REGIONS
from storage.tables import to_parquet
from storage.uri import Store, open_store

GROUP = 100  # rows per row group: a reader must fetch a group to read one row
# a shard also ends here, so that folders of large photographs fit in memory
SHARD_BYTES = 256 * 2**20
# stop after this many skipped rows without a good one: the folder must be the wrong one
HOPELESS = 100
# the underscore hides it from pyarrow and pandas; `datasets` would read .json and .csv as data
CARD = "_prepare.yaml"
ARROW = {"bool": pa.bool_(), "int64": pa.int64(), "string": pa.string()}


@dataclass
class Written:
    """The result of writing: rows per split, files in order, skipped rows."""

    rows: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def write_source(
    source: Source, out: str, settings: Mapping[str, Any], *, shard_rows: int
) -> Written | None:
    """Write a source into the folder `out`. Returns None where the same settings have been written
    there completely before.

    settings: all that the rows depend on, stored in the folder's `_prepare.yaml`. So an interrupted
    command continues when it is run again, and another command raises UserError. ValueError where
    no row is good.
    """
    for note in source.notes:
        print(note, flush=True)
    if source.classes:
        print(f"classes: {', '.join(f'{i} {n}' for i, n in enumerate(source.classes))}", flush=True)
    store = open_store(out)
    settings = {**settings, "shard_rows": shard_rows}
    card = parse_yaml(store.read(CARD), store.url(CARD)) if store.exists(CARD) else {}
    before = card.get("settings", {})
    keys = dict.fromkeys([*settings, *before])
    differ = [
        f"{k} = {before.get(k)!r}, not {settings.get(k)!r}"
        for k in keys
        if before.get(k) != settings.get(k)
    ]
    others = [path for path in store.list("") if path.endswith(".parquet")]
    if others and differ:
        of = f" written with {differ[0]}" if before else f", such as {others[0]}"
        raise UserError(
            f"{out}: expected a folder without Parquet files, got {len(others)}{of}: choose another"
            " folder"
        )
    if card.get("complete") and not differ and set(card["files"]) == set(others):
        return None
    _card(store, {"settings": settings, "complete": False})
    written = _stream(source, store, shard_rows, f"prepare {settings['source']}")
    _card(
        store,
        {
            "settings": settings,
            "complete": True,
            "rows": dict(sorted(written.rows.items())),
            "files": sorted(written.files),
            "skipped_rows": len(written.skipped),
            "skipped": [{"path": row.path, "reason": row.reason} for row in written.skipped[:1000]],
        },
    )
    return written


def schema_of(source: Source) -> pa.Schema:
    """Return the columns, with the metadata by which `datasets` recognises Image and ClassLabel."""
    label = pa.int64() if source.classes else pa.bool_()
    own = {"id": pa.string(), "image": IMAGE}
    own |= {"label": label} if source.labelled else {}
    own |= {"split": pa.string()}
    own |= {"mask": IMAGE} if source.regions else {}
    taken = sorted(own.keys() & source.columns.keys())
    if taken:
        raise ValueError(
            f"expected further columns named other than {', '.join(own)}, got {', '.join(taken)}"
        )
    schema = pa.schema({**own, **{name: ARROW[kind] for name, kind in source.columns.items()}})
    features: dict[str, Any] = {f.name: {"dtype": str(f.type), "_type": "Value"} for f in schema}
    features |= {field.name: {"_type": "Image"} for field in schema if field.type == IMAGE}
    if source.classes:
        features["label"] = {"names": list(source.classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    if source.regions:
        metadata[REGIONS] = json.dumps(source.regions)
    return schema.with_metadata(metadata)


def parquet(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """Return rows as one Parquet file; the same rows result in the same bytes."""
    cells: list[dict[str, Any]] = [
        {
            "id": r.id,
            "image": {"bytes": r.image, "path": r.path},
            **({} if r.label is None else {"label": r.label}),
            "split": r.split,
            **r.columns,
        }
        for r in rows
    ]
    if "mask" in schema.names:
        cells = [
            {**cell, "mask": {"bytes": r.mask, "path": None}}
            for cell, r in zip(cells, rows, strict=True)
        ]
    plain = [field.name for field in schema if field.type != IMAGE]
    # Images are compressed already and never equal: write no dictionary, and no minimum and maximum
    # of them in the footer.
    settings = {"row_group_size": GROUP, "use_dictionary": plain, "write_statistics": plain}
    return to_parquet(pa.Table.from_pylist(cells, schema=schema), **settings)


def _stream(source: Source, store: Store, shard_rows: int, what: str) -> Written:
    """Write the rows into train-00000.parquet, train-00001.parquet, ..., test-00000.parquet in the
    order of the source.
    """
    schema, written, progress = schema_of(source), Written(), Progress(what, source.total)
    waiting: dict[str, list[Row]] = {}
    shards, sizes, news = Counter[str](), Counter[str](), Counter[str]()

    def flush(split: str) -> None:
        path = f"{split}-{shards[split]:05d}.parquet"
        data = parquet(waiting.pop(split), schema)
        # A file of this name can only come from an earlier start of the same command: then it has
        # the same bytes.
        if not store.put_new(path, data) and store.read(path) != data:
            raise ValueError(
                f"{store.url(path)}: expected the same bytes as before, got others: choose another"
                " folder"
            )
        written.files.append(path)
        shards[split] += 1
        sizes[split] = 0

    def tell() -> None:
        progress.add(
            Receipt(
                index=len(written.files),
                rows_in=news.total(),
                rows_out=news["good"],
                quarantined=news["skipped"],
            )
        )
        news.clear()

    for row in source.rows:
        if isinstance(row, Skipped):
            written.skipped.append(row)
            news["skipped"] += 1
            if len(written.skipped) == HOPELESS and not written.rows:
                break
        else:
            waiting.setdefault(row.split, []).append(row)
            written.rows[row.split] += 1
            sizes[row.split] += len(row.image)
            news["good"] += 1
            if len(waiting[row.split]) == shard_rows or sizes[row.split] >= SHARD_BYTES:
                flush(row.split)
        if news.total() == GROUP:
            tell()
    for split in sorted(waiting):
        flush(split)
    tell()
    if not written.rows:
        bad = written.skipped
        why = f"{len(bad)} skipped, such as {bad[0].path}: {bad[0].reason}" if bad else "none"
        raise ValueError(f"expected at least one good row, got {why}")
    progress.close()
    return written


def _card(store: Store, card: Mapping[str, Any]) -> None:
    store.replace(CARD, yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True).encode())
