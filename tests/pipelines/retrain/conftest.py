"""Images whose class is a faint stripe and whose cue is a bright corner, and counterfactuals that
move the cue alone: what a linear classifier learns from them is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor, nn

from configs.retrain import RetrainConfig, resolve_retrain
from pipelines.augment.parts import schema_of
from storage.codec import encode
from storage.schema import IMAGE

SIZE = 8
CLASSES = ["no", "yes"]
Pixels = np.ndarray


class Linear(nn.Module):
    """Scores linear in the pixels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE * SIZE, outputs)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(images.flatten(1))
        return scores


def picture(label: int, cue: int, rng: np.random.Generator) -> Pixels:
    """An image whose stripe says the class and whose corner is the cue."""
    image = rng.integers(118, 138, (SIZE, SIZE, 3), dtype=np.uint8)
    image[5:] += np.uint8(5 if label else 0)
    image[5:] -= np.uint8(0 if label else 5)
    image[:3, :3] = 220 if cue else 30
    return image


def cell(image: Pixels) -> dict[str, Any]:
    return {"bytes": encode(image), "path": "x.png"}


def write_rows(path: Path, count: int, agreement: float, seed: int) -> None:
    """Rows of both classes whose cue is the class in this share of them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    agrees = rng.random(count) < agreement
    agrees[:4] = [True, True, False, False]  # every group has a row
    cues = np.where(agrees, labels, 1 - labels)
    images = [cell(picture(a, b, rng)) for a, b in zip(labels, cues, strict=True)]
    ids = [f"{path.stem}-{i}" for i in range(count)]
    columns = {
        "id": ids,
        "image": pa.array(images, type=IMAGE),
        "label": labels.astype(bool),
        "cue": cues.astype(bool),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_set(
    folder: Path, count: int, *, classes: list[str] = CLASSES, seed: int = 3, **over: Any
) -> Path:
    """A set whose counterfactuals move the cue, labelled by the stripe; over: other columns."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = i % 2
        before = picture(label, label, rng)
        after = before.copy()
        after[:3, :3] = 30 if label else 220
        rows.append(
            {
                "id": f"cf-{i}",
                "image": cell(after),
                "original": cell(before),
                "label": label,
                "label_name": classes[label],
                "source_id": f"source-{i}",
                "k": 0,
                "method": "m",
                "run": "r",
                "split": "train",
                "source": classes[label],
                "target": classes[1 - label],
                "original_label": classes[label],
                **over,
            }
        )
    (folder / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=schema_of(classes))
    pq.write_table(table, folder / "data" / "part-00000.parquet")
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RetrainConfig]:
    """world(**settings): a retraining of a linear classifier on such images."""
    module = ModuleType("own_linear")
    vars(module)["Linear"] = Linear
    monkeypatch.setitem(sys.modules, "own_linear", module)
    write_rows(tmp_path / "train.parquet", 200, 0.97, 1)
    write_rows(tmp_path / "test.parquet", 120, 0.5, 2)
    write_rows(tmp_path / "validation.parquet", 80, 0.5, 4)
    write_set(tmp_path / "set", 40)

    def make(sets: tuple[str, ...] = (), **over: Any) -> RetrainConfig:
        raw = {
            "name": "mend",
            "train": {
                "name": "linear",
                "role": "classifier",
                "data": rows_of(tmp_path, "train"),
                "target": "own_linear.Linear",
                "classes": CLASSES,
                "steps": 60,
                "batch": 16,
                "lr": 0.01,
                "out": "unused",
            },
            "augment": [str(tmp_path / "set")],
            "arms": ["erm", "line"],
            "seeds": [0, 1],
            "validation": rows_of(tmp_path, "validation"),
            "test": rows_of(tmp_path, "test"),
            "groups": ["cue"],
            "out": str(tmp_path / "out"),
            "engine": {"kind": "local"},
            **over,
        }
        return resolve_retrain(raw, list(sets), "a test")

    return make


def rows_of(folder: Path, name: str) -> dict[str, Any]:
    return {"path": str(folder / f"{name}.parquet"), "size": SIZE, "label": "label", "id": "id"}
