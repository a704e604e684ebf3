"""Which attributes were moved: by hand-made rows whose ways are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from configs.strict import UserError
from pipelines.attribution.interaction import interaction
from pipelines.cli import main
from storage.commit import commit_shard
from storage.records import Plan, Shard
from storage.run import write_plan
from storage.schema import COUNTERFACTUALS
from storage.uri import Store, open_store

NAMES = ["Smiling", "Male", "Bald"]
BEFORE = [0.0, 1.0, 0.0]
# target, flipped, after
ROWS: list[tuple[int, bool, list[float] | None]] = [
    (1, True, [0.8, 1.0, 0.05]),
    (1, True, [0.6, 0.5, -0.05]),
    (1, False, [9.0, 9.0, 9.0]),
    (0, True, [0.0, 0.6, 0.0]),
]


def made(
    folder: Path, rows: list[tuple[int, bool, list[float] | None]], role: str = "attgan"
) -> Store:
    store = open_store(folder)
    models = {
        "classifier": {"role": "classifier", "classes": ["sad", "glad"]},
        "attgan": {"role": role, "classes": NAMES},
    }
    shards = [Shard(i, "f", "f", "v", start=i, rows=1, offset=i) for i in range(len(rows))]
    write_plan(store, Plan({}, shards, len(rows), config={"models": models}))
    for i, (target, flipped, after) in enumerate(rows):
        record: dict[str, Any] = {
            "id": f"row-{i}",
            "cf_id": f"cf-{i}",
            "k": 0,
            "row": i,
            "source": 1 - target,
        }
        record |= {
            "target": target,
            "predicted": target,
            "flipped": flipped,
            "method": "counterfactory.methods.aip.AIP",
        }
        record |= {"condition_before": after and BEFORE, "condition_after": after}
        table = pa.Table.from_pylist([record], schema=COUNTERFACTUALS)
        commit_shard(
            store, "generate", shards[i], table, rows_in=1, quarantined=[], seconds=1.0, extra={}
        )
    return store


def test_flipped_rows_are_told_by_direction_the_farthest_first(tmp_path: Path) -> None:
    lines = [line.split() for line in interaction(made(tmp_path, ROWS)).splitlines()]
    assert lines[0][1:] == ["3", "flipped", "of", "4", "rows"]
    assert lines[1] == ["to", "sad,", "1", "rows"]
    assert lines[3] == ["Male", "-0.400", "0.400", "100.0%"]
    assert lines[6] == ["to", "glad,", "2", "rows"]
    assert lines[8:] == [
        ["Smiling", "+0.700", "0.700", "100.0%"],
        ["Male", "-0.250", "0.250", "50.0%"],
        ["Bald", "+0.000", "0.050", "0.0%"],
    ]


def test_one_row_is_told_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, ROWS)
    assert main(["interaction", str(tmp_path), "--row", "row-1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["row-1:", "flipped,"]
    assert lines[1:] == [["Smiling", "+0.600"], ["Male", "-0.500"], ["Bald", "-0.050"]]


def test_runs_without_moved_attributes_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attributes a method moved"):
        interaction(made(tmp_path / "a", [(1, True, None)]))
    with pytest.raises(UserError, match="role attgan"):
        interaction(made(tmp_path / "b", ROWS, role="autoencoder"))
    with pytest.raises(UserError, match="row-9"):
        interaction(made(tmp_path / "c", ROWS), "row-9")
