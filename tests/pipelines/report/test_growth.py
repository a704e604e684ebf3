"""Nothing grows with the data set: what a resume opens, and what the later stages hold
at a time."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.augment import job as augment
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from pipelines.judge import job as judge
from pipelines.report import data as report_data
from pipelines.report import show
from pipelines.run import run
from pipelines.score import job as score
from pipelines.score import sums
from storage.codec import encode
from storage.schema import IMAGE
from storage.seal import read_sealed, sealed
from storage.uri import Store

ROWS, FILES = 6, 4


def write(path: Path, first: int, rows: int = ROWS) -> None:
    rng = np.random.default_rng(first)
    cells = [
        {"bytes": encode(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), "path": None}
        for _ in range(rows)
    ]
    names = [f"row-{first + i}" for i in range(rows)]
    pq.write_table(pa.table({"id": names, "image": pa.array(cells, IMAGE)}), path)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of four files on an untrained classifier, as cheap as one can be."""
    (tmp_path / "data").mkdir()
    for i in range(FILES):
        write(tmp_path / "data" / f"{i}.parquet", i * ROWS)
    raw = {
        "name": "run",
        "out": str(tmp_path),
        "data": {"path": str(tmp_path / "data"), "id": "id", "size": 8, "crop": [0, 0, 8, 8]},
        "models": {
            "classifier": {
                "role": "classifier",
                "target": "torch.nn.Sequential",
                "classes": ["a", "b"],
            }
        },
        "method": {
            "target": "counterfactory.methods.pixel_pgd.PixelPGD",
            "settings": {"max_steps": 1},
        },
        "engine": {"kind": "local", "shard_rows": 3},
    }
    return RunConfig.model_validate(raw)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier: two sums of pixels."""
    import torch
    from torch import nn

    def build(spec: Any, weights: Any, device: Any) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        model.classes = ("a", "b")  # type: ignore[assignment]
        return model.requires_grad_(False)

    monkeypatch.setattr("counterfactory.models.wrapping.load.build", build)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every Parquet file that is opened, by its whole name."""
    seen: list[str] = []
    parquet = Store.parquet
    monkeypatch.setattr(
        Store,
        "parquet",
        lambda self, path, **how: (seen.append(self.url(path)), parquet(self, path, **how))[1],
    )
    return seen


def test_a_finished_run_is_taken_up_without_opening_a_file_or_loading_a_model(
    config: RunConfig, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run(config, stages=("generate",))
    assert opened
    opened.clear()
    monkeypatch.setattr(
        "counterfactory.models.wrapping.load.build", lambda *args: pytest.fail("loaded a model")
    )
    monkeypatch.setattr(
        "pipelines.generate.job.try_models", lambda config: pytest.fail("tried the models")
    )
    listed: list[str] = []
    real = Store.list
    monkeypatch.setattr(
        Store,
        "list",
        lambda self, path: (listed.append(self.uri + "/" + path), real(self, path))[1],
    )
    run(config, stages=("generate",), store=store)
    assert opened == []
    assert set(listed) == {f"{config.data.path}/", f"{store.uri}/commit/generate"}


def test_a_resume_opens_the_files_of_its_shards_alone(config: RunConfig, opened: list[str]) -> None:
    store = open_run(config)
    generate(store, config)
    store.remove("commit/generate/000005.json")
    opened.clear()
    assert generate(store, config)["rows_in"] == ROWS * FILES
    assert {path.removeprefix(config.data.path) for path in opened} == {"/2.parquet"}


@pytest.mark.parametrize("what", ["changed", "added", "removed"])
def test_a_resume_notices_other_data_though_it_reads_none(
    config: RunConfig, what: str, tmp_path: Path
) -> None:
    store = open_run(config)
    generate(store, config)
    path = tmp_path / "data" / ("9.parquet" if what == "added" else "1.parquet")
    path.unlink() if what == "removed" else write(path, 100)
    with pytest.raises(UserError, match=path.name):
        generate(store, config)


def test_ids_that_stand_in_two_shards_are_told_when_generate_ends(
    config: RunConfig, tmp_path: Path
) -> None:
    write(tmp_path / "data" / "3.parquet", 0)
    with pytest.raises(UserError, match=r'"row-0", 0\] 2 times, in shards \[0, 6\].*data\.id'):
        run(config, stages=("generate",))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many committed tables were alive at a time, each time one was read."""
    alive: list[weakref.ref[pa.Table]] = []
    counts: list[int] = []
    for module in (sums, augment, judge, report_data, show):
        real = module.read_committed  # type: ignore[attr-defined]

        def read(*args: Any, real: Callable[..., pa.Table] = real, **kwargs: Any) -> pa.Table:
            table = real(*args, **kwargs)
            alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(table)]
            counts.append(len(alive))
            return table

        monkeypatch.setattr(module, "read_committed", read)
    return counts


STAGES: dict[str, Callable[[Any], Any]] = {
    "sum_up": lambda run: score.score(run.store, run.config),
    "augment": lambda run: augment.augment(run.store, run.config),
    "judge": lambda run: judge.build_prompts(run.store, run.with_settings(judge={"max_rows": 5})),
    "report": lambda run: report_data.read_run(run.store, keep=5),
    "show": lambda run: show.show(run.store),
}


def test_later_stages_hold_one_shard_and_no_stage_s_commits(
    make_run: Callable[..., Any], tables: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the shards, each with a long quarantine: the peak stays where it was, and two
    tables live at most.
    """
    monkeypatch.setattr("storage.commit.READERS", 1)
    entries = [{"id": f"row-{i}", "reason": f"broken in way {i}"} for i in range(100)]
    peaks: dict[str, list[int]] = {name: [] for name in STAGES}
    for shards in (40, 120):
        run = make_run(rows=3 * shards, shards=shards)
        for path in run.store.list("commit/generate"):
            made = read_sealed(run.store, path)
            run.store.replace(path, sealed({**made, "quarantined": entries}))
        score.score(run.store, run.config)
        for name, job in STAGES.items():
            job(run)  # what is imported or cached once is none of its growth
            tables.clear()
            gc.collect()
            tracemalloc.start()
            job(run)
            peaks[name].append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert len(tables) >= shards
            assert max(tables) <= 2, name
    grown = {name: more - few for name, (few, more) in peaks.items()}
    assert max(grown.values()) < 500_000, grown  # all 80 further commits, held, would be 2,000,000
