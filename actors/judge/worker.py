"""Asks a live judge about each row of a shard, and commits its answers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import aiohttp
import pyarrow as pa

from actors.judge.client import Client, Reply, headers_of, in_dialect
from actors.judge.gate import Budget
from actors.judge.prompts import body_of
from actors.worker import Job, Work
from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from storage import attempts
from storage.codec import sides
from storage.commit import commit_path, commit_shard, read_commit, read_committed
from storage.errors import NoAnswer
from storage.records import Receipt, Shard
from storage.schema import COUNTERFACTUALS, seed_of
from storage.uri import open_store

SOURCE = "generate"  # the stage whose rows are judged
# a row's counterfactual, the two controls, and the counterfactual with the pictures exchanged
PAIR, SAME, OTHER, SWAPPED = "pair", "same", "other", "swapped"
SPENT = "judge/spent"  # notes of what a start may cost, and of what it did cost
HELD, COST = "held", "cost"
ANSWER = pa.struct(
    [
        # pair; same: the original twice; other: another row's answer; swapped: the pictures' order
        ("kind", pa.string()),
        ("repeat", pa.int32()),
        *((name, pa.int32()) for name in CRITERIA),
        ("error", pa.string()),  # why there are no scores
        ("text", pa.string()),  # the model's, or the server's where it refused
        ("model", pa.string()),  # as the server names it
        ("status", pa.int32()),  # of the last reply
        ("tokens_in", pa.int64()),  # of all tries, as the server reports them
        ("tokens_out", pa.int64()),
        ("tries", pa.int32()),
        ("seconds", pa.float32()),
    ]
)
KEYS = ("id", "cf_id", "k", "source", "target", "correct", "flipped")
# Rows that were not to be judged have null in `answers`.
JUDGED = pa.schema(
    [*(COUNTERFACTUALS.field(name) for name in KEYS), pa.field("answers", pa.list_(ANSWER))]
)


@dataclass(frozen=True, kw_only=True)
class JudgeJob(Job):
    """The input of a judge's worker.

    last_id: the largest cf_id to judge, None for all; controls: the share of rows for each of the
    two controls; classes: the classes' names; spent, most_in: what the stage has cost so far, and
    its largest prompt in tokens; redo: an earlier stage, of which answers with scores are kept.
    """

    wording: str = ""
    classes: tuple[str, ...] = ()
    last_id: str | None = None
    controls: float = 0.0
    spent: float = 0.0
    most_in: int = 0
    redo: str | None = None


class Judge:
    """A worker with one client, which all its requests share.

    Runs in the command's own process, so the key stays there. job: a JudgeJob.
    """

    takes: ClassVar[type[Work]] = Shard
    together: ClassVar[int] = 1

    def __init__(self, config: RunConfig, job: JudgeJob, stage: str, run_uri: str) -> None:
        self.config, self.job, self.stage = config, job, stage
        self.settings, self.store = config.judge, open_store(run_uri)
        key = key_of(self.settings.key)
        self.headers = headers_of(self.settings, key)
        self.budget = Budget(self.settings.spend, job.spent)
        self.client = Client(self.settings, key, self.budget, job.most_in)
        self.runner = asyncio.Runner()

    def __call__(self, shard: Shard) -> Receipt:
        """Judge and commit one shard; returns a small receipt (counts and seconds).

        Where it ends otherwise, a note holds what it has cost.
        """
        started = time.perf_counter()
        commit = read_commit(self.store, commit_path(SOURCE, shard.index, shard.revision))
        table = read_committed(self.store, commit)
        wanted = [*KEYS, "original", "counterfactual"]
        records = table.select(wanted).to_pylist()
        asked = list(self.asked(records))
        kept = self.kept(shard)
        left = [each for each in asked if each[:3] not in kept]
        most = sum(self.budget.cost(*self.client.estimate(body)) for *_, body in left)
        self.budget.expect(most, f"the {len(left)} requests of shard {shard.index}")
        before = self.budget.spent
        start = attempts.begin(self.store, self.stage, shard, self.job.session)
        priced = self.settings.spend.per_million_in + self.settings.spend.per_million_out > 0
        note = f"{SPENT}/{self.stage}/{start.path.rpartition('/')[2]}"
        if priced:
            self.store.put_new(f"{note}-{HELD}", json.dumps(most).encode())
        try:
            replies = self.runner.run(self.replies([body for *_, body in left]))
            expect_server_up(replies, self.client.url)
        except BaseException:
            with suppress(OSError):
                if priced:
                    cost = self.budget.spent - before + self.budget.held
                    self.store.put_new(f"{note}-{COST}", json.dumps(cost).encode())
                attempts.note(self.store, start, attempts.RAISED)
            raise
        fresh = {
            each[:3]: answer(each[1], each[2], reply)
            for each, reply in zip(left, replies, strict=True)
        }
        rows, counts = judged_rows(records, [each[:3] for each in asked], {**kept, **fresh})
        committed = commit_shard(
            self.store,
            self.stage,
            shard,
            rows,
            rows_in=len(records),
            quarantined=[],
            seconds=time.perf_counter() - started,
            extra={
                **counts,
                "tokens_in": sum(reply.tokens_in or 0 for reply in replies),
                "tokens_out": sum(reply.tokens_out or 0 for reply in replies),
                "tries": sum(reply.tries for reply in replies),
                "cost": self.budget.spent - before,
                "most_in": self.client.most_in,
                "start": start.path.rpartition("/")[2],
            },
        )
        notes, self.client.notes = self.client.notes, []
        return Receipt(
            index=shard.index,
            rows_in=committed.rows_in,
            rows_out=committed.rows_out,
            seconds=time.perf_counter() - started,
            notes=notes,
        )

    def asked(
        self, records: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[int, str, int, dict[str, Any]]]:
        """Yield (row, kind, repeat, body) of each request of a shard, in the order of rows."""
        last, names = self.job.last_id, self.job.classes
        side = max(sides(self.config.data.size))
        for place, record in enumerate(records):
            if last is not None and record["cf_id"] > last:
                continue
            pictures = {
                PAIR: record,
                **controls(records, place, self.job.controls, self.settings.swapped),
            }
            for kind, after in pictures.items():
                body = body_of(
                    (record["original"]["bytes"], picture_of(after, kind)),
                    self.job.wording,
                    name_of(names, record["source"]),
                    name_of(names, record["target"]),
                    self.settings,
                    swapped=kind == SWAPPED,
                )
                for repeat in range(self.settings.repeats):
                    seed = self.config.seed + repeat
                    yield place, kind, repeat, in_dialect(body, self.settings, seed, side)

    def kept(self, shard: Shard) -> dict[tuple[int, str, int], dict[str, Any]]:
        """Return the answers with scores of the stage to redo, by (row, kind, repeat)."""
        if self.job.redo is None:
            return {}
        path = commit_path(self.job.redo, shard.index, shard.revision)
        if not self.store.is_file(path):
            return {}
        lists = read_committed(self.store, read_commit(self.store, path))["answers"].to_pylist()
        return {
            (place, found["kind"], found["repeat"]): found
            for place, answers in enumerate(lists)
            for found in answers or []
            if found["error"] is None
        }

    async def replies(self, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        """Return the final answers to requests, in their order.

        An error that ends the stage is raised after the requests under way have ended, since they
        cost all the same.
        """
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout)
        connector = aiohttp.TCPConnector(limit=0)

        async def one(body: dict[str, Any]) -> Reply | None:
            if self.client.over:
                return None
            try:
                return await self.client.ask(session, body)
            except Exception:
                self.client.over = True
                raise

        async with aiohttp.ClientSession(
            headers=self.headers, timeout=timeout, connector=connector
        ) as session:
            found = await asyncio.gather(*map(one, bodies), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return [each for each in found if isinstance(each, Reply)]


def key_of(name: str | None) -> str | None:
    """Return the secret in an environment variable; UserError where it is not set."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"judge.key: expected the server's key in the variable {name}, got none")
    return key


