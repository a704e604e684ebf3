"""The score stage: scores a run's counterfactuals, and sums the scores to a table with
intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from actors.pinned.load import pin
from actors.score import Score, causal_columns
from actors.worker import Job
from configs.schema import RunConfig, fingerprint
from counterfactory.metrics import table
from counterfactory.metrics.catalogue import METRIC
from counterfactory.metrics.estimate import SUBSETS
from counterfactory.metrics.means import bootstrap_weights
from pipelines.engine.committed import INTERVENED, TABLE, load_plan, made_shards
from pipelines.engine.fingerprints import settings_of, worker_config
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.runner import run_stage
from pipelines.engine.tables import to_csv
from pipelines.judge.job import SCORES as JUDGE_SCORES
from pipelines.score.columns import floats
from pipelines.score.flops import count_tflops
from pipelines.score.measures import (
    ASKED,
    defining_attributes,
    metric_versions,
    query_of,
    row_measures,
    scoring_models,
    set_measures,
)
from pipelines.score.set_figures import add_set_figures
from pipelines.score.sums import sum_up
from pipelines.score.table import COLUMNS, build_line, build_table
from storage.commit import iterate_commits, todo
from storage.products import read_batches
from storage.records import Line, Shard
from storage.seal import read_sealed, sealed
from storage.uri import Store

TABLE_CSV = "score/table.csv"
# Settings that a row's scores depend on; the others control how rows are summed.
OF_ROWS = ("causal", "query", "cout", "cout_steps", "cout_tolerance", "threshold", "lpr_tolerance")


def score(
    store: Store, config: RunConfig, run_stage: Callable[..., Any] = run_stage, part: Part = WHOLE
) -> dict[str, Any]:
    """Score the generated shards of `part` that have no scores, then write score/table.json and
    .csv; return the table.

    Always sums the table again, with the judge's answers where there are any. So a second call is
    cheap.
    """
    stage, left, settings = work_left(store, config, part)
    run_stage(store, config, stage=stage, actor=Score, shards=left, settings=settings)
    measures = row_measures(config)
    sums, answers = sum_up(store, iterate_commits(store, stage), measures, config)
    told = build_table(sums, answers, measures, config.score.causal, defining_attributes(config))
    add_set_figures(told, sums, config, set_measures(config), count_tflops(store, config))
    judged = judge_figures(store, config)
    told["metrics"] += judged["metrics"]
    told["subsets"] += judged["subsets"]
    placed = intervention_figures(store, config, sums.rows)
    told["metrics"] += placed["metrics"]
    told["subsets"] += placed["subsets"]
    told["audit"] = placed["audit"] or told["audit"]
    result = {
        "stage": stage,
        "versions": metric_versions(config),
        "rows": sums.rows,
        "answers": answers.to_json(),
        "shards": {"scored": sums.shards, "planned": len(load_plan(store).shards)},
        **told,
        **{part: [line.to_json() for line in told[part]] for part in ("metrics", "subsets")},
    }
    store.replace(TABLE, sealed(result))
    store.replace(TABLE_CSV, to_csv(COLUMNS, (line.to_json() for line in told["metrics"])))
    return result


def work_left(
    store: Store, config: RunConfig, part: Part = WHOLE
) -> tuple[str, list[Shard], tuple[RunConfig, Job]]:
    """Return the stage's name, its shards that are generated but not scored, and the settings of
    its workers.
    """
    plan, made = load_plan(store), set(made_shards(store))
    oracle = config.models.get("oracle")
    if oracle is None or oracle.classes:
        causal_columns(oracle.classes if oracle else (), config.score.causal)
        query_of(config, list(oracle.classes) if oracle else [])
    digests = pin({name: config.models[name].model_dump() for name in scoring_models(config)})
    stage = stage_name(config, digests)
    left = part.of([shard for shard in todo(plan, store, stage) if shard.index in made])
    return stage, left, worker_config(config, digests)


def stage_name(config: RunConfig, digests: dict[str, str]) -> str:
    """Return score-<fingerprint>. The fingerprint covers what a row's scores depend on: the
    metrics' versions, settings and models. How scores are summed or batched does not count.
    """
    models = {
        name: [
            digest,
            settings_of(config.models[name], {"preset", "weights", "sha256", "label"}),
        ]
        for name, digest in digests.items()
    }
    settings = config.score.model_dump(include=set(OF_ROWS))
    versions = {
        name: version for name, version in metric_versions(config).items() if METRIC[name].function
    }
    parts = {"versions": versions, "settings": settings, "models": models}
    return f"score-{fingerprint(parts)}"


def intervention_figures(store: Store, config: RunConfig, rows: int) -> dict[str, Any]:
    """Return the figures of interventions/table.json, and the verdict that rests on it.

    No lines and no verdict where there is no such table, or where it was made with other models or
    for other counterfactuals than the `rows` that the run has now.
    """
    nothing: dict[str, Any] = {"metrics": [], "subsets": [], "audit": None}
    if not store.exists(INTERVENED):
        return nothing
    found = read_sealed(store, INTERVENED)
    now = pin({name: config.models[name].model_dump() for name in ASKED if name in config.models})
    if found["models"] != now or found["rows"] != rows:
        return nothing
    lines = {
        part: [Line.from_json(line) for line in found[part]] for part in ("metrics", "subsets")
    }
    return {**lines, "audit": found["audit"]}


def judge_figures(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return the judge's figures from judge/scores.parquet; no lines where that file does not
    exist.
    """
    if not store.exists(JUDGE_SCORES):
        return {"metrics": [], "subsets": []}
    figures = METRIC["judge"].figures
    sums = table.zero(figures, config.score.bootstrap)
    missing = unparsable = 0
    names = ["correct", "flipped", *(m.column for m in figures)]
    for batch in read_batches(store, JUDGE_SCORES, ["id", "error", *names]):
        rows = pa.Table.from_batches([batch])
        numbers = {name: floats(rows[name]) for name in names}
        weights = bootstrap_weights(rows["id"].to_pylist(), config.score.bootstrap)
        sums = table.add(sums, table.update(figures, numbers, weights))
        errors = [error for error in rows["error"].to_pylist() if error is not None]
        missing += errors.count("no answer")
        unparsable += len(errors) - errors.count("no answer")
    note = f"{unparsable} unparsable, {missing} without an answer" if unparsable or missing else ""
    return {
        "metrics": [
            build_line(m, m.subset, table.compute(sums, m, m.subset), note) for m in figures
        ],
        "subsets": [
            build_line(m, s, table.compute(sums, m, s), note) for m in figures for s in SUBSETS
        ],
    }
