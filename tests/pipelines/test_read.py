"""Committed results as a DataFrame and as a Ray Dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from configs.strict import UserError
from pipelines import read
from pipelines.engine.committed import ATTRIBUTED
from pipelines.list.made import list_runs
from pipelines.score.job import score
from storage.commit import commit_path, commit_shard, read_commits, read_committed
from storage.schema import ATTRIBUTIONS
from storage.uri import open_store


def test_rows_come_with_their_scores(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=20, shards=3)
    stage = score(run.store, run.config)["stage"]
    rows = read.frame(run.store.uri)
    assert rows["id"].tolist() == [row["id"] for row in run.rows]
    assert rows["flipped"].tolist() == [row["flipped"] for row in run.rows]
    tables = [read_committed(run.store, c) for c in read_commits(run.store, stage).values()]
    l1 = {row["cf_id"]: row["l1"] for table in tables for row in table.to_pylist()}
    assert dict(zip(rows["cf_id"], rows["l1"], strict=True)) == l1
    assert rows["seconds"].tolist() == [row["seconds"] for row in run.rows]  # generate's own
    assert not rows.columns.duplicated().any()


def test_images_are_those_that_were_stored(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=9, shards=2)
    rows = read.frame(run.store.uri)
    for at, (x, y) in enumerate(run.pictures):
        assert np.array_equal(rows["original"][at], x)
        assert np.array_equal(rows["counterfactual"][at], y)
    assert isinstance(rows["original"][0], Image.Image)
    assert rows["mask"].isna().all()
    kept = rows[rows["flipped"]].reset_index(drop=True)  # a frame as any other
    assert np.array_equal(kept["counterfactual"][0], run.pictures[kept["row"][0]][1])


def test_only_what_is_asked_for_is_read(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=8, shards=2)
    score(run.store, run.config)
    rows = read.frame(run.store.uri, ["l1", "id"])
    assert list(rows.columns) == ["l1", "id"]
    assert len(rows) == 8
    with pytest.raises(UserError, match="did you mean 'flipped'"):
        read.frame(run.store.uri, ["fliped"])


def test_a_shard_that_is_not_scored_has_no_scores(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=12, shards=3)
    stage = score(run.store, run.config)["stage"]
    Path(run.store.uri, commit_path(stage, 1)).unlink()
    rows = read.frame(run.store.uri)
    assert rows["l1"].isna().tolist() == [4 <= row < 8 for row in rows["row"]]
    assert rows["counterfactual"].notna().all()


def test_files_that_no_commit_names_do_not_count(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=12, shards=3)
    Path(run.store.uri, commit_path("generate", 2)).unlink()
    assert read.frame(run.store.uri)["row"].tolist() == list(range(8))
    with pytest.raises(UserError, match="expected a column of this run, got 'l1'"):
        read.frame(run.store.uri, ["l1"])
    for index in (0, 1):
        Path(run.store.uri, commit_path("generate", index)).unlink()
    with pytest.raises(UserError, match="expected counterfactuals in"):
        read.frame(run.store.uri)


def test_attributions_have_names_of_their_own(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=6, shards=1)
    (commit,) = read_commits(run.store, "generate").values()
    cells = [
        {
            **{name: row[name] for name in ("id", "cf_id", "k", "source", "target", "flipped")},
            "before": [1.0 * row["row"], 0.0],
            "after": [2.0, 0.0],
            "importance": [0.5, 0.0],
        }
        for row in reversed(run.rows)  # whatever the order, rows are matched by their names
    ]
    commit_shard(
        run.store,
        "attribution-x",
        commit.shard,
        pa.Table.from_pylist(cells, schema=ATTRIBUTIONS),
        rows_in=6,
        quarantined=[],
        seconds=0.0,
        extra={},
    )
    run.store.replace(ATTRIBUTED, b'{"stage": "attribution-x"}')
    rows = read.frame(run.store.uri)
    assert [value[0] for value in rows["descriptors_before"]] == rows["row"].tolist()
    assert {"descriptors_after", "importance"} <= set(rows.columns)
    assert not {"before", "after"} & set(rows.columns)


def test_several_answers_are_several_rows(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=5, shards=2, answers=3)
    rows = read.frame(run.store.uri, ["id", "k"])
    assert rows.groupby("id")["k"].apply(list).tolist() == [[0, 1, 2]] * 5


def test_a_ray_dataset_has_the_same_rows(make_run: Callable[..., Any], ray_session: None) -> None:
    run = make_run(rows=10, shards=3)
    score(run.store, run.config)
    data = read.dataset(run.store.uri)
    rows = pd.DataFrame(data.take_all()).sort_values("row", ignore_index=True)
    same = read.frame(run.store.uri)
    for name in ("id", "cf_id", "flipped", "l1", "cout", "reason", "split"):
        pd.testing.assert_series_equal(rows[name], same[name], check_dtype=False)
    for at, (x, y) in enumerate(run.pictures):
        assert np.array_equal(rows["original"][at], x)
        assert np.array_equal(rows["counterfactual"][at], y)
    (batch,) = read.dataset(run.store.uri, ["counterfactual", "target"]).iter_batches(batch_size=10)
    assert batch["counterfactual"].shape == (10, 8, 8, 3)
    assert set(batch) == {"counterfactual", "target"}


def test_a_run_in_a_bucket_is_read_and_listed(make_run: Callable[..., Any], s3_folder: str) -> None:
    run = make_run(rows=6, shards=2)
    score(run.store, run.config)
    there = open_store(f"{s3_folder}/grid/cell")
    for path in run.store.list(""):
        there.write(path, run.store.read(path))
    columns = ["cf_id", "l1"]
    rows = read.frame(there.uri, columns)
    pd.testing.assert_frame_equal(rows, read.frame(run.store.uri, columns))
    assert all(file.startswith("s3://") for file in read.files(there.uri, "score"))
    assert [(found["name"], found["rows"]) for found in list_runs(s3_folder)] == [
        ("grid/cell", "6")
    ]
