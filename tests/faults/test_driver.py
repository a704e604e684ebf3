"""The driver is killed at a point of its progress, or two of them work at once: the same command
finishes the job.
"""

from __future__ import annotations

import os
import signal

import pytest
from conftest import Job  # type: ignore[import-not-found]
from crash import At, wait_until_stopped

from storage.run import read_manifest


@pytest.mark.parametrize("when", ["before", "after"])
def test_driver_killed_at_plan(job: Job, when: str) -> None:
    code, _ = job.run(At("put_new", "plan.json", when=when))
    assert code == -signal.SIGKILL
    assert job.commits() == {}
    assert "committed before" not in job.finish()


def test_driver_killed_in_the_middle_of_a_shard(job: Job) -> None:
    code, _ = job.run(At("answer", nth=6))
    assert code == -signal.SIGKILL
    before = job.commits()
    assert len(before) == 2
    assert "generate: 2 of 6 shards were committed before" in job.finish()
    assert before.items() <= job.commits().items()


def test_driver_killed_between_data_file_and_commit(job: Job) -> None:
    code, _ = job.run(At("put_new", "commit/generate/", nth=3))
    assert code == -signal.SIGKILL
    before = job.commits()
    assert len(before) == 2
    assert len(job.store.list("data/generate")) == 3
    assert "generate: 2 of 6 shards were committed before" in job.finish()
    assert before.items() <= job.commits().items()
    assert len(job.store.list("data/generate")) == 7  # the orphan is no one's, and stays until `gc`


def test_driver_killed_between_commits(job: Job) -> None:
    code, _ = job.run(At("put_new", "commit/generate/", nth=3, when="after"))
    assert code == -signal.SIGKILL
    before = job.commits()
    assert len(before) == 3
    assert "generate: 3 of 6 shards were committed before" in job.finish()
    assert before.items() <= job.commits().items()
    assert len(job.store.list("data/generate")) == 6  # nothing was done twice


def test_driver_killed_during_report(job: Job) -> None:
    code, _ = job.run(At("replace", "report.html"), command="run")
    assert code == -signal.SIGKILL
    assert not job.store.exists("report.html")
    before = job.commits()
    said = job.finish(command="run")
    assert "generate: 6 of 6 shards were committed before" in said
    assert job.store.exists("report.html")
    assert job.commits() == before
    assert read_manifest(job.store)["totals"]["rows_out"] == 24


def test_driver_killed_again_and_again_on_one_shard(job: Job) -> None:
    """Kills that are no row's fault: the shard is gone through row by row in the end, and loses
    none.
    """
    for _ in range(3):
        assert job.run(At("put_new", "commit/generate/", nth=1))[0] == -signal.SIGKILL
    assert "row by row" in job.finish()


def test_two_drivers_on_one_run(job: Job) -> None:
    """One stops before a commit; the other does everything; the first goes on and finds its shard
    committed.
    """
    first = job.start(At("put_new", "commit/generate/", nth=2, what="stop"))
    wait_until_stopped(first.pid)
    assert len(job.commits()) == 1
    job.finish()
    before = job.commits()
    os.kill(first.pid, signal.SIGCONT)
    first.join(120)
    assert first.exitcode == 0, job.said
    assert "shard 1: another driver committed it first" in job.said
    assert job.commits() == before
    job.expect_whole()
