"""Which of a run's shards one call works on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from configs.strict import UserError
from storage.commit import to_retry, todo
from storage.records import Plan, Shard
from storage.uri import Store


@dataclass(frozen=True)
class Part:
    """What to work on now: nothing of it changes the plan, an id or the fingerprint, and a later
    call goes on.

    limit: at most so many rows; shards: only those from a to before b; retry: quarantined rows of
    committed shards too.
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
        `expect_room`.
        """
        missing = todo(plan, store, stage)
        left = self.of([*missing, *(to_retry(plan, store) if self.retry else [])])
        self.expect_room(plan.shards, left)
        return self._first(left), len(plan.shards) - len(missing)

    def expect_room(self, planned: Sequence[Shard], left: Sequence[Shard]) -> None:
        """UserError where the range is outside the plan, or the limit under the first shard that is
        left.
        """
        if self.shards is not None and self.shards[0] >= len(planned):
            a, b = self.shards
            raise UserError(
                f"--shards: expected some of the run's shards, 0:{len(planned)}, got {a}:{b}"
            )
        if self.limit is not None and left and left[0].work > self.limit:
            raise UserError(
                f"--limit: expected at least {left[0].work}, the rows of the next shard, got"
                f" {self.limit} (engine.shard_rows cuts a run's shards when it is first started)"
            )

    def _first(self, left: list[Shard]) -> list[Shard]:
        """As many shards as the limit has room for."""
        if self.limit is None:
            return left
        chosen, rows = [], 0
        for shard in left:
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
