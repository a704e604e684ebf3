"""The sums behind the table, over the scored shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import RunConfig
from counterfactory.metrics import attributes, rates, table, together
from counterfactory.metrics.catalogue import function
from counterfactory.metrics.estimate import Measure
from counterfactory.metrics.flips import first_of
from counterfactory.metrics.means import bootstrap_weights
from counterfactory.metrics.rates import RateSums
from counterfactory.metrics.together import TogetherSums
from pipelines.score.answers import AnswerSums, rows_of
from pipelines.score.columns import floats, has_vectors, vectors
from pipelines.score.measures import query_of, set_measures
from pipelines.score.sets import AttributeCorrelations, FeatureSums
from pipelines.score.table import Sums
from storage.commit import read_committed
from storage.records import Commit
from storage.uri import Store

Floats = NDArray[np.float64]


def sum_up(
    store: Store, commits: Iterable[Commit], measures: list[Measure], config: RunConfig
) -> tuple[Sums, AnswerSums]:
    """Return the sums over the scored shards, with one shard in memory at a time. All answers to a
    row are in one shard.
    """
    sums, answers = Sums(table.zero(measures, config.score.bootstrap)), AnswerSums()
    oracle = "oracle" in config.models
    columns = {
        *("k", "source", "target", "correct", "flipped", "p_target"),
        *(name for m in measures for name in (m.reads or (m.column,))),
    }
    derived = [(m.column, function(m.derive)) for m in measures if m.derive]
    features = bool(set_measures(config))
    if features:
        sums.features = FeatureSums(config.score.kid_rows)
    columns |= {"lpips_diversity_flipped"} if "lpips_diversity" in columns else set()
    wanted = ["id", *sorted(columns)]
    wanted += ["attributes_before", "attributes_after"] if oracle else []
    wanted += ["features_before", "features_after"] if features else []
    for commit in commits:
        shard, said = read_committed(store, commit, wanted), commit.extra
        sums.classes, sums.attributes = (
            sums.classes or said["classes"],
            sums.attributes or said["attributes"],
        )
        sums.differs += said["verdict_differs"]
        sums.not_finite.update(said.get("not_finite", {}))
        sums.shards += 1
        numbers = {name: floats(shard[name]) for name in columns}
        ids = shard["id"].to_pylist()
        mine = rows_of(ids)
        row = np.arange(len(ids)) if mine is None else mine
        numbers |= {name: derive(numbers, row) for name, derive in derived}
        weights = bootstrap_weights(ids, config.score.bootstrap)
        answers.add(ids, numbers, weights)
        sums.figures = table.add(sums.figures, table.update(measures, numbers, weights, mine))
        sums.rows += shard.num_rows
        if sums.features is not None:
            kept = has_vectors(shard, "features")
            before, after = (vectors(shard[f"features_{when}"]) for when in ("before", "after"))
            known = {name: numbers[name][kept] for name in ("correct", "flipped")}
            these = [i for i, k in zip(ids, kept, strict=True) if k]
            sums.features.add(these, first_of(row[kept]), before, after, known)
        if oracle and (query := query_of(config, sums.attributes)) is not None:
            before, after = (vectors(shard[f"attributes_{when}"]) for when in ("before", "after"))
            if sums.correlations is None:
                sums.correlations = AttributeCorrelations(query, config.score.threshold)
            kept = has_vectors(shard, "attributes")
            known = {name: numbers[name][kept] for name in ("correct", "flipped")}
            sums.correlations.add(before, after, first_of(row[kept]), known, weights[kept])
        if oracle:
            more = count_together(shard, numbers, row, sums.classes, config.score.threshold)
            if more is not None:
                sums.together = more if sums.together is None else sums.together + more
        ways = np.stack([numbers["source"], numbers["target"]], 1).astype(np.int64)
        for way in sorted({(int(s), int(t)) for s, t in ways}):
            here = (ways == way).all(1)
            rate = rates.update(numbers["flipped"][here], None if mine is None else mine[here])
            sums.flipped[way] = sums.flipped.get(way, RateSums()) + rate
            if oracle:
                seen = here & (numbers["flipped"] == 1)
                rows = pa.array(seen)
                before, after = (
                    vectors(shard[f"attributes_{when}"].filter(rows))
                    for when in ("before", "after")
                )
                if len(before):
                    whose = None if mine is None else mine[seen & has_vectors(shard, "attributes")]
                    found = attributes.update(before, after, config.score.threshold, whose)
                    sums.changed[way] = sums.changed[way] + found if way in sums.changed else found
    return sums, answers


def count_together(
    shard: pa.Table,
    numbers: Mapping[str, Floats],
    row: NDArray[np.int64],
    classes: list[str],
    threshold: float,
) -> TogetherSums | None:
    """Return the counts of the class and the oracle's attributes of a shard's originals; None where
    no row has attributes.

    row: (B,) the number of the row that each answer belongs to.
    """
    kept = has_vectors(shard, "attributes")
    if not kept.any():
        return None
    first = first_of(row[kept])
    seen = vectors(shard["attributes_before"])[first] > threshold
    known = {name: numbers[name][kept][first] for name in ("source", "correct")}
    _, columns = together.class_columns(labels_of(known, classes), classes)
    return together.update(np.concatenate([columns, seen.astype(np.float64)], axis=1))


def labels_of(numbers: Mapping[str, Floats], classes: list[str]) -> Floats:
    """Return each row's label as a class index (B,), the predicted class where it has no label.

    numbers: `source`, the predicted class, and `correct`, NaN without a label. NaN where the
    prediction is wrong and there are more than two classes.
    """
    source = numbers["source"]
    other = 1 - source if len(classes) == 2 else np.full_like(source, np.nan)
    return np.where(numbers["correct"] == 0, other, source)
