"""A row that kills, hangs or does not fit in memory, where the driver does the work itself (engine
local).
"""

from __future__ import annotations

import json
import signal
from typing import Any

from conftest import Job  # type: ignore[import-not-found]

from actors.guard.watchdog import STOPPED


def extras(job: Job) -> list[dict[str, Any]]:
    """What each shard's commit tells besides its counts."""
    return [json.loads(data)["extra"] for data in job.commits().values()]


def test_row_that_kills_its_worker_every_time(job: Job) -> None:
    """The driver dies with it; after the stated attempts its shard is gone through row by row and
    the row named once it was worked on at two deaths.
    """
    job.environ["FAULT"] = "kill:9"
    codes = [job.run()[0] for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 4
    said = job.finish(9)
    assert job.quarantined() == {"row-9": "its worker died on this row"}
    assert "shard 2: a worker ended over it (4 so far): going through it row by row" in said
    assert ", 1 quarantined" in said


def test_row_that_hangs(job: Job) -> None:
    """The batch is stopped, then the row; neither the next command nor the others wait for it."""
    job.sets.append("engine.row_seconds=2")
    job.environ["FAULT"] = "hang:9"
    code, said = job.run()
    assert code == STOPPED
    assert (
        "counterfactory: 2 rows of shard 2 (engine.row_seconds: 2.0) took more than 4 s: stopped"
        in said
    )
    code, said = job.run()
    assert code == STOPPED
    assert (
        "counterfactory: 1 row of shard 2 (engine.row_seconds: 2.0) took more than 2 s: stopped"
        in said
    )
    job.finish(9)
    assert job.quarantined() == {"row-9": "it took longer than a row may take (engine.row_seconds)"}


def test_batch_that_does_not_fit_in_memory(job: Job) -> None:
    """It is halved, once and for good, and told once; the answers are the same."""
    job.sets += ["engine.batch=4"]
    job.finish()
    plain = {
        name: (row["cf_id"], row["counterfactual"], row["forward"])
        for name, row in job.answers().items()
    }
    job.sets += ["name=small"]
    small = Job(job.folder, job.sets, {"FAULT": "oom:2"}, name="small")
    said = small.finish()
    assert {
        n: (row["cf_id"], row["counterfactual"], row["forward"])
        for n, row in small.answers().items()
    } == plain
    assert said.count("out of memory with 4 rows at a time: goes on with 2") == 1
    assert [extra["batch"] for extra in extras(small)] == ["2"] * 6
    assert [extra["notes"] for extra in extras(small)][1:] == [[]] * 5


def test_row_that_does_not_fit_in_memory(job: Job) -> None:
    """It alone is set aside, and the others' batch is not made smaller for it."""
    job.environ["FAULT"] = "large:9"
    job.finish(9)
    assert job.quarantined()["row-9"].startswith(
        "it does not fit in memory alone: OutOfMemoryError: CUDA out of memory"
    )
    assert [extra["batch"] for extra in extras(job)] == ["2"] * 6
