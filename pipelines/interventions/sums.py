"""The sums behind the effect maps, over the committed shards."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import RunConfig
from counterfactory.interventions.core import switches_of
from counterfactory.metrics import attributes, effects, table
from counterfactory.metrics.attributes import AttributeSums
from counterfactory.metrics.catalogue import METRIC
from counterfactory.metrics.effects import GROUPS, EffectSums, group_of
from counterfactory.metrics.means import bootstrap_weights
from pipelines.score.columns import floats, vectors
from storage.commit import iterate_commits, read_committed
from storage.records import Commit
from storage.uri import Store

Floats = NDArray[np.float64]
Way = tuple[int, int]
MOST_WAYS = 16  # directions with a map of their own; further directions share one
FIGURES = [m for m in METRIC["interventions"].figures if m.kind != "set"]
COLUMNS = (
    *("id", "source", "target", "correct", "flipped"),
    *("log_odds_before", "log_odds_after", "mixtures", "log_odds", "changed", "places"),
    "attributes_log_odds",
    *("kinds", "kinds_changed", "core_cells", "core_share", "core_l1"),
    *("full_l1", "second_full", "second_core", "evaluations"),
    *("control_mixtures", "control_log_odds", "control_ends", "control_look"),
)


@dataclass
class Sums:
    """Sums over the measured rows; each shard is added and not stored.

    ways: the flipped rows by direction, of the classifier alone. fits: those of them that the
    oracle saw, with the attributes after the classifier. control: unrelated pairs. look: (G,2)
    effects of the look and of the whole change, of look_n rows. kinds: (G,3) effects and
    kinds_changed: (3,) shares of the change, of kinds_n: (G,) rows. cells: rows by the number of
    their core's parts.
    """

    figures: table.Sums
    rows: int = 0
    flipped: int = 0
    shards: int = 0
    classes: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    ways: dict[Way | None, EffectSums] = field(default_factory=dict)
    fits: dict[Way | None, EffectSums] = field(default_factory=dict)
    control: EffectSums | None = None
    look: Floats = field(default_factory=lambda: np.zeros((GROUPS, 2)))
    look_n: int = 0
    kinds: Floats = field(default_factory=lambda: np.zeros((GROUPS, 3)))
    kinds_n: Floats = field(default_factory=lambda: np.zeros(GROUPS))
    kinds_changed: Floats = field(default_factory=lambda: np.zeros(3))
    changed: AttributeSums | None = None
    cells: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    full_l1: list[float] = field(default_factory=lambda: [0.0, 0.0])  # total and rows
    second: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    evaluations: int = 0

    @property
    def whole(self) -> EffectSums | None:
        """Return the sums of all directions; None where no row was measured."""
        ways = list(self.ways.values())
        return sum(ways[1:], ways[0]) if ways else None


def sum_up(store: Store, stage: str, config: RunConfig, regions: int) -> Sums:
    """Sum the measured shards, with one shard in memory at a time; regions: names of the masks."""
    sums = Sums(table.zero(FIGURES, config.score.bootstrap))
    for commit in iterate_commits(store, stage):
        _add(sums, commit, read_committed(store, commit, list(COLUMNS)), config, regions)
    return sums


def _add(sums: Sums, commit: Commit, shard: pa.Table, config: RunConfig, regions: int) -> None:
    sums.shards += 1
    sums.rows += shard.num_rows
    sums.classes = sums.classes or list(commit.extra["classes"])
    sums.attributes = sums.attributes or list(commit.extra["attributes"])
    sums.flipped += int(floats(shard["flipped"]).sum())
    numbers = {m.column: floats(shard[m.column]) for m in FIGURES}
    numbers |= {name: floats(shard[name]) for name in ("correct", "flipped")}
    weights = bootstrap_weights(shard["id"].to_pylist(), config.score.bootstrap)
    sums.figures = table.add(sums.figures, table.update(FIGURES, numbers, weights))
    _add_cores(sums, shard)
    _add_control(sums, shard, int(commit.extra["parts"]))
    keep = shard["log_odds"].is_valid().to_numpy(zero_copy_only=False)
    for name in ("log_odds_before", "log_odds_after"):
        keep &= shard[name].is_valid().to_numpy(zero_copy_only=False)
    good = shard.filter(pa.array(keep))
    if not good.num_rows:
        return
    groups = group_of(good["id"].to_pylist())
    ends = np.stack([vectors(good[f"log_odds_{when}"]) for when in ("before", "after")], 1)
    changed = vectors(good["changed"])
    on = _switches(good["mixtures"], changed.shape[1])
    outcomes = vectors(good["log_odds"])[..., None]
    seen = good["attributes_log_odds"].is_valid().to_numpy(zero_copy_only=False)
    if seen.any():
        further = np.full((len(on), on.shape[1], len(sums.attributes)), np.nan)
        further[seen] = vectors(good.filter(pa.array(seen))["attributes_log_odds"]).reshape(
            -1, on.shape[1], len(sums.attributes)
        )
        answers = np.concatenate([outcomes, further], 2)
    places = None
    if regions and not good["places"].null_count:
        places = vectors(good["places"]).reshape(len(on), changed.shape[1], regions)
    elif regions:
        places = np.zeros((len(on), changed.shape[1], regions))
    pairs = np.stack([floats(good["source"]), floats(good["target"])], 1).astype(np.int64)
    for source, target in np.unique(pairs, axis=0).tolist():
        mine = (pairs == (source, target)).all(1)
        way: Way | None = (source, target)
        way = way if way in sums.ways or len(sums.ways) < MOST_WAYS else None
        found = effects.update(
            on[mine],
            outcomes[mine],
            ends[mine][..., :1],
            groups[mine],
            changed[mine],
            None if places is None else places[mine],
        )
        sums.ways[way] = sums.ways[way] + found if way in sums.ways else found
        both = mine & seen
        if both.any():
            found = effects.update(on[both], answers[both], ends[both], groups[both])
            sums.fits[way] = sums.fits[way] + found if way in sums.fits else found
    if sums.attributes:
        p = 1 / (1 + np.exp(-ends[:, :, 1:]))
        rows = np.unique(good["id"].to_pylist(), return_inverse=True)[1]
        moved = attributes.update(p[:, 0], p[:, 1], config.score.threshold, rows)
        sums.changed = moved if sums.changed is None else sums.changed + moved
    kinds = good.filter(good["kinds"].is_valid())
    if kinds.num_rows:
        groups = group_of(kinds["id"].to_pylist())
        np.add.at(sums.kinds, groups, vectors(kinds["kinds"]))
        np.add.at(sums.kinds_n, groups, 1.0)
        sums.kinds_changed += vectors(kinds["kinds_changed"]).sum(0)


def _add_cores(sums: Sums, shard: pa.Table) -> None:
    cores = shard.filter(shard["core_cells"].is_valid())
    if not cores.num_rows:
        return
    number = np.array([len(cells) for cells in cores["core_cells"].to_pylist()])
    found = np.bincount(number, minlength=len(sums.cells))
    found[: len(sums.cells)] += sums.cells
    sums.cells = found
    sums.full_l1[0] += float(floats(cores["full_l1"]).sum())
    sums.full_l1[1] += cores.num_rows
    seen = cores.filter(cores["second_full"].is_valid())
    full, core = (floats(seen[name]) == 1 for name in ("second_full", "second_core"))
    sums.second += np.array([seen.num_rows, full.sum(), core.sum(), (full & ~core).sum()])
    sums.evaluations += int(np.nansum(floats(cores["evaluations"])))


def _add_control(sums: Sums, shard: pa.Table, parts: int) -> None:
    seen = shard.filter(shard["control_look"].is_valid())
    if seen.num_rows:
        np.add.at(sums.look, group_of(seen["id"].to_pylist()), vectors(seen["control_look"]))
        sums.look_n += seen.num_rows
    good = shard.filter(shard["control_log_odds"].is_valid())
    good = good.filter(good["control_ends"].is_valid())
    if not good.num_rows:
        return
    found = effects.update(
        _switches(good["control_mixtures"], parts),
        vectors(good["control_log_odds"])[..., None],
        vectors(good["control_ends"])[..., None],
        group_of(good["id"].to_pylist()),
    )
    sums.control = found if sums.control is None else sums.control + found


def _switches(packed: pa.ChunkedArray, parts: int) -> NDArray[np.bool_]:
    """Return switches (B,M,C) of rows that have the same number of mixtures."""
    return np.stack([switches_of(row, parts) for row in packed.to_pylist()])