def expect_server_up(replies: Sequence[Reply], url: str) -> None:
    """Raise NoAnswer where every request of a shard failed by the server's fault: the rows are not
    to blame then.
    """
    if len(replies) > 1 and all(r.error and (r.status is None or r.status >= 500) for r in replies):
        raise NoAnswer(
            f"judge.url: {url} answered none of {len(replies)} requests: {replies[-1].error}"
        )


def controls(
    records: Sequence[Mapping[str, Any]], place: int, share: float, swapped: float
) -> dict[str, Mapping[str, Any]]:
    """Return the row of a control's second picture by kind, for the share of rows that have one.

    swapped: the share of rows whose pictures are also shown in the other order.

    A row is chosen by its cf_id, so it has the same controls on every redo.
    """
    record = records[place]
    found = {}
    for kind, salt, part in ((SAME, 1, share), (OTHER, 2, share), (SWAPPED, 3, swapped)):
        if seed_of(record["cf_id"], 0, salt) >= part * 2**63:
            continue
        others = [each for each in (*records[place + 1 :], *records[:place])]
        stranger = next((each for each in others if each["id"] != record["id"]), None)
        if kind != OTHER:
            found[kind] = record
        elif stranger is not None:
            found[kind] = stranger
    return found


def picture_of(record: Mapping[str, Any], kind: str) -> bytes:
    """Return the PNG that is shown as the counterfactual."""
    return bytes(record["original" if kind == SAME else "counterfactual"]["bytes"])


def name_of(names: Sequence[str], index: int) -> str:
    """Return a class's name for a model to read."""
    return names[index].replace("_", " ") if index < len(names) else f"class {index}"


def answer(kind: str, repeat: int, reply: Reply) -> dict[str, Any]:
    """Return a reply as it is stored."""
    plain = asdict(reply)
    return {"kind": kind, "repeat": repeat, **(plain.pop("scores") or {}), **plain}


def judged_rows(
    records: Sequence[Mapping[str, Any]],
    asked: Sequence[tuple[int, str, int]],
    answers: Mapping[tuple[int, str, int], dict[str, Any]],
) -> tuple[pa.Table, dict[str, int]]:
    """Return rows of JUDGED, and how many answers they have with and without scores."""
    lists: list[list[dict[str, Any]] | None] = [None] * len(records)
    for each in asked:
        mine = lists[each[0]] = lists[each[0]] or []
        mine.append(answers[each])
    rows = [
        {**{name: record[name] for name in KEYS}, "answers": mine}
        for record, mine in zip(records, lists, strict=True)
    ]
    failed = sum(answers[each]["error"] is not None for each in asked)
    counts = {"answers": len(asked) - failed, "failed": failed}
    return pa.Table.from_pylist(rows, schema=JUDGED), counts
