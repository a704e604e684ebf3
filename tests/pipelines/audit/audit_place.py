"""An audit that takes a second: pictures of 16x16, tiny networks, two groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from configs.audit import AuditConfig
from configs.strict import check
from counterfactory.models.tiny import TinyClassifier
from storage.codec import encode

SIZE = 16
CLASSES = ["one", "two", "three"]


def write_rows(path: Path, first: int, rows: int, **columns: list[Any]) -> None:
    """Pictures of noise with an id, a label, and a group: every fourth row is `rare`."""
    numbers = range(first, first + rows)
    pixels = (np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3)) for i in numbers)
    table = pa.table(
        {
            "image": [{"bytes": encode(p.astype(np.uint8)), "path": None} for p in pixels],
            "id": [f"row-{i}" for i in numbers],
            "label": [i % 3 for i in numbers],
            "group": ["rare" if i % 4 == 0 else "common" for i in numbers],
            **columns,
        }
    )
    pq.write_table(table, path)


@dataclass
class Place:
    """A folder with data, two classifiers' weights and audits."""

    folder: Path

    def write(self, name: str, first: int, rows: int, **columns: list[Any]) -> None:
        write_rows(self.folder / "data" / f"{name}.parquet", first, rows, **columns)

    def config(self, id: str, *, weights: str = "old", **settings: Any) -> AuditConfig:
        spec = {"role": "classifier", "target": "counterfactory.models.tiny.TinyClassifier"}
        oracle = {
            "role": "attributes",
            "target": "counterfactory.models.tiny.TinySpurious",
            "settings": {"attributes": ["Round", "Blue"], "size": SIZE},
            "classes": ["Round", "Blue"],
        }
        run = {
            "data": {
                "path": str(self.folder / "data"),
                "size": SIZE,
                "id": "id",
                "label": "label",
            },
            "models": {
                "classifier": {
                    **spec,
                    "settings": {"size": SIZE},
                    "weights": str(self.folder / f"{weights}.safetensors"),
                    "classes": CLASSES,
                },
                "oracle": oracle,
            },
            "method": {
                "target": "counterfactory.methods.pixel_pgd.PixelPGD",
                "settings": {"max_steps": 12},
            },
            "target": {"rule": "runner-up"},
            "engine": {"kind": "local", "shard_rows": 10, "batch": 8},
            "score": {"bootstrap": 50, "cout_steps": 4},
            "interventions": {"grid": 4, "control": 0},
        }
        raw = {
            "name": "watch",
            "run": run,
            "budget": 24,
            "alpha": 0.01,
            "out": str(self.folder / "out"),
            "id": id,
            **settings,
        }
        return check(AuditConfig, raw, "test")

    def run_with(self, config: AuditConfig, **settings: dict[str, Any]) -> AuditConfig:
        """The audit with groups of its run's settings replaced in part."""
        assert isinstance(config.run, dict)
        run = {**config.run}
        for group, values in settings.items():
            run[group] = {**run[group], **values}
        return config.model_copy(update={"run": run})


def make_place(folder: Path) -> Place:
    """A folder with 60 rows in two files, and weights of two classifiers."""
    (folder / "data").mkdir()
    for name, seed in (("old", 1), ("new", 7)):
        model = TinyClassifier(SIZE)
        drawn = torch.Generator().manual_seed(seed)
        state = {
            "pattern": torch.randn((3, 3, SIZE, SIZE), generator=drawn) * 0.15,
            "bias": torch.zeros(3),
        }
        assert state.keys() == model.state_dict().keys()
        save_file(state, str(folder / f"{name}.safetensors"))
    made = Place(folder)
    made.write("a", 0, 40)
    made.write("b", 40, 20)
    return made
