"""The sums behind the importances, over the attributed shards."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from configs.schema import RunConfig
from counterfactory.metrics import importance
from counterfactory.metrics.importance import ImportanceSums
from counterfactory.metrics.means import bootstrap_weights
from pipelines.score.columns import floats, vectors
from storage.commit import iterate_commits, read_committed
from storage.uri import Store

MOST_WAYS = 64  # directions with sums of their own; further directions share one sum
Way = tuple[int, int]


@dataclass
class Sums:
    """Sums over the attributed rows. Shards are added one by one and are not stored.

    ways: the flipped rows by direction. signed: all flipped rows, signed towards the second of two
    classes; rows of the other direction have their sign turned. sizes: all flipped rows without
    signs.
    """

    signed: ImportanceSums
    sizes: ImportanceSums
    ways: dict[Way | None, ImportanceSums] = field(default_factory=dict)
    rows: int = 0
    shards: int = 0
    not_finite: int = 0


def sum_up(store: Store, stage: str, config: RunConfig) -> Sums:
    """Sum the flipped rows of the attributed shards, one shard in memory at a time."""
    descriptors, replicates = len(config.models["attribution"].classes), config.score.bootstrap
    zero = ImportanceSums.zero(descriptors, replicates)
    sums = Sums(zero, zero)
    for commit in iterate_commits(store, stage):
        table = read_committed(store, commit, ["id", "source", "target", "flipped", "importance"])
        sums.shards += 1
        sums.rows += table.num_rows
        flipped = table.filter(table["flipped"])
        good = flipped.filter(flipped["importance"].is_valid())
        sums.not_finite += flipped.num_rows - good.num_rows
        if not good.num_rows:
            continue
        values = vectors(good["importance"])
        weights = bootstrap_weights(good["id"].to_pylist(), replicates)
        pairs = np.stack([floats(good["source"]), floats(good["target"])], 1).astype(np.int64)
        signs = np.where(pairs[:, 1] > pairs[:, 0], 1.0, -1.0)[:, None]
        sums.signed += importance.update(values * signs, weights)
        sums.sizes += importance.update(np.abs(values), weights)
        for source, target in np.unique(pairs, axis=0):
            mine = (pairs == (source, target)).all(1)
            way: Way | None = (int(source), int(target))
            way = way if way in sums.ways or len(sums.ways) < MOST_WAYS else None
            sums.ways[way] = sums.ways.get(way, zero) + importance.update(
                values[mine], weights[mine]
            )
    return sums
