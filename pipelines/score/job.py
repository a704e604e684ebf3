"""Score a run's counterfactuals, and sum the scores to a table with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.pinned.load import pin
from actors.score import Score, causal_columns
from configs.schema import RunConfig, fingerprint
from counterfactory.metrics import attributes, flips, judge, rates, similarity, table
from counterfactory.metrics.estimate import SUBSETS, Measure
from counterfactory.metrics.means import bootstrap_weights
from counterfactory.metrics.rates import RateSums
from pipelines.engine.committed import TABLE, made_shards, plan_of
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.runner import run_stage, worker_config
from pipelines.judge.job import SCORES as JUDGE_SCORES
from pipelines.score.answers import AnswerSums, any_flipped, first_of, rows_of
from pipelines.score.flops import count_tflops
from pipelines.score.measures import query_of, row_measures, scoring_models, set_measures
from pipelines.score.sets import AttributeCorrelations, FeatureSums
from pipelines.score.table import Sums, line, tell, to_csv
from pipelines.score.tell_sets import tell_sets
from storage.commit import iterate_commits, read_committed, todo
from storage.uri import Store

VERSION = 2  # of what the worker computes: a change here scores every run again
TABLE_CSV = "score/table.csv"
# Settings that a row's scores depend on; the others say how rows are summed.
OF_ROWS = ("causal", "query", "cout", "cout_steps", "cout_tolerance", "threshold", "lpr_tolerance")


def score(
    store: Store, config: RunConfig, run_stage: Callable[..., Any] = run_stage, part: Part = WHOLE
) -> dict[str, Any]:
    """Score the generated shards of `part` not scored yet, then write score/table.json and .csv;
    gives the table.

    The table is always summed again, with the judge's answers where there are any, so a second call
    is cheap.
    """
    stage, left, settings = work_left(store, config, part)
    run_stage(store, config, stage=stage, actor=Score, shards=left, settings=settings)
    measures = row_measures(config)
    sums, answers = sum_up(store, iterate_commits(store, stage), measures, config)
    told = tell(sums, answers, measures, config.score.causal)
    tell_sets(told, sums, config, set_measures(config), count_tflops(store, config))
    judged = tell_judge(store, config)
    told["metrics"] += judged["metrics"]
    told["subsets"] += judged["subsets"]
    result = {
        "stage": stage,
        "rows": sums.rows,
        "answers": answers.told(),
        "shards": {"scored": sums.shards, "planned": len(plan_of(store)["shards"])},
        **told,
    }
    store.replace(TABLE, json.dumps(result, indent=1, allow_nan=False).encode())
    store.replace(TABLE_CSV, to_csv(result["metrics"]))
    return result


def work_left(
    store: Store, config: RunConfig, part: Part = WHOLE
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The stage's name, its shards that are generated and not scored yet, and what its workers are
    told.
    """
    plan, made = plan_of(store), set(made_shards(store))
    oracle = config.models.get("oracle")
    if oracle is None or oracle.classes:
        causal_columns(oracle.classes if oracle else (), config.score.causal)
        query_of(config, list(oracle.classes) if oracle else [])
    digests = pin({name: config.models[name].model_dump() for name in scoring_models(config)})
    stage = stage_name(config, digests)
    left = part.of([shard for shard in todo(plan, store, stage) if shard["index"] in made])
    return stage, left, worker_config(config, digests)


def stage_name(config: RunConfig, digests: dict[str, str]) -> str:
    """score-<fingerprint> of what a row's scores depend on: settings and models, not how they are
    summed or batched.
    """
    models = {
        name: [
            digest,
            config.models[name].model_dump(exclude={"preset", "weights", "sha256", "label"}),
        ]
        for name, digest in digests.items()
    }
    settings = config.score.model_dump(include=set(OF_ROWS))
    return f"score-{fingerprint({'version': VERSION, 'settings': settings, 'models': models})}"


