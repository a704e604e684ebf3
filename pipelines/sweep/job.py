"""`counterfactory sweep`: many runs that differ in a few settings, computed by one pool of workers
and shown in one table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from actors.pinned.black_box import begin_count
from actors.pinned.load import pin
from actors.sweep import CellJob, CellShard, Sweep, SweepJob
from actors.worker import Job
from configs.schema import RunConfig
from configs.strict import UserError
from configs.sweep import Cell, SweepConfig, cells
from pipelines.ahead import expect_settings
from pipelines.engine.disk import disk_errors
from pipelines.engine.fingerprints import worker_config
from pipelines.engine.part import WHOLE
from pipelines.engine.runner import run_stage
from pipelines.generate.checks import check_needs, try_models
from pipelines.generate.job import STAGE
from pipelines.generate.plan import make_plan, open_run
from pipelines.interventions import job as interventions
from pipelines.run import print_line, run
from pipelines.score import job as score
from pipelines.sweep.results import write_results
from storage.records import Shard
from storage.uri import Store, open_store


def sweep(config: SweepConfig, sets: list[str] | None = None) -> Store:
    """Finish every cell and write the results of all cells together.

    Called again, it adds only what is missing. Checks every cell's settings, models and data before
    any work. UserError names the cell at fault.
    """
    found = cells(config, sets)
    store = open_store(f"{config.out.rstrip('/')}/{config.name}")
    stores = [open_run(cell.run) for cell in found]
    started = time.monotonic()
    begin_count()
    with disk_errors(store.uri):
        run_together(store, found[0].run, "generate", list(_generate_jobs(found, stores)))
        measured = [pair for pair in zip(found, stores, strict=True) if _measured(pair[0])]
        placed = list(_later_jobs(measured, interventions.work_left))
        run_together(store, found[0].run, "interventions", placed)
        scored = list(_later_jobs(zip(found, stores, strict=True), score.work_left))
        run_together(store, found[0].run, "score", scored)
        for cell, place in zip(found, stores, strict=True):
            print_line(f"== {cell.run.name}")
            between = ("interventions",) if _measured(cell) else ()
            run(cell.run, stages=("generate", *between, "score"), store=place)
        store.replace("sweep.json", json.dumps(config.model_dump(), indent=1, default=str).encode())
        for line in write_results(store, config, found, stores):
            print_line(line)
    print_line(f"{len(found)} cells, {time.monotonic() - started:.0f} s")
    return store


def run_together(
    store: Store, config: RunConfig, kind: str, parts: list[tuple[CellJob, list[Shard]]]
) -> None:
    """Work on the shards of many cells with one pool of workers.

    A worker that is free at the end of one cell starts with the next cell, so no worker is idle.
    config: the engine's settings. parts: for each cell its worker's settings and its shards.
    """
    if not parts:
        return
    pairs = [(cell, shard) for cell, (_, shards) in enumerate(parts) for shard in shards]
    jobs = [CellShard(n, cell, shard) for n, (cell, shard) in enumerate(pairs)]
    sweep_job = SweepJob(kind=kind, cells=[made_of for made_of, _ in parts])
    settings = parts[0][0].config, sweep_job
    runs = [(open_store(made_of.uri), made_of.config) for made_of, shards in parts if shards]
    run_stage(store, config, stage=kind, actor=Sweep, shards=jobs, settings=settings, runs=runs)


def _generate_jobs(
    found: Iterable[Cell], stores: Iterable[Store]
) -> Iterable[tuple[CellJob, list[Shard]]]:
    tried: set[str] = set()
    for cell, store in zip(found, stores, strict=True):
        with named(cell):
            check_needs(cell.run)  # before any file or server is touched
            digests = pin(cell.run.model_dump()["models"])
            expect_settings(cell.run, ("interventions", "score")[not _measured(cell) :])
            key = json.dumps(
                [cell.run.model_dump()[part] for part in ("models", "method", "target")],
                default=str,
            )
            if key not in tried:
                try_models(cell.run)
                tried.add(key)
            plan = make_plan(store, cell.run, digests)
            left, _ = WHOLE.choose(plan, store, STAGE)
            yield CellJob(*worker_config(cell.run, digests), STAGE, store.uri), left


def _measured(cell: Cell) -> bool:
    """Return whether the interventions of a cell are measured."""
    return cell.run.interventions.enabled


def _later_jobs(
    found: Iterable[tuple[Cell, Store]],
    work_left: Callable[[Store, RunConfig], tuple[str, list[Shard], tuple[RunConfig, Job]]],
) -> Iterable[tuple[CellJob, list[Shard]]]:
    """Return the work of a stage after generate, cell by cell."""
    for cell, store in found:
        with named(cell):
            stage, left, settings = work_left(store, cell.run)
            yield CellJob(*settings, stage, store.uri), left


@contextmanager
def named(cell: Cell) -> Iterator[None]:
    """Add the cell's name to a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"cell {cell.run.name}: {error}") from None
