"""Which of a run's shards one call works on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.strict import UserError
from storage.commit import to_retry, todo
from storage.uri import Store


@dataclass(frozen=True)
class Part:
    """What to work on now: nothing of it changes the plan, an id or the fingerprint, and a later call goes on.

    limit: at most so many rows; shards: only those from a to before b; retry: quarantined rows of committed shards too.
    """

    limit: int | None = None
    shards: tuple[int, int] | None = None
    retry: bool = False

    @property
    def whole(self) -> bool:
        """Is the run to be finished by this call."""
        return self.limit is None and self.shards is None

    def of(self, left: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the shards that are in the range a:b."""
        if self.shards is None:
            return left
        return [shard for shard in left if self.shards[0] <= shard["index"] < self.shards[1]]

    def choose(self, plan: Mapping[str, Any], store: Store, stage: str) -> list[dict[str, Any]]:
        """The shards to generate now, in order. UserError where the range is outside the plan or no shard fits."""
        count = len(plan["shards"])
        if self.shards is not None and self.shards[0] >= count:
            raise UserError(f"--shards: expected some of the run's {count} shards, 0:{count}, got {_told(self.shards)}")
        left = self.of([*todo(plan, store, stage), *(to_retry(plan, store) if self.retry else [])])
        if self.limit is None or not left:
            return left
        chosen, rows = [], 0
        for shard in left:
            rows += work(shard)
            if rows > self.limit:
                break
            chosen.append(shard)
        if not chosen:
            raise UserError(
                f"--limit: expected at least {work(left[0])}, the rows of the next shard, got {self.limit} "
                "(a run's shards are cut by engine.shard_rows when it is first started)"
            )
        return chosen


WHOLE = Part()


def work(shard: Mapping[str, Any]) -> int:
    """Rows of a shard that are to be worked on."""
    return int(shard.get("tries", shard["rows"]))


def parse(limit: int | None, shards: str | None, retry: bool) -> Part:
    """The part that the command line asks for."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit: expected a number of rows >= 1, got {limit}")
    if shards is None:
        return Part(limit, None, retry)
    match = re.fullmatch(r"(\d+):(\d+)", shards)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--shards: expected a:b with a < b, the shards from a to before b, got {shards!r}")
    return Part(limit, (int(match[1]), int(match[2])), retry)


def _told(shards: tuple[int, int]) -> str:
    return f"{shards[0]}:{shards[1]}"
