"""A run small enough to be killed often: 24 pictures of 8x8 in 6 shards, a classifier of one
weight.
"""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # where workers and children find `planted` and `crash`

from crash import At, drive  # noqa: E402
from planted import SIZE, mark  # noqa: E402

from storage.codec import encode  # noqa: E402
from storage.commit import iterate_commits, read_committed  # noqa: E402
from storage.uri import Store, open_store  # noqa: E402
from storage.verify import verify  # noqa: E402

ROWS, SHARD = 24, 4
PRELOAD = [
    "torch",
    "pipelines.cli",
    "pipelines.generate.job",
    "pipelines.run",
    "counterfactory.methods.pixel_pgd",
    "planted",
    "crash",
]
FORKS = multiprocessing.get_context("forkserver")  # real processes, that need not import torch each
FORKS.set_forkserver_preload(PRELOAD)


@dataclass
class Job:
    """A run's command, the children that ran it, and what it must leave."""

    folder: Path
    sets: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    name: str = "job"

    @property
    def store(self) -> Store:
        return open_store(self.folder / "out" / self.name)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def argv(self, command: str = "generate") -> list[str]:
        sets = [part for item in self.sets for part in ("--set", item)]
        return [command, str(self.folder / "job.yaml"), *sets]

    def start(self, at: At | None = None, command: str = "generate") -> Any:
        """A child that runs the command, with a fault planted in it."""
        child = FORKS.Process(
            target=drive, args=(self.argv(command), at, self.environ, str(self.log))
        )
        child.start()
        return child

    def run(self, at: At | None = None, command: str = "generate") -> tuple[int, str]:
        """The child's exit code (-9: SIGKILL) and what it said."""
        before = len(self.said)
        child = self.start(at, command)
        child.join(900)  # a guard for the suite, far above what any machine needs
        assert child.exitcode is not None, f"it is still running: {self.said[before:]}"
        return child.exitcode, self.said[before:]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def answers(self) -> dict[str, dict[str, Any]]:
        """Every row answered, by its id."""
        tables = [
            read_committed(self.store, commit) for commit in iterate_commits(self.store, "generate")
        ]
        return {row["id"]: row for table in tables for row in table.to_pylist()}

    def commits(self) -> dict[str, bytes]:
        return {name: self.store.read(name) for name in self.store.list("commit/generate")}

    def quarantined(self) -> dict[str, str]:
        found = iterate_commits(self.store, "generate")
        return {row["id"]: row["reason"] for commit in found for row in commit.quarantined}

    def expect_whole(self, *quarantined: int) -> None:
        """Every invariant holds, and each row is answered once or, where it is named here, set
        aside.
        """
        assert verify(self.store) == []
        ids: list[str] = []
        for commit in iterate_commits(self.store, "generate"):
            ids += read_committed(self.store, commit, ["id"])["id"].to_pylist()
        aside = {f"row-{i}" for i in quarantined}
        assert sorted(ids) == sorted({f"row-{i}" for i in range(ROWS)} - aside)
        assert self.quarantined().keys() == aside

    def finish(self, *quarantined: int, command: str = "generate") -> str:
        """The same command finishes the job; gives what it said."""
        code, said = self.run(command=command)
        assert code == 0, said
        self.expect_whole(*quarantined)
        return said


def write_rows(path: Path, first: int, rows: int) -> None:
    """Rows of the data, each with its number in its picture and its name."""
    numbers = range(first, first + rows)
    table = pa.table(
        {
            "image": [{"bytes": encode(mark(i)), "path": f"{i}.png"} for i in numbers],
            "id": [f"row-{i}" for i in numbers],
            "split": ["train" if i % 3 else "test" for i in numbers],
        }
    )
    pq.write_table(table, path)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A fresh run, local, of two files."""
    return make_job(tmp_path)


def make_job(tmp_path: Path) -> Job:
    """A run in a folder of its own."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "a.parquet", 0, 16)
    write_rows(tmp_path / "data" / "b.parquet", 16, 8)
    save_file({"slope": torch.tensor([20.0])}, str(tmp_path / "model.safetensors"))
    config = {
        "name": "job",
        "data": {"path": str(tmp_path / "data"), "size": SIZE, "id": "id", "split": "split"},
        "models": {
            "classifier": {
                "role": "classifier",
                "target": "planted.Brightness",
                "weights": str(tmp_path / "model.safetensors"),
                "classes": ["dark", "bright"],
            }
        },
        "method": {
            "target": "counterfactory.methods.pixel_pgd.PixelPGD",
            "settings": {"max_steps": 2},
        },
        "target": {"rule": "opposite"},
        "out": str(tmp_path / "out"),
        "engine": {"kind": "local", "shard_rows": SHARD, "batch": 2, "attempts": 2, "workers": 1},
        "score": {"bootstrap": 100, "cout_steps": 4},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    return Job(tmp_path)
