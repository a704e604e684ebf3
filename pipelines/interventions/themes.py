"""Groups the measured rows of each direction into themes, and writes interventions/themes.json."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from actors.modality import modality_of
from configs.schema import RunConfig
from counterfactory.interventions.core import own_maps, switches_of
from counterfactory.metrics import effects, means, rates
from counterfactory.metrics.attributes import changes
from counterfactory.metrics.effects import group_of
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.means import bootstrap_weights
from counterfactory.metrics.themes import LOOKS, describe, exemplars, find_themes
from pipelines.engine.committed import GENERATE, THEMED, class_name
from storage.commit import commit_path, iterate_commits, read_commit, read_committed, revisions
from storage.names import hashes
from storage.seal import sealed
from storage.uri import Store

Floats = NDArray[np.float64]
Way = tuple[int, int]
MOST_WAYS = 6  # directions that are grouped, the most frequent ones
MOST_ROWS = 500  # of a direction, with the lowest hashes of their ids
SIDES = ("original", "counterfactual")
REPLICATES = 100  # of the intervals of a theme's map
SHOWN = 6  # exemplars of a theme
OFTEN = 0.5  # attributes that change in more of a theme's rows are listed
SMALL = (
    *("id", "cf_id", "source", "target", "core_cells"),
    *("log_odds_before", "log_odds_after", "log_odds"),
)
COLUMNS = (
    *("id", "cf_id", "source", "target", "mixtures", "log_odds", "changed", "places"),
    *("log_odds_before", "log_odds_after", "core_share"),
)


@dataclass(frozen=True)
class Sample:
    """The rows that are grouped, by direction from the most frequent one on, as `group_rows` takes
    them. counts: the flips of every direction.
    """

    rows: dict[Way, list[dict[str, Any]]]
    counts: Counter[Way]
    classes: list[str]
    attributes: list[str]


def write_themes(
    store: Store,
    stage: str,
    config: RunConfig,
    grid: tuple[int, int],
    regions: Sequence[str],
) -> dict[str, Any] | None:
    """Group the rows of an interventions stage and write themes.json; return its content.

    Returns None, and writes nothing, where interventions.themes is 0 and the run has no themes; a
    file from before becomes one without directions. regions: the names of the masks' values.
    """
    most = config.interventions.themes
    if not most and not store.exists(THEMED):
        return None
    directions, left = [], 0
    if most:
        sample = read_rows(store, stage, config, grid)
        left = len(sample.counts) - len(sample.rows)
        directions = [
            {
                "source": class_name(sample.classes, way[0]),
                "target": class_name(sample.classes, way[1]),
                "flips": sample.counts[way],
                **group_rows(rows, config, regions, sample.attributes),
            }
            for way, rows in sample.rows.items()
        ]
    found = {
        "stage": stage,
        "most": most,
        "rows_most": MOST_ROWS,
        "grid": list(grid),
        "directions": directions,
        "directions_left": left,
    }
    store.replace(THEMED, sealed(found))
    return found


def group_rows(
    rows: Sequence[Mapping[str, Any]],
    config: RunConfig,
    regions: Sequence[str],
    attributes: Sequence[str],
) -> dict[str, Any]:
    """Return the themes of rows of one direction.

    rows: with id, cf_id, shard, features, on (M,C), outcomes (M,) and ends (2,F) of the mixtures,
    changed, core_share and places.
    """
    names = [str(row["id"]) for row in rows]
    keys = [str(row["cf_id"]) for row in rows]
    features = np.array([row["features"] for row in rows])
    found = find_themes(features, names, keys, config.interventions.themes)
    numbers = np.unique(names, return_inverse=True)[1]
    parts = []
    for theme, alike in enumerate(found.alike):
        here = np.flatnonzero(found.labels == theme)
        mine = [rows[place] for place in here.tolist()]
        shares = _effect_map(mine)
        values = np.array([share.value or 0.0 for share in shares])
        order = exemplars(
            features[here], [keys[at] for at in here], [names[at] for at in here], SHOWN
        )
        parts.append(
            {
                "n": len(mine),
                "share": _json(
                    rates.compute(rates.update((found.labels == theme).astype(float), numbers))
                ),
                "effect": _json(
                    _mean(mine, [row["ends"][1, 0] - row["ends"][0, 0] for row in mine], config)
                ),
                "core_share": _json(_mean(mine, [row["core_share"] for row in mine], config)),
                "alike": alike,
                "map": values.tolist(),
                "low": [share.low for share in shares],
                "high": [share.high for share in shares],
                "look": dict(
                    zip(LOOKS, features[here, -len(LOOKS) :].mean(0).tolist(), strict=True)
                ),
                "regions": _regions(mine, values, regions),
                "attributes": _attributes(mine, attributes, config.score.threshold),
                "exemplars": [
                    {name: mine[at][name] for name in ("id", "cf_id", "shard")} for at in order
                ],
            }
        )
    return {
        "n": len(rows),
        "rest": int((found.labels < 0).sum()),
        "why": found.why,
        "stability": _json(found.stability),
        "separation": found.separation,
        "themes": parts,
    }


def _choose(store: Store, stage: str) -> tuple[Counter[Way], dict[Way, dict[int, set[str]]]]:
    """Return the flips with a core by direction, and the cf_ids of a sample of each direction, by
    shard.

    The sample is the rows with the lowest hashes of their ids, so it depends on neither order nor
    shards. A row's answers are taken together, unless they are too many.
    """
    counts: Counter[Way] = Counter()
    heaps: dict[Way, list[tuple[int, int, str, int]]] = {}
    for commit in iterate_commits(store, stage):
        table = read_committed(store, commit, list(SMALL))
        keep = pc.greater(pc.fill_null(pc.list_value_length(table["core_cells"]), 0), 0)
        for name in (
            "log_odds_before",
            "log_odds_after",
            "log_odds",
        ):  # null where an oracle's are not finite
            keep = pc.and_(keep, table[name].is_valid())
        table = table.filter(keep)
        names, keys = (table[name].to_pylist() for name in ("id", "cf_id"))
        ways = zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True)
        ranks = zip(hashes(names).tolist(), hashes(keys).tolist(), strict=True)
        for way, key, (first, second) in zip(ways, keys, ranks, strict=True):
            counts[way] += 1
            heap = heaps.setdefault(way, [])
            place = (-first, -second, key, commit.shard.index)
            if len(heap) < MOST_ROWS:
                heapq.heappush(heap, place)
            else:
                heapq.heappushpop(heap, place)
    chosen: dict[Way, dict[int, set[str]]] = {}
    for way, heap in heaps.items():
        shards = chosen.setdefault(way, {})
        for _, _, key, shard in heap:
            shards.setdefault(shard, set()).add(key)
    return counts, chosen


def read_rows(store: Store, stage: str, config: RunConfig, grid: tuple[int, int]) -> Sample:
    """Return the rows of a stage that are grouped. Holds the pictures of one shard in memory."""
    counts, samples = _choose(store, stage)
    ways = sorted(counts, key=lambda way: (-counts[way], way))[:MOST_WAYS]
    chosen = {way: samples[way] for way in ways}
    rows: dict[Way, list[dict[str, Any]]] = {way: [] for way in chosen}
    classes, attributes = list[str](), list[str]()
    decode = modality_of(config.data).decode_stored
    there = revisions(store, stage)
    for shard in sorted({index for shards in chosen.values() for index in shards}):
        wanted = {key for shards in chosen.values() for key in shards.get(shard, ())}
        commit = read_commit(store, commit_path(stage, shard, there[shard]))
        made = read_commit(store, commit_path(GENERATE, shard, commit.shard.revision))
        classes = classes or list(commit.extra["classes"])
        attributes = attributes or list(commit.extra["attributes"])
        pairs = {
            row["cf_id"]: [decode(row[side]["bytes"]) for side in ("original", "counterfactual")]
            for row in _only(read_committed(store, made, ["cf_id", *SIDES]), wanted)
        }
        for row in _only(read_committed(store, commit, list(COLUMNS)), wanted):
            on = switches_of(row.pop("mixtures"), len(row["changed"]))
            outcomes = np.array(row.pop("log_odds")).reshape(len(on), -1)[:, 0]
            ends = np.array([row.pop(name) for name in ("log_odds_before", "log_odds_after")])
            tensors = (torch.tensor(of)[None] for of in (on, outcomes, ends[:, 0], row["changed"]))
            own = own_maps(*tensors)[0].numpy()
            before, after = pairs[row["cf_id"]]
            rows[row["source"], row["target"]].append(
                {
                    **row,
                    "features": describe(before, after, own, grid),
                    "on": on,
                    "outcomes": outcomes,
                    "ends": ends,
                    "shard": shard,
                }
            )
    return Sample(rows, counts, classes, attributes)


def _only(table: pa.Table, wanted: set[str]) -> list[dict[str, Any]]:
    keys = pa.array(sorted(wanted), pa.string())
    return list(table.filter(pc.is_in(table["cf_id"], value_set=keys)).to_pylist())


def _mean(
    rows: Sequence[Mapping[str, Any]], values: Sequence[float], config: RunConfig
) -> Estimate:
    weights = bootstrap_weights([str(row["id"]) for row in rows], config.score.bootstrap)
    return means.compute(means.update(np.array(values, dtype=np.float64), weights))


def _effect_map(rows: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    """Return the share of the effect that each cell has, over all rows together."""
    groups = group_of([str(row["id"]) for row in rows])
    sums = effects.update(
        np.array([row["on"] for row in rows]),
        np.array([row["outcomes"] for row in rows])[..., None],
        np.array([row["ends"][:, :1] for row in rows]),
        groups,
    )
    drawn = effects.shares(effects.maps(sums, effects.replicates(REPLICATES))[..., 0])
    return [effects.estimate(drawn[:, cell], sums.rows) for cell in range(drawn.shape[1])]


def _regions(
    rows: Sequence[Mapping[str, Any]], shares: Floats, regions: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the regions of the masks with their share of the effect, largest first; none where a
    row has no regions.
    """
    if not regions or any(row["places"] is None for row in rows):
        return []
    inside = np.array([row["places"] for row in rows]).reshape(len(rows), -1, len(regions)).sum(0)
    size = inside.sum(1, keepdims=True)
    total = shares @ (inside / np.where(size > 0, size, 1.0))
    order = np.argsort(-total, kind="stable")
    return [{"name": regions[at], "share": float(total[at])} for at in order]


def _attributes(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], threshold: float
) -> list[dict[str, Any]]:
    """Return the oracle's attributes that change in more than OFTEN of the rows, most often first:
    in which share they do, and in which share of these they are gained.
    """
    if not names:
        return []
    ends = np.array([row["ends"][:, 1:] for row in rows])
    before, after = (1 / (1 + np.exp(-ends[:, side])) for side in (0, 1))
    changed, gained = changes(before, after, threshold), after > threshold
    numbers = np.unique([str(row["id"]) for row in rows], return_inverse=True)[1]
    found = []
    for at, name in enumerate(names):
        share = rates.compute(rates.update(changed[:, at].astype(np.float64), numbers))
        if (share.value or 0.0) > OFTEN:
            rises = float(gained[changed[:, at], at].mean())
            found.append({"name": name, "rate": _json(share), "gained": rises})
    return sorted(found, key=lambda one: -one["rate"]["value"])


def _json(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
