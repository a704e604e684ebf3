"""The campaign of benchmarks/chaos.py: its checker sees what it should, and a small one passes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.chaos import main
from benchmarks.chaos_checker import Product, Reference


def write_run(home: Path, seconds: float) -> Path:
    """A run by hand: two shards of two rows, and two products."""
    write(home / "plan.json", {"shards": [0, 1]})
    for shard in range(2):
        rows = [{"cf_id": f"{shard}{n}", "value": n, "seconds": seconds} for n in range(2)]
        commit(home, shard, rows)
    write(home / "table.json", {"flips": 3, "took": seconds})
    (home / "report.html").write_text(f"<p>three<p>{seconds}")
    return home


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def commit(home: Path, shard: int, rows: list[dict[str, Any]], **other: Any) -> None:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    file = home / "data" / "generate" / f"{shard}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(out.getvalue())
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    told = {"rows_in": 2, "rows_out": 2, "quarantined": [], "sha256": digest}
    name = f"data/generate/{shard}.parquet"
    write(home / "commit" / "generate" / f"{shard}.json", {"file": name, **told, **other})


def row(name: str, value: int) -> dict[str, Any]:
    return {"cf_id": name, "value": value, "seconds": 9.0}


BREAKS: dict[str, Callable[[Path], Any]] = {
    "another cell": lambda home: commit(home, 1, [row("10", 0), row("11", 7)]),
    "a row lost": lambda home: commit(home, 1, [row("10", 0)]),
    "a row twice": lambda home: commit(home, 1, [row("10", 0), row("11", 1), row("00", 0)]),
    "a row too many": lambda home: commit(home, 1, [row("10", 0), row("11", 1), row("12", 0)]),
    "a row set aside": lambda home: commit(
        home,
        1,
        [row("10", 0)],
        rows_out=1,
        quarantined=[{"id": "11", "reason": "its worker died on this row"}],
    ),
    "sums that do not add up": lambda home: commit(
        home, 1, [row("10", 0), row("11", 1)], rows_out=1
    ),
    "a shard lost": lambda home: (home / "commit/generate/1.json").unlink(),
    "a file damaged": lambda home: commit(
        home, 1, [row("10", 0), row("11", 1)], sha256=hashlib.sha256(b"").hexdigest()
    ),
    "a figure changed": lambda home: write(home / "table.json", {"flips": 4, "took": 1}),
    "a figure lost": lambda home: write(home / "table.json", {"took": 1}),
    "a product lost": lambda home: (home / "table.json").unlink(),
    "a product too many": lambda home: write(home / "table2.json", {}),
    "a page cut short": lambda home: (home / "report.html").write_text("<p>"),
}


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return Reference(*(Product(write_run(tmp_path / str(n), n)) for n in range(2)))


def test_a_run_that_differs_in_its_times_only_is_equal(
    reference: Reference, tmp_path: Path
) -> None:
    assert reference.timed == ["generate.seconds"]
    assert reference.differences(Product(write_run(tmp_path / "x", 5.0))) == []


@pytest.mark.parametrize("what", BREAKS)
def test_the_checker_sees(reference: Reference, tmp_path: Path, what: str) -> None:
    home = write_run(tmp_path / "x", 5.0)
    BREAKS[what](home)
    assert reference.differences(Product(home)) != []


@pytest.mark.slow
def test_a_small_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed driver: its run is equal to undisturbed ones."""
    only = "kill"
    flags = ["--only", only, "--trials", "1", "--minutes", "20", "--keep", str(tmp_path / "runs")]
    assert main(["--seed", "3", *flags, "--out", str(tmp_path / "chaos.md")]) == 0, (
        capsys.readouterr()
    )
    told = (tmp_path / "chaos.md").read_text()
    assert "1 trials" in told
    assert "Every run is equal to the undisturbed ones." in told
    shutil.rmtree(tmp_path / "runs")
