"""A run's results in memory: counterfactuals, scores and attributions of committed files, joined.

from pipelines import read

rows = read.frame("runs/audit")
rows["counterfactual"][0].show()
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from actors.rows.scores import SCORES
from configs.strict import UserError, nearest
from pipelines.engine.committed import (
    ATTRIBUTED,
    INTERVENED,
    TABLE,
    attributed_stage,
    intervened_stage,
    made_shards,
    scored_stage,
)
from storage.commit import (
    GENERATE,
    commit_path,
    iterate_commits,
    read_commit,
    read_committed,
    revisions,
)
from storage.schema import ATTRIBUTIONS, COUNTERFACTUALS, IMAGE, INTERVENTIONS
from storage.uri import Store, open_store

if TYPE_CHECKING:
    import ray.data

Paths = Mapping[str, str | None]  # a shard's commit paths by stage
PNGS = ("mask", "regions")
SCHEMAS = {
    GENERATE: COUNTERFACTUALS,
    "score": SCORES,
    "interventions": INTERVENTIONS,
    "attribution": ATTRIBUTIONS,
}
# Names of an attribution's columns beside the other stages' columns.
RENAMED = {"before": "descriptors_before", "after": "descriptors_after"}


def frame(run: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per counterfactual, in the order of shards, with what later stages measured.

    run: the run's folder, local or s3://. columns: the columns to read; the default is all columns
    of docs/schema.md that the run has. Images and masks are PIL images, which are decoded when
    their pixels are used. Scores of shards that are not scored yet are null. UserError where
    nothing is committed or a column is unknown.
    """
    store = open_store(run)
    wanted = choose_columns(store, columns)
    table = pa.concat_tables(
        [joined(store, paths, wanted) for paths in shard_commits(store, wanted)]
    )
    pictures = [field.name for field in table.schema if field.type == IMAGE or field.name in PNGS]
    made: pd.DataFrame = table.drop_columns(pictures).to_pandas()
    for name in pictures:
        made[name] = _opened(table[name])
    return made[list(columns or table.column_names)]


def dataset(run: str | os.PathLike[str], columns: Sequence[str] | None = None) -> ray.data.Dataset:
    """Return the rows of `frame` as a Ray Dataset, which reads a shard when its rows are needed.

    Images are uint8 tensors (H,W,3); masks and cores, which some rows lack, stay PNG bytes. The
    order of rows is Ray's; `row` and `k` identify them. UserError as in `frame`.
    """
    import ray.data

    store = open_store(run)
    wanted, uri = choose_columns(store, columns), store.uri
    shards = [{"commits": json.dumps(paths)} for paths in shard_commits(store, wanted)]

    def read(part: pa.Table) -> pa.Table:
        paths = json.loads(part["commits"][0].as_py())
        return _decoded(joined(open_store(uri), paths, wanted))

    made = ray.data.from_items(shards).map_batches(read, batch_size=1, batch_format="pyarrow")
    return made.select_columns(list(columns)) if columns else made


def files(run: str | os.PathLike[str], stage: str = "generate") -> list[str]:
    """Return the committed files of a stage, in the order of shards, for other readers of Parquet.

    stage: generate, score, interventions or attribution. UserError where no file of the stage is
    committed.
    """
    store = open_store(run)
    standing = {
        "score": scored_stage,
        "interventions": intervened_stage,
        "attribution": attributed_stage,
    }
    made_shards(store)
    name = standing[stage](store) if stage in standing else stage
    return [store.url(commit.file) for commit in iterate_commits(store, name)]


def choose_columns(store: Store, columns: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the columns to read of each stage, in the order of docs/schema.md.

    UserError where a column is unknown.
    """
    stages = {GENERATE: COUNTERFACTUALS.names}
    if store.exists(TABLE):
        own = [name for name in SCORES.names if name not in COUNTERFACTUALS.names]
        stages[scored_stage(store)] = own
    if store.exists(INTERVENED):
        own = [name for name in INTERVENTIONS.names if name not in COUNTERFACTUALS.names]
        stages[intervened_stage(store)] = own
    if store.exists(ATTRIBUTED):
        own = [name for name in ATTRIBUTIONS.names if name not in COUNTERFACTUALS.names]
        stages[attributed_stage(store)] = own
    known = [RENAMED.get(name, name) for names in stages.values() for name in names]
    for name in columns or ():
        if name not in known:
            raise UserError(
                f"{store.uri}: expected a column of this run, got {name!r}: {nearest(name, known)}"
            )
    return {
        stage: [name for name in names if columns is None or RENAMED.get(name, name) in columns]
        for stage, names in stages.items()
    }


def shard_commits(store: Store, wanted: Iterable[str]) -> list[Paths]:
    """Return the paths of each shard's commits by stage; None where a stage has not reached the
    shard.
    """
    there = {stage: revisions(store, stage) for stage in wanted}
    return [
        {
            stage: commit_path(stage, index, found[index]) if index in found else None
            for stage, found in there.items()
        }
        for index in made_shards(store)
    ]


def joined(store: Store, paths: Paths, wanted: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return a shard's rows with the columns of all stages, matched by cf_id.

    A column is null where its stage does not have the row.
    """
    whole = _table(store, GENERATE, paths[GENERATE], wanted[GENERATE])
    columns = {name: whole[name] for name in wanted[GENERATE]}
    for stage, names in wanted.items():
        if stage != GENERATE and names:
            table = _table(store, stage, paths[stage], names)
            places = pc.index_in(whole["cf_id"], value_set=table["cf_id"].combine_chunks())
            found = table.take(places)
            columns |= {RENAMED.get(name, name): found[name] for name in names}
    return pa.table(columns)


def _table(store: Store, stage: str, path: str | None, names: Sequence[str]) -> pa.Table:
    """Return columns of a commit's file, with cf_id; no rows where there is no commit."""
    columns = list(dict.fromkeys(["cf_id", *names]))
    if path is not None:
        table = read_committed(store, read_commit(store, path), columns)
        # files of older versions lack the newer columns
        for name in [name for name in columns if name not in table.column_names]:
            field = SCHEMAS[stage.partition("-")[0]].field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table
    schema = SCHEMAS[stage.partition("-")[0]]
    return pa.schema([schema.field(name) for name in columns]).empty_table()


def _opened(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return the images of a column; each keeps its bytes until its pixels are used."""
    cells = column.to_pylist()
    out = np.empty(len(cells), dtype=object)
    for place, cell in enumerate(cells):  # one by one: numpy would decode a list of images
        data = cell["bytes"] if isinstance(cell, dict) else cell
        out[place] = None if data is None else Image.open(io.BytesIO(data), formats=["PNG"])
    return out


def _decoded(table: pa.Table) -> pa.Table:
    """Return the table with its images as uint8 tensors; a table without rows has no columns."""
    from ray.data.extensions import ArrowTensorArray

    if not table.num_rows:
        return pa.table({})
    for place, field in enumerate(table.schema):
        if field.name == "core":
            inner = pc.struct_field(table[field.name], "bytes")
            table = table.set_column(place, field.name, inner)
        elif field.type == IMAGE:
            pixels = [np.asarray(image) for image in _opened(table[field.name])]
            table = table.set_column(
                place, field.name, ArrowTensorArray.from_numpy(np.stack(pixels))
            )
    return table
