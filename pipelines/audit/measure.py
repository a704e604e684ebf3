"""Reads what an audit's run measured, as arrays over its answered rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.audit import CLASS
from configs.schema import RunConfig
from counterfactory.metrics.attributes import changes
from pipelines.audit.effects import OF_EFFECTS, Effects, to_effects
from pipelines.audit.ledger import Record
from pipelines.audit.rows import STRATUM
from pipelines.engine.committed import class_name, intervened_stage, scored_stage
from pipelines.interventions.job import grid_of, region_names
from pipelines.score.columns import floats, vectors
from storage.codec import sides
from storage.commit import iterate_commits, read_committed
from storage.uri import Store

Floats = NDArray[np.float64]
OF_SCORE = ("id", "k", "source", "flipped", "l1", "attributes_before", "attributes_after")


@dataclass(frozen=True)
class Answers:
    """The first answers to rows: B of them.

    classes: (B,) the predicted class of each original, by name. groups: (B,) the values of its
    stratum besides the class. flipped: (B,). distance: (B,) mean |x'-x|, [0,1]. changed: (B,A), the
    attributes that changed, NaN where the oracle said nothing. weights: (B,) with mean 1.
    """

    classes: list[str]
    groups: list[str]
    flipped: NDArray[np.bool_]
    distance: Floats
    attributes: list[str]
    changed: Floats
    weights: Floats

    def __len__(self) -> int:
        return len(self.flipped)


@dataclass(frozen=True)
class Measured:
    """What an audit measured; effects: None where no experiment was made, or no row flipped."""

    answers: Answers
    effects: Effects | None


def read_measured(store: Store, run: Store, record: Record, config: RunConfig) -> Measured:
    """Return what the run of an audit measured; store: the audits' folder."""
    weight = weights_of(store, record, config)
    scores = read_stage(run, scored_stage(run), OF_SCORE)
    attributes: list[str] = []
    classes = list(config.models["classifier"].classes)
    for commit in iterate_commits(run, scored_stage(run)):
        attributes = attributes or list(commit.extra.get("attributes") or [])
        classes = classes or list(commit.extra.get("classes") or [])
    strata = [weight[name] for name in scores["id"].to_pylist()]
    answers = to_answers(
        scores,
        classes,
        attributes,
        config.score.threshold,
        groups=[_group(record, at) for at, _ in strata],
        weights=np.array([each for _, each in strata]),
    )
    found = None
    if config.interventions.enabled:
        table = read_stage(run, intervened_stage(run), OF_EFFECTS)
        grid = grid_of(*sides(config.data.size), config.interventions.grid)
        each = np.array([weight[name][1] for name in table["id"].to_pylist()])
        found = to_effects(table, each, region_names(config), grid)
    return Measured(answers, found)


def weights_of(store: Store, record: Record, config: RunConfig) -> dict[str, tuple[int, float]]:
    """Return the stratum and the weight of each drawn row, by its id."""
    found: dict[str, tuple[int, float]] = {}
    for path in store.list(record.folder):
        with store.parquet(path) as file:
            table = file.read(columns=[str(config.data.id), STRATUM], use_threads=False)
        for name, at in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[str(name)] = (at, record.strata[at].weight)
    return found


def read_stage(store: Store, stage: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of the first answers of all committed shards of a stage."""
    parts = [read_committed(store, c, list(columns)) for c in iterate_commits(store, stage)]
    table = pa.concat_tables(parts)
    return table.filter(pa.array(floats(table["k"]) == 0))


def to_answers(
    scores: pa.Table,
    classes: Sequence[str],
    attributes: Sequence[str],
    threshold: float,
    groups: Sequence[str],
    weights: Floats,
) -> Answers:
    """Return the rows of a score table; weights are scaled to a mean of 1."""
    changed = np.full((scores.num_rows, len(attributes)), np.nan)
    both = [scores[f"attributes_{when}"].is_valid().to_numpy() for when in ("before", "after")]
    there = both[0] & both[1]
    if attributes and there.any():
        kept = scores.filter(pa.array(there))
        before, after = (vectors(kept[f"attributes_{when}"]) for when in ("before", "after"))
        changed[there] = changes(before, after, threshold)
    names = list(classes)
    return Answers(
        [class_name(names, int(at)) for at in floats(scores["source"])],
        list(groups),
        floats(scores["flipped"]) == 1,
        floats(scores["l1"]),
        list(attributes),
        changed,
        weights / weights.mean() if len(weights) else weights,
    )


def _group(record: Record, at: int) -> str:
    values = record.strata[at].values
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != CLASS)