def sum_up(
    store: Store, commits: Iterable[dict[str, Any]], measures: list[Measure], config: RunConfig
) -> tuple[Sums, AnswerSums]:
    """Sum the scored shards, one in memory at a time; a row's answers are all in one."""
    sums, answers = Sums(table.zero(measures, config.score.bootstrap)), AnswerSums()
    oracle = "oracle" in config.models
    plain = {
        "id",
        "k",
        "source",
        "target",
        "correct",
        "flipped",
        "p_target",
        *(m.column for m in measures),
    }
    columns = plain - {"confident", "verified", "any_flipped"}
    features = bool(set_measures(config))
    if features:
        sums.features = FeatureSums(config.score.kid_rows)
    columns |= {"lpips_diversity_flipped"} if "lpips_diversity" in columns else set()
    wanted = [*sorted(columns), *(["attributes_before", "attributes_after"] if oracle else [])]
    wanted += ["features_before", "features_after"] if features else []
    for commit in commits:
        shard, said = read_committed(store, commit, wanted), commit["extra"]
        sums.classes, sums.attributes = (
            sums.classes or said["classes"],
            sums.attributes or said["attributes"],
        )
        sums.differs += said["verdict_differs"]
        sums.not_finite.update(said.get("not_finite", {}))
        sums.shards += 1
        # A run that was scored before there was a column goes without it.
        numbers = {
            name: floats(shard[name]) for name in columns - {"id"} if name in shard.column_names
        }
        numbers["confident"] = (numbers["p_target"] > flips.CONFIDENT).astype(np.float64)
        if "fs" in numbers:
            verified = (numbers["fs"] > similarity.VERIFIED).astype(np.float64)
            numbers["verified"] = np.where(np.isnan(numbers["fs"]), np.nan, verified)
        ids = shard["id"].to_pylist()
        mine = rows_of(ids)
        row = np.arange(len(ids)) if mine is None else mine
        numbers["any_flipped"] = any_flipped(numbers["flipped"], row)
        weights = bootstrap_weights(ids, config.score.bootstrap)
        answers.add(ids, numbers, weights)
        sums.figures = table.add(sums.figures, table.update(measures, numbers, weights, mine))
        sums.rows += shard.num_rows
        if sums.features is not None:
            kept = both(shard, "features")
            before, after = (vectors(shard[f"features_{when}"]) for when in ("before", "after"))
            known = {name: numbers[name][kept] for name in ("correct", "flipped")}
            these = [i for i, k in zip(ids, kept, strict=True) if k]
            sums.features.add(these, first_of(row[kept]), before, after, known)
        if oracle and (query := query_of(config, sums.attributes)) is not None:
            before, after = (vectors(shard[f"attributes_{when}"]) for when in ("before", "after"))
            if sums.correlations is None:
                sums.correlations = AttributeCorrelations(query, config.score.threshold)
            kept = both(shard, "attributes")
            known = {name: numbers[name][kept] for name in ("correct", "flipped")}
            sums.correlations.add(before, after, first_of(row[kept]), known, weights[kept])
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
                    whose = None if mine is None else mine[seen & both(shard, "attributes")]
                    found = attributes.update(before, after, config.score.threshold, whose)
                    sums.changed[way] = sums.changed[way] + found if way in sums.changed else found
    return sums, answers


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers or flags as float64, null as NaN."""
    plain = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    return np.asarray(plain.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def both(shard: pa.Table, name: str) -> NDArray[np.bool_]:
    """The rows that have vectors, (B,): the worker leaves those of a row both out where either is
    not finite.
    """
    return np.asarray(shard[f"{name}_after"].is_valid().to_numpy(), dtype=np.bool_)


def vectors(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of equally long lists as (B,A) float64, nulls left out."""
    rows = column.drop_null()
    flat = np.asarray(pc.list_flatten(rows).to_numpy(), dtype=np.float64)
    return flat.reshape(len(rows), -1) if len(rows) else np.zeros((0, 0))


def tell_judge(store: Store, config: RunConfig) -> dict[str, Any]:
    """The judge's figures, from judge/scores.parquet where it was parsed."""
    if not store.exists(JUDGE_SCORES):
        return {"metrics": [], "subsets": []}
    sums = table.zero(judge.MEASURES, config.score.bootstrap)
    missing = unparsable = 0
    with store.parquet(JUDGE_SCORES) as file:
        for batch in file.iter_batches(batch_size=4096):
            rows = pa.Table.from_batches([batch])
            numbers = {
                name: floats(rows[name])
                for name in ("correct", "flipped", "judge", *judge.CRITERIA)
            }
            weights = bootstrap_weights(rows["id"].to_pylist(), config.score.bootstrap)
            sums = table.add(sums, table.update(judge.MEASURES, numbers, weights))
            errors = [error for error in rows["error"].to_pylist() if error is not None]
            missing += errors.count("no answer")
            unparsable += len(errors) - errors.count("no answer")
    note = f"{unparsable} unparsable, {missing} without an answer" if unparsable or missing else ""
    return {
        "metrics": [
            line(m, m.subset, table.compute(sums, m, m.subset), note) for m in judge.MEASURES
        ],
        "subsets": [
            line(m, s, table.compute(sums, m, s), note) for m in judge.MEASURES for s in SUBSETS
        ],
    }
