"""Which of a run's shards one call processes."""

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
    """The shards to process in one call. It changes no id, answer or fingerprint; a later call
    continues.

    limit: most rows to process, but at least one shard; shards: (a, b), process only shards a to b
    - 1; retry: also retry quarantined rows of committed shards.
    """

    limit: int | None = None
    shards: tuple[int, int] | None = None
    retry: bool = False

    @property
    def whole(self) -> bool:
        """Return whether this call should finish the run."""
        return self.limit is None and self.shards is None

    def of(self, left: list[Shard]) -> list[Shard]:
        """Return those of the shards that are in the range a:b."""
        if self.shards is None:
            return left
        return [shard for shard in left if self.shards[0] <= shard.index < self.shards[1]]

    def choose(self, plan: Plan, store: Store, stage: str) -> tuple[list[Shard], int]:
        """Return the shards to generate now, in order, and the number of shards with a commit;
        UserError as in `expect_range`.
        """
        missing = todo(plan, store, stage)
        left = self.of([*missing, *(to_retry(plan, store) if self.retry else [])])
        self.expect_range(plan.shards)
        return self._first(left), len(plan.shards) - len(missing)

    def expect_range(self, planned: Sequence[Shard]) -> None:
        """Raise UserError where the range is outside the plan."""
        if self.shards is not None and self.shards[0] >= len(planned):
            a, b = self.shards
            raise UserError(
                f"--shards: expected some of the run's shards, 0:{len(planned)}, got {a}:{b}"
            )

    def cut(self, planned: Sequence[Shard]) -> list[Shard]:
        """Return the shards of a plan that is not written yet. Cuts the first shard into shards of
        `limit` rows where it has more, so that a first try on few rows processes only these.

        Cuts nothing where a range of shards is set: a range must mean the same shards on every
        machine.
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
        """Return as many shards as fit the limit, and at least one."""
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
    """Return the part that the command line's options describe; UserError where one is invalid."""
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
