"""Which of a run's shards one call works on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.strict import UserError
from storage.commit import to_retry, todo
from storage.records import Plan, Shard
from storage.uri import Store


@dataclass(frozen=True)
class Part:
    """What to work on now: nothing of it changes an id, an answer or the fingerprint, and a later
    call goes on.

    limit: at most so many rows, but at least a shard; shards: only those from a to before b;
    retry: quarantined rows of committed shards too.
    """

    limit: int | None = None
    shards: tuple[int, int] | None = None
    retry: bool = False

    @property
    def whole(self) -> bool:
        """Is the run to be finished by this call."""
        return self.limit is None and self.shards is None

    def of(self, left: list[Shard]) -> list[Shard]:
        """Those of the shards that are in the range a:b."""
        if self.shards is None:
            return left
        return [shard for shard in left if self.shards[0] <= shard.index < self.shards[1]]

    def choose(self, plan: Plan, store: Store, stage: str) -> tuple[list[Shard], int]:
        """The shards to generate now, in order, and how many have a commit; UserError as
        `expect_range`.
        """
        missing = todo(plan, store, stage)
        left = self.of([*missing, *(to_retry(plan, store) if self.retry else [])])
        self.expect_range(plan.shards)
        return self._first(left), len(plan.shards) - len(missing)

    def expect_range(self, planned: Sequence[Shard]) -> None:
        """UserError where the range is outside the plan."""
        if self.shards is not None and self.shards[0] >= len(planned):
            a, b = self.shards
            raise UserError(
                f"--shards: expected some of the run's shards, 0:{len(planned)}, got {a}:{b}"
            )

    def cut(self, planned: Sequence[Shard]) -> list[Shard]:
        """The shards of a plan that is not written yet, the first one cut into shards of `limit`
        rows where it has more: a first try on few rows takes no more of them.

        With a range of shards nothing is cut: a range means the same shards on every machine.
        """
        first, limit = planned[0], self.limit
        if self.shards is not None or limit is None or first.rows <= limit:
            return list(planned)
        pieces = [
            replace(
                first,
                start=first.start + at,
                rows=min(limit, first.rows - at),
                offset=first.offset + at,
            )
            for at in range(0, first.rows, limit)
        ]
        return [replace(shard, index=i) for i, shard in enumerate([*pieces, *planned[1:]])]

    def _first(self, left: list[Shard]) -> list[Shard]:
        """As many shards as the limit has room for, and at least one."""
        if self.limit is None:
            return left
        chosen, rows = left[:1], sum(shard.work for shard in left[:1])
        for shard in left[1:]:
            rows += shard.work
            if rows > self.limit:
                break
            chosen.append(shard)
        return chosen


WHOLE = Part()


def parse(limit: int | None, shards: str | None, retry: bool) -> Part:
    """The part that the command line asks for."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit: expected a number of rows >= 1, got {limit}")
    if shards is None:
        return Part(limit, None, retry)
    match = re.fullmatch(r"(\d+):(\d+)", shards)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(
            f"--shards: expected a:b with a < b, the shards from a to before b, got {shards!r}"
        )
    return Part(limit, (int(match[1]), int(match[2])), retry)
