"""When to stop a run whose workers keep dying."""

from __future__ import annotations

from configs.strict import UserError
from storage.attempts import LOCAL, Start
from storage.records import Shard


def expect_life(start: Start, shard: Shard, session: str, most: int, named: int = 0) -> None:
    """UserError where workers of this driver died over a shard twice as often as they may: it would
    never end.

    most: engine.attempts; named: deaths that are known to be a row's. A driver that works itself
    died with each.
    """
    if session == LOCAL or start.here < 2 * most + named:
        return
    where = f"{shard.rows} rows from {shard.start} of {shard.file}"
    raise UserError(
        f"shard {shard.index} ({where}): expected its worker to live, or to die on one of the"
        f" rows, got {start.here} deaths outside of any"
    )
