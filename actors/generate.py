"""The worker that makes counterfactuals: it reads one shard and commits one shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from actors.answer import Answered, Answerer
from actors.guard.batch import Batch, drain_notes
from actors.guard.starts import expect_life
from actors.guard.turn import Turn
from actors.guard.watchdog import limit
from actors.pinned.black_box import remember
from actors.rows.read import Ahead, Record, Row, Unusable, decoded, read
from actors.rows.record import record
from actors.rows.retry import Earlier, earlier, joined, unanswered
from actors.worker import Job, Work
from configs.schema import RunConfig
from storage import attempts
from storage.codec import BadRow
from storage.commit import commit_path, commit_shard, read_commit
from storage.records import Commit, Receipt, Shard
from storage.uri import open_store

# a batch may take as long as this many rows, for any number of rows: its rows are judged alone
# afterwards
BATCH_AS = 4


@dataclass
class Begun:
    """A shard that was begun; rows: read in advance, or None where it is done row by row.

    before: the answers of its last revision, where its quarantined rows are tried again; commit: an
    earlier one of the same revision; notes: lines for the driver to show; left: notes that its
    start is no death, where it ends without a commit.
    """

    shard: Shard
    start: attempts.Start | None = None
    rows: Ahead[Row | Unusable] | None = None
    before: Earlier | None = None
    commit: Commit | None = None
    notes: list[str] = field(default_factory=list)
    left: Callable[[], None] | None = None
    since: float = field(default_factory=time.perf_counter)

    def close(self) -> None:
        """Stop reading in advance, and note that its start is no death where it is not finished."""
        if self.rows is not None:
            self.rows.close()
        if self.left is not None:
            with suppress(Exception):
                self.left()


class Generate:
    """Ray callable: pinned models and a method, loaded once, which make counterfactuals of shards.

    One shard computes at a time. Meanwhile the next one is read and decoded, and the commit of the
    last one is written.
    """

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 2  # shards that one worker holds at a time
    answering: type[Answerer] = Answerer

    def __init__(self, config: RunConfig, job: Job, stage: str, run_uri: str) -> None:
        self.config, self.stage, self.store = config, stage, open_store(run_uri)
        self.session, self.answerer = job.session, self.answering(config, job)
        remember(self.answerer.models.values(), self.store)
        self.modality = self.answerer.modality
        self.batch = Batch(config.engine.batch, self.answerer.device, self.answerer.shape)
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="record")
        self.turn = Turn()

    def __call__(self, shard: Shard) -> Receipt:
        """Generate and commit one shard; returns a small receipt (counts and seconds)."""
        return self.finish(self.begin(shard))

    def begin(self, shard: Shard) -> Begun:
        """Note the start of a shard, and read its rows in the background until its turn."""
        begun = Begun(shard)
        path = commit_path(self.stage, shard.index, shard.revision)
        if self.store.is_file(path):  # from a worker whose receipt was lost, or another driver
            begun.commit = read_commit(self.store, path)
            return begun
        begun.before = earlier(self.store, self.stage, shard)
        begun.start = start = attempts.next_start(self.store, self.stage, shard, self.session)
        begun.left = partial(attempts.note, self.store, start, attempts.RAISED)
        most = self.config.engine.attempts
        careful = start.hung or start.deaths >= most
        if careful:
            expect_life(
                start,
                shard,
                self.session,
                most,
                attempts.count_row_deaths(self.store, self.stage, shard, self.session),
            )
        if start.hung:
            begun.notes.append(
                f"shard {shard.index}: a batch took too long: going through it row by row"
            )
        elif start.deaths:
            how = "going through it row by row" if careful else "doing it again"
            begun.notes.append(
                f"shard {shard.index}: a worker ended over it ({start.deaths} so far): {how}"
            )
        if not careful:  # else noted at its turn: a death during its wait is another shard's
            try:
                attempts.enter(self.store, start)
            except BaseException:
                begun.close()  # its note may have arrived
                raise
            rows_of = self._decoded(self._read(shard), shard, set())
            begun.rows = Ahead(unanswered(rows_of, begun.before), self.modality.ahead())
        return begun

    def finish(self, begun: Begun) -> Receipt:
        """Make a begun shard's counterfactuals and commit them; returns its receipt."""
        if begun.commit is not None:
            return self._receipt(begun, begun.commit, 0.0, 0.0)
        assert begun.start is not None
        try:
            receipt = self._finish(begun, begun.start)
            begun.left = None
            return receipt
        finally:
            begun.close()  # neither an error nor Ctrl-C is a death

    def _finish(self, begun: Begun, start: attempts.Start) -> Receipt:
        shard, records = begun.shard, []
        bad: list[Unusable] = []
        with self.turn.mine() as gap:
            began = time.perf_counter()
            if begun.rows is None:
                attempts.enter(self.store, start)
            for answers, unusable in (
                self._batches(begun.rows, start) if begun.rows else self._careful(begun)
            ):
                bad += unusable
                records.append(self._recorder.submit(self._records, answers))
            waited = begun.rows.waited if begun.rows else 0.0
            computed = time.perf_counter() - began - waited
        begun.notes += drain_notes(self.batch.notes)
        rows = [row for part in records for row in _collect(part, bad)]
        quarantined = [{"id": row.id, "reason": row.reason} for row in bad]
        table = joined(begun.before, pa.Table.from_pylist(rows, schema=self.modality.schema))
        extra = {
            **{
                name: pc.sum(table[name]).as_py() or 0
                for name in ("flipped", "forward", "backward")
            },
            "attempt": start.deaths + 1,
            "start": start.path.rpartition("/")[2],
            "wait_seconds": gap + waited,
            "compute_seconds": computed,
            "batch": str(self.batch.size),
            "shape": self.answerer.shape.rows,
            "notes": begun.notes,
        }
        commit = commit_shard(
            self.store,
            self.stage,
            shard,
            table,
            rows_in=shard.rows,
            rows_out=pc.count_distinct(table["id"]).as_py(),  # a row may have several answers
            quarantined=quarantined,
            seconds=time.perf_counter() - began,
            extra=extra,
        )
        if commit.extra.get("start") != extra["start"]:
            begun.notes.append(
                f"shard {shard.index}: another driver committed it first: its answers stand"
            )
        return self._receipt(begun, commit, gap + waited, computed)

    def _receipt(self, begun: Begun, commit: Commit, waited: float, computed: float) -> Receipt:
        return Receipt(
            index=commit.shard.index,
            rows_in=commit.rows_in,
            rows_out=commit.rows_out,
            answers=commit.rows,
            quarantined=len(commit.quarantined),
            flipped=commit.extra.get("flipped", 0),
            seconds=time.perf_counter() - begun.since,
            wait_seconds=waited,
            compute_seconds=computed,
            notes=begun.notes,
        )

    def _batches(
        self, rows: Ahead[Row | Unusable], start: attempts.Start
    ) -> Iterator[tuple[list[Answered], list[Unusable]]]:
        """Yield answers batch by batch, with the rows set aside."""
        batch: list[Row] = []
        bad: list[Unusable] = []

        def call(rows: list[Row]) -> tuple[list[Answered], list[Unusable]]:
            with self._limit(
                len(rows), start, partial(attempts.note, self.store, start, attempts.HUNG)
            ):
                return self.answerer(rows)

        for row in rows:
            if isinstance(row, Unusable):
                bad.append(row)
                continue
            batch.append(row)
            if len(batch) >= self.batch.size:
                yield self.batch.guarded(call, batch)
                batch = []
        if batch:
            yield self.batch.guarded(call, batch)
        yield [], bad

    def _careful(self, begun: Begun) -> Iterator[tuple[list[Answered], list[Unusable]]]:
        """Yield answers row by row.

        Each row is noted before it is decoded and after it is answered, so that a row that kills
        its worker is known.
        """
        assert begun.start is not None
        shard, seen = begun.shard, set(begun.before.ids if begun.before else ())
        place = self.store, self.stage, shard
        deadly = attempts.deadly_rows(*place, self.session)
        for stored in unanswered(self._read(shard), begun.before):
            number = shard.offset + stored.position
            if number in deadly:
                yield [], [Unusable(stored.id, deadly[number])]
                continue
            mark = attempts.begin_row(*place, number, self.session)
            try:
                with self._limit(1, begun.start, partial(attempts.note_hung_row, *place, number)):
                    (row,) = self._decoded([stored], shard, seen)
                    found = (
                        ([], [row])
                        if isinstance(row, Unusable)
                        else self.batch.guarded(self.answerer, [row])
                    )
            finally:  # the worker finished the row: neither an error nor a stop is a death
                attempts.end_row(self.store, mark)
            yield found

    def _read(self, shard: Shard) -> Iterator[Record]:
        return read(shard, self.config.data, self.config.target, self.modality)

    def _decoded(
        self, records: Iterable[Record], shard: Shard, seen: set[str]
    ) -> Iterator[Row | Unusable]:
        classes = self.answerer.classifier.classes
        return decoded(records, shard, self.config, classes, seen, self.modality)

    def _limit(self, rows: int, start: attempts.Start, note: Any) -> Any:
        seconds = self.config.engine.row_seconds
        what = (
            f"{rows} {'rows' if rows > 1 else 'row'} of shard"
            f" {int(start.path.split('/')[2].partition('.')[0])}"
        )
        allowed = None if seconds is None else min(rows, BATCH_AS) * seconds
        return limit(allowed, f"{what} (engine.row_seconds: {seconds})", note)

    def _records(self, answers: list[Answered]) -> tuple[list[dict[str, Any]], list[Unusable]]:
        """Return answers to store; all answers of a row are set aside where one
        cannot be stored.
        """
        rows: list[dict[str, Any]] = []
        bad: dict[str, Unusable] = {}
        several = len({answered.row.id for answered in answers}) < len(answers)
        for answered in answers:
            try:
                rows.append(record(answered, self.config.method.target, self.modality))
                continue
            except BadRow as reason:
                why = str(reason)
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                why = f"the method failed: {type(error).__name__}: {text}"
            which = f"answer {answered.k}: " if several else ""
            bad.setdefault(answered.row.id, Unusable(answered.row.id, which + why))
        return [row for row in rows if row["id"] not in bad], list(bad.values())


def _collect(
    part: Future[tuple[list[dict[str, Any]], list[Unusable]]], bad: list[Unusable]
) -> list[dict[str, Any]]:
    rows, unusable = part.result()
    bad += unusable
    return rows
