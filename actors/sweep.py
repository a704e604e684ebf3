"""One worker for many runs' shards: a sweep's cells come one after another and share its models
(actors.load).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from actors.generate import Generate
from actors.guard.turn import Turn
from actors.score import Score

WORKERS: dict[str, type] = {"generate": Generate, "score": Score}
KEPT = 2  # cells' workers held at a time: the one whose shards come now, and the one before


@dataclass
class Begun:
    """A job that was taken up: its cell's worker, and what that has begun (None where it begins
    nothing ahead).
    """

    job: dict[str, Any]
    worker: Any
    shard: Any

    def close(self) -> None:
        """Stop what runs ahead."""
        if self.shard is not None:
            self.shard.close()


class Sweep:
    """Ray callable: for each cell that comes along an ordinary worker, made when its first shard
    comes.

    config: {"kind": of WORKERS, "cells": [{"config", "stage", "uri"}], "session"}; a job is
    {"index", "rows", "cell", "shard"}, `index` being its place among the sweep's jobs and `shard` a
    shard of the cell's run.
    """

    together = 2

    def __init__(self, config: dict[str, Any], stage: str, run_uri: str) -> None:
        self.kind, self.cells, self.session = (
            WORKERS[config["kind"]],
            config["cells"],
            config["session"],
        )
        self.workers: OrderedDict[int, Any] = OrderedDict()
        self.turn, self._making = Turn(), threading.Lock()

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """One shard of one cell; gives its receipt under the job's index."""
        return self.finish(self.begin(job))

    def begin(self, job: dict[str, Any]) -> Begun:
        """Take up a job; its cell's worker reads ahead where it can."""
        worker = self._worker(job["cell"])
        return Begun(job, worker, worker.begin(job["shard"]) if hasattr(worker, "begin") else None)

    def finish(self, begun: Begun) -> dict[str, Any]:
        """Do the begun shard; one computes at a time, whatever cells they are of, and their work is
        no waiting.
        """
        if begun.shard is not None:
            receipt = begun.worker.finish(begun.shard)
        else:
            with self.turn.mine() as gap:
                receipt = {**begun.worker(begun.job["shard"]), "wait_seconds": gap}
        return {**receipt, "index": begun.job["index"]}

    def _worker(self, cell: int) -> Any:
        with self._making:
            if cell not in self.workers:
                told = self.cells[cell]
                config = {**told["config"], "session": self.session}
                self.workers[cell] = worker = self.kind(
                    config=config, stage=told["stage"], run_uri=told["uri"]
                )
                worker.turn = self.turn
            self.workers.move_to_end(cell)
            # only now, so that what the new one shares is not loaded again
            while len(self.workers) > KEPT:
                self.workers.popitem(last=False)
            return self.workers[cell]
