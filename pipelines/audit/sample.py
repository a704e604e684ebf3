"""Draws the rows of an audit: those not audited yet, in equal shares over the strata."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from configs.audit import AuditConfig
from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.audit.ledger import Stratum
from pipelines.audit.pools import allocate, read_pools
from pipelines.audit.rows import Chosen, write_rows
from pipelines.generate.plan import cut_data
from storage.names import Hashes, hashes
from storage.plan import cut
from storage.uri import Store

SCAN = 1 << 16  # rows of a file that are looked at with one open file


@dataclass(frozen=True)
class Drawn:
    """The rows of an audit, written to a folder of the audits' folder."""

    folder: str
    strata: list[Stratum]
    ids: Hashes
    nameless: int


def draw(store: Store, config: AuditConfig, run: RunConfig, name: str, before: Hashes) -> Drawn:
    """Draw the rows of the audit `name` and write them, with their images, to a folder of its own.

    before: sorted hashes of the ids that are not drawn again. The rows of a stratum are chosen by a
    hash of the audit's name and the row's id: the same rows on every try, for any order of the
    data. UserError where no row is new, an id is there twice, or there are more strata than the
    budget.
    """
    files, _ = cut_data(run)
    shards = cut(files, shard_rows=SCAN, rows=run.data.rows, path=run.data.path)
    pools, nameless, total = read_pools(shards, config, run, name, before)
    if not pools:
        got = f"none of {total:,} rows" + (f" ({nameless:,} without an id)" if nameless else "")
        raise UserError(
            f"{run.data.path}: expected rows that were not audited yet under this classifier, got"
            f" {got}"
        )
    if len(pools) > config.budget:
        raise UserError(
            f"strata: expected at most as many as the budget of {config.budget:,} rows, got"
            f" {len(pools):,} combinations of {', '.join(config.strata)}"
        )
    counts = allocate({values: pool.rows for values, pool in pools.items()}, config.budget)
    chosen: list[Chosen] = []
    strata = []
    for place, (values, count) in enumerate(sorted(counts.items())):
        chosen += [(*entry, place) for entry in pools[values].smallest(count)]
        told = dict(zip(config.strata, values, strict=True))
        strata.append(Stratum(told, pools[values].rows, count))
    folder = f"audits/{name}/rows-{uuid.uuid4().hex[:12]}"
    chosen.sort(key=lambda entry: entry[:2])
    write_rows(store, folder, run, shards, chosen)
    ids = hashes(str(entry[2]) for entry in chosen)
    return Drawn(folder, strata, ids, nameless)
