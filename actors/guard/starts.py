"""The limit on deaths of workers that stops a run."""

from __future__ import annotations

from configs.strict import UserError
from storage.attempts import LOCAL, Start
from storage.records import Shard


def expect_life(start: Start, shard: Shard, session: str, most: int, named: int = 0) -> None:
    """Raise UserError where this driver's workers died over a shard twice as often as allowed.

    The run would otherwise never end. most: engine.attempts; named: deaths that are known to be
    caused by a row. Does nothing for a driver that works itself, because it died with each worker.
    """
    if session == LOCAL or start.here < 2 * most + named:
        return
    where = f"{shard.rows} rows from {shard.start} of {shard.file}"
    raise UserError(
        f"shard {shard.index} ({where}): expected its worker to live, or to die on one of the"
        f" rows, got {start.here} deaths outside of any"
    )
