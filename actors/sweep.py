"""One worker for many runs' shards: a sweep's cells keep it busy by turns and share its models (actors.load)."""

from __future__ import annotations

import threading
from typing import Any

from actors.generate import Generate
from actors.score import Score

WORKERS: dict[str, type] = {"generate": Generate, "score": Score}


class Sweep:
    """Ray callable: for each cell that comes along an ordinary worker, made when its first shard comes.

    config: {"kind": of WORKERS, "cells": [{"config", "stage", "uri"}], "session"}; a job is {"index", "rows", "cell",
    "shard"}, `index` being its place among the sweep's jobs and `shard` a shard of the cell's run.
    """

    together = 2

    def __init__(self, config: dict[str, Any], stage: str, run_uri: str) -> None:
        self.kind, self.cells, self.session = WORKERS[config["kind"]], config["cells"], config["session"]
        self.workers: dict[int, Any] = {}
        self._making, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """One shard of one cell; gives its receipt under the job's index."""
        return self.finish(self.begin(job))

    def begin(self, job: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        """The job, its cell's worker, and what that has begun."""
        worker = self._worker(job["cell"])
        return job, worker, worker.begin(job["shard"]) if hasattr(worker, "begin") else None

    def finish(self, begun: tuple[dict[str, Any], Any, Any]) -> dict[str, Any]:
        """Do the begun shard; one computes at a time, whatever cells they are of."""
        job, worker, started = begun
        with self._turn:
            receipt = worker.finish(started) if started is not None else worker(job["shard"])
        return {**receipt, "index": job["index"]}

    def _worker(self, cell: int) -> Any:
        with self._making:
            if cell not in self.workers:
                told = self.cells[cell]
                config = {**told["config"], "session": self.session}
                self.workers[cell] = self.kind(config=config, stage=told["stage"], run_uri=told["uri"])
            return self.workers[cell]
