"""One worker for the shards of many runs.

A sweep's cells follow one another and share their models (actors.pinned.load).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from actors.generate import Generate
from actors.guard.turn import Turn
from actors.interventions import Intervene
from actors.score import Score
from actors.worker import Begun, Job, ReadsAhead, Work, Worker
from configs.schema import RunConfig
from storage.records import COUNT, OBJECT, Receipt, Shard, checked

WORKERS: dict[str, type[Worker]] = {
    "generate": Generate,
    "interventions": Intervene,
    "score": Score,
}
KEPT = 2  # cells' workers held at a time: of the current cell, and of the one before


@dataclass(frozen=True)
class CellShard:
    """A shard of one cell's run; index: its place among the sweep's shards."""

    index: int
    cell: int
    shard: Shard

    @property
    def work(self) -> int:
        """Return the number of rows to work on."""
        return self.shard.work

    @property
    def tries(self) -> int | None:
        """Return the number of rows that are tried again; None where it is done for
        the first time.
        """
        return self.shard.tries

    @property
    def source(self) -> Shard:
        """Return the shard to read."""
        return self.shard

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that is sent to a worker."""
        return {"index": self.index, "cell": self.cell, "shard": self.shard.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> CellShard:
        """Return the record of a received JSON value; BadRecord names what is wrong."""
        found = checked(value, "job", {"index": COUNT, "cell": COUNT, "shard": OBJECT})
        return cls(**{**found, "shard": Shard.from_json(found["shard"])})


@dataclass
class BegunShard:
    """A job that was begun: its cell's worker, and the work that this worker began.

    begun is None where the worker begins nothing in advance.
    """

    job: CellShard
    worker: Worker
    begun: Begun | None

    def close(self) -> None:
        """Stop its background work."""
        if self.begun is not None:
            self.begun.close()


@dataclass(frozen=True)
class CellJob:
    """The settings of a cell's worker."""

    config: RunConfig
    job: Job
    stage: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class SweepJob(Job):
    """A sweep's cells; kind: a key of WORKERS."""

    kind: str
    cells: Sequence[CellJob]


class Sweep:
    """Ray callable: an ordinary worker for each cell, made when the cell's first shard arrives.

    config: the engine's settings.
    """

    takes: ClassVar[type[Work]] = CellShard
    together: ClassVar[int] = 2

    def __init__(self, config: RunConfig, job: SweepJob, stage: str, run_uri: str) -> None:
        self.kind, self.cells, self.session = WORKERS[job.kind], job.cells, job.session
        self.workers: OrderedDict[int, Worker] = OrderedDict()
        self.turn, self._making = Turn(), threading.Lock()

    def __call__(self, job: CellShard) -> Receipt:
        """Do one shard of one cell; returns its receipt under the job's index."""
        return self.finish(self.begin(job))

    def begin(self, job: CellShard) -> BegunShard:
        """Begin a job; its cell's worker reads in advance where it can."""
        worker = self._worker(job.cell)
        begun = worker.begin(job.shard) if isinstance(worker, ReadsAhead) else None
        return BegunShard(job, worker, begun)

    def finish(self, begun: BegunShard) -> Receipt:
        """Do the begun shard; returns its receipt under the job's index.

        Only one shard computes at a time, for all cells. Other cells' computing does not count as
        waiting.
        """
        if isinstance(begun.worker, ReadsAhead):
            receipt = begun.worker.finish(begun.begun)
        else:
            with self.turn.mine() as gap:
                receipt = replace(begun.worker(begun.job.shard), wait_seconds=gap)
        return replace(receipt, index=begun.job.index)

    def _worker(self, cell: int) -> Worker:
        with self._making:
            if cell not in self.workers:
                made_of = self.cells[cell]
                job = replace(made_of.job, session=self.session)
                self.workers[cell] = worker = self.kind(
                    config=made_of.config, job=job, stage=made_of.stage, run_uri=made_of.uri
                )
                if isinstance(worker, ReadsAhead):
                    worker.turn = self.turn
            self.workers.move_to_end(cell)
            # only now, so that models that the new worker shares are not loaded again
            while len(self.workers) > KEPT:
                self.workers.popitem(last=False)
            return self.workers[cell]
