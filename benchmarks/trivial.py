"""The cheapest possible run: pictures of 8x8, a classifier of brightness, a method that inverts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet as pq
from torch import Tensor, nn

from actors.rows.scores import SCORES
from configs.schema import RunConfig
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from storage.codec import encode
from storage.commit import commit_shard
from storage.records import Receipt, Shard
from storage.schema import COUNTERFACTUALS, IMAGE, counterfactual_id
from storage.uri import Store

SIZE, PICTURES = 8, 64
FILE_ROWS, GROUP_ROWS = 10_000, 1_000
CLASSES = ["dark", "bright"]


class Brightness(nn.Module):
    """Scores (B,2) of dark and bright."""

    def forward(self, images: Tensor) -> Tensor:
        z = 20 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-z, z], 1)


class Invert:
    """A method that flips every row in one subtraction."""

    needs = ()

    def __call__(self, queries: ImageQueries, *, classifier: Any) -> ImageAnswers:
        one = torch.ones(len(queries), dtype=torch.int64)
        return ImageAnswers(
            counterfactual=1 - queries.images,
            flipped=one.bool(),
            steps=one,
            forward=one,
            backward=0 * one,
            reasons=[None] * len(queries),
        )


class Nothing:
    """A worker that does nothing: what is left is Ray's own."""

    takes, together = Shard, 2

    def __init__(self, **kwargs: Any) -> None:
        pass

    def __call__(self, shard: Shard) -> Receipt:
        return Receipt(
            index=shard.index,
            rows_in=1,
            rows_out=1,
            flipped=0,
            extra={"at": time.monotonic()},
        )


def settings(folder: Path, shard_rows: int, engine: str) -> RunConfig:
    """The run's settings; its data in folder/data, the run in folder/run."""
    raw = {
        "name": "run",
        "out": str(folder),
        "data": {
            "path": str(folder / "data"),
            "id": "id",
            "label": "label",
            "split": "train",
            "size": SIZE,
        },
        "models": {
            "classifier": {
                "role": "classifier",
                "target": "benchmarks.trivial.Brightness",
                "classes": CLASSES,
            }
        },
        "method": {"target": "benchmarks.trivial.Invert"},
        "engine": {"kind": engine, "workers": 1, "shard_rows": shard_rows, "batch": 64},
        "judge": {"max_rows": 1000},
    }
    return RunConfig.model_validate(raw)


def pictures() -> list[np.ndarray[Any, Any]]:
    """A few noisy pictures, dark and bright in turn."""
    rng = np.random.default_rng(0)
    ranges = [(0, 120), (136, 256)]
    return [rng.integers(*ranges[i % 2], (SIZE, SIZE, 3), dtype=np.uint8) for i in range(PICTURES)]


def write_data(folder: Path, rows: int) -> None:
    """The input: files of 10,000 rows, each with its own id."""
    folder.mkdir(parents=True)
    cells = [{"bytes": encode(picture), "path": None} for picture in pictures()]
    for first in range(0, rows, FILE_ROWS):
        numbers = range(first, min(first + FILE_ROWS, rows))
        table = pa.table(
            {
                "id": [f"row-{n:09d}" for n in numbers],
                "image": pa.array([cells[n % PICTURES] for n in numbers], IMAGE),
                "label": [n % 2 for n in numbers],
            }
        )
        pq.write_table(
            table, folder / f"part-{first // FILE_ROWS:06d}.parquet", row_group_size=GROUP_ROWS
        )


def write_commits(store: Store, shards: list[Shard], method: str) -> None:
    """Commit shards without generating them: what the worker would have committed, as quickly as it
    can be written.
    """
    before = pictures()
    cells = [(encode(x), encode(255 - x)) for x in before]
    for shard in shards:
        rows = []
        for n in range(shard.offset, shard.offset + shard.rows):
            name, source = f"row-{n:09d}", n % 2
            cf_id = counterfactual_id(name, method, 1 - source, 0)
            x, y = cells[n % PICTURES]
            rows.append(
                {
                    **{
                        "id": name,
                        "cf_id": cf_id,
                        "k": 0,
                        "row": n,
                        "split": "train",
                        "label": source,
                    },
                    **{"source": source, "target": 1 - source, "predicted": 1 - source},
                    **{
                        "correct": True,
                        "flipped": True,
                        "reason": None,
                        "steps": 1,
                        "forward": 1,
                        "backward": 0,
                    },
                    **{
                        "p_source_before": 1.0,
                        "p_target_before": 0.0,
                        "p_source_after": 0.0,
                        "p_target_after": 1.0,
                    },
                    **{"seconds": 1e-5, "method": "benchmarks.trivial.Invert", "carried": "{}"},
                    "original": {"bytes": x, "path": f"{name}.png"},
                    "counterfactual": {"bytes": y, "path": f"{cf_id}.png"},
                }
            )
        table = pa.Table.from_pylist(rows, schema=COUNTERFACTUALS)
        extra = {"flipped": len(rows), "forward": len(rows), "backward": 0, "attempt": 1}
        said: dict[str, Any] = {
            "rows_in": len(rows),
            "quarantined": [],
            "seconds": 0.01,
            "extra": extra,
        }
        commit_shard(store, "generate", shard, table, **said)


def write_scores(store: Store, stage: str, shards: list[Shard], method: str) -> None:
    """Commit the scores of shards that `write_commits` wrote, likewise."""
    rng = np.random.default_rng(0)
    extra = {"verdict_differs": 0, "classes": CLASSES, "attributes": []}
    for shard in shards:
        numbers = range(shard.offset, shard.offset + shard.rows)
        names, sources = [f"row-{n:09d}" for n in numbers], [n % 2 for n in numbers]
        columns: dict[str, Any] = {
            "id": names,
            "cf_id": [
                counterfactual_id(name, method, 1 - s, 0)
                for name, s in zip(names, sources, strict=True)
            ],
            "split": ["train"] * len(names),
            "label": sources,
            "source": sources,
            "target": [1 - s for s in sources],
            **{name: [True] * len(names) for name in ("correct", "flipped")},
            **{
                name: rng.random(len(names))
                for name in ("cout", "l1", "l2", "linf", "sparsity", "seconds")
            },
            **{name: np.ones(len(names)) for name in ("forward", "p_target")},
            **{name: np.zeros(len(names)) for name in ("k", "backward")},
        }
        cells = [
            pa.array(columns.get(f.name, pa.nulls(len(names)))).cast(f.type, safe=False)
            for f in SCORES
        ]
        said: dict[str, Any] = {
            "rows_in": len(names),
            "quarantined": [],
            "seconds": 0.01,
            "extra": extra,
        }
        commit_shard(store, stage, shard, pa.table(cells, schema=SCORES), **said)
