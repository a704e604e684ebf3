"""A run made by hand: pictures of 8x8 whose classes and attributes are single pixels, so that every
score is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from storage.codec import encode
from storage.commit import commit_shard
from storage.records import Plan, Shard
from storage.run import write_plan
from storage.schema import COUNTERFACTUALS, counterfactual_id
from storage.uri import Store, open_store

SIZE = 8
CLASSES = ("not_smiling", "smiling")
ATTRIBUTES = ("Smiling", "Blond_Hair", "Bangs")
PIXELS = {"Smiling": (0, 0), "Blond_Hair": (0, 1), "Bangs": (1, 0)}  # bright: has it


class Pixel(nn.Module):
    """A classifier of two classes that looks at one attribute's pixel."""

    def __init__(self, attribute: str, slope: float) -> None:
        super().__init__()
        self.at, self.slope, self.classes = PIXELS[attribute], slope, CLASSES

    def forward(self, images: Tensor) -> Tensor:
        z = self.slope * (images[:, 1, self.at[0], self.at[1]] - 0.5)
        return torch.stack([-z / 2, z / 2], 1)


class Oracle(nn.Module):
    """The attributes' pixels as probabilities."""

    attributes = ATTRIBUTES

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 1, r, c] for r, c in PIXELS.values()], 1)


def row(i: int, k: int = 0) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Answer k to row i of the run with its two pictures: the hair decides, the smile changes at
    times.
    """
    rng = np.random.default_rng(i)
    source = i % 2
    x = rng.integers(90, 110, (SIZE, SIZE, 3), dtype=np.uint8)
    x[0, 1, 1] = 220 if source else 30
    x[0, 0, 1] = 230 if rng.random() < 0.5 else 20
    y = x.copy()
    flipped = i % 5 != 0 if k == 0 else (i + k) % 4 != 0
    y[0, 1, 1] = (30 if source else 220) if flipped else (150 if source else 110)
    if (i + k) % 7 == 0:
        y[0, 0, 1] = 250 - x[0, 0, 1]
    if k:
        y[4:] = y[4:] + 3 * k
    label = None if i % 8 == 0 else 1 - source if i % 4 == 1 else source
    identity = f"row-{i}"
    cf_id = counterfactual_id(identity, "method", 1 - source, k)
    return (
        {
            "id": identity,
            "cf_id": cf_id,
            "k": k,
            "row": i,
            "split": "train" if i % 3 else "test",
            "label": label,
            "source": source,
            "target": 1 - source,
            "predicted": 1 - source if flipped else source,
            "correct": None if label is None else label == source,
            "flipped": flipped,
            "reason": None if flipped else "not converged",
            "p_target_before": 0.1,
            "p_target_after": 0.9 if flipped else 0.4,
            "forward": 10 + i,
            "backward": i,
            "seconds": 0.5,
            "method": "counterfactory.methods.ace.ACE",
            "original": {"bytes": encode(x), "path": f"{identity}.png"},
            "counterfactual": {"bytes": encode(y), "path": f"{cf_id}.png"},
        },
        x,
        y,
    )


@dataclass
class Run:
    """A run folder, its config, and the rows that are in it."""

    store: Store
    config: RunConfig
    rows: list[dict[str, Any]]
    pictures: list[tuple[np.ndarray, np.ndarray]]

    def with_settings(self, **settings: dict[str, Any]) -> RunConfig:
        """The config with groups of settings replaced in part."""
        raw = self.config.model_dump()
        for group, values in settings.items():
            raw[group] = {**raw[group], **values}
        return RunConfig.model_validate(raw)


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """make_run(rows=.., shards=.., models=..): a committed generate stage, and models that need no
    files.
    """
    built = {
        "classifier": Pixel("Blond_Hair", 12),
        "oracle": Oracle(),
        "second": Pixel("Smiling", 5),
    }
    monkeypatch.setattr(
        "actors.score.load_models", lambda config, names, device: {n: built[n] for n in names}
    )

    def make(
        *,
        rows: int = 40,
        shards: int = 3,
        models: tuple[str, ...] = ("classifier", "oracle", "second"),
        name: str = "run",
        answers: int = 1,
    ) -> Run:
        made = [row(i, k) for i in range(rows) for k in range(answers)]
        store = open_store(tmp_path / f"{name}-{shards}")
        config = RunConfig.model_validate(
            {
                "name": name,
                "data": {"path": "nowhere", "size": SIZE},
                "models": {
                    role: {
                        "role": "attributes" if role == "oracle" else "classifier",
                        "target": "a.b",
                        "classes": list(ATTRIBUTES if role == "oracle" else CLASSES),
                    }
                    for role in models
                },
                "method": {"target": "counterfactory.methods.ace.ACE"},
                "engine": {"kind": "local"},
                "score": {
                    "causal": ["Smiling"] if "oracle" in models else [],
                    "bootstrap": 200,
                    "batch": 16,
                },
            }
        )
        planned: list[Shard] = []
        at = 0
        for index, part in enumerate(np.array_split(np.arange(rows), shards)):
            size = len(part)
            planned.append(Shard(index, "f", "f", "v", start=at, rows=size, offset=at))
            at += size
        write_plan(
            store,
            Plan({"data": "d"}, planned, rows, config=config.model_dump()),
        )
        for shard in planned:
            mine = [r for r, _, _ in made if shard.start <= r["row"] < shard.start + shard.rows]
            table = pa.Table.from_pylist(mine, schema=COUNTERFACTUALS)
            n = shard.rows
            said: dict[str, Any] = {
                "rows_in": n,
                "rows_out": n,
                "quarantined": [],
                "extra": {"flipped": sum(r["flipped"] for r in mine)},
            }
            commit_shard(store, "generate", shard, table, seconds=1.0, **said)
        return Run(store, config, [r for r, _, _ in made], [(x, y) for _, x, y in made])

    return make
