"""How often an audit raises a false alarm, and how often it notices what changed, simulated on real
flips.

Both drawn-face classifiers answer the same faces once (the pool). An audit's rows are then drawn
from the pool with replacement, so that two audits of one classifier differ by chance alone:

    null        reference and audit of faces-plain: every alarm is false
    swap        the audit's answers are those of faces-biased, which reads hair
    20 %, 10 %  that share of the audit's rows is answered by faces-biased

    python benchmarks/audit.py --pool runs/audit-pool

The pool takes an hour on two free CPUs, the simulation ten minutes. What is in the folder is used.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import RunConfig, load_run
from counterfactory.interventions.core import switches_of
from counterfactory.interventions.switches import KINDS
from counterfactory.metrics import effects
from counterfactory.metrics.alarms import alpha_of
from counterfactory.metrics.effects import GROUPS
from counterfactory.metrics.rates import wilson
from pipelines.audit.compare import Comparison, compare
from pipelines.audit.effects import OF_EFFECTS, Effects
from pipelines.audit.measure import OF_SCORE, Answers, Measured, read_stage, to_answers
from pipelines.engine.committed import intervened_stage, scored_stage
from pipelines.engine.part import Part
from pipelines.generate.plan import open_run
from pipelines.interventions.job import region_names
from pipelines.prepare.job import prepare_faces
from pipelines.run import run
from pipelines.score.columns import vectors
from storage.products import MANIFEST
from storage.uri import open_store

CLASSIFIERS = ("faces-plain", "faces-biased")
ROWS = (100, 400)
LEVELS = {"0.01": 0.01, "5 % a year, 52 audits": alpha_of(0.05, 52)}
LEAST = 0.1
CASES = {"null": 0.0, "swap": 1.0, "20 % gone bad": 0.2, "10 % gone bad": 0.1}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Pool:
    """The answers of one classifier. effects: arrays over rows; there: rows that have them."""

    answers: Answers
    effects: Arrays
    there: NDArray[np.int64]
    regions: tuple[str, ...]
    grid: tuple[int, int]


def make_pool(folder: Path, classifier: str, rows: int) -> Pool:
    """Return a classifier's answers to the same faces; makes them where they are missing."""
    data = folder / "data"
    if not list(data.glob("*.parquet")):
        prepare_faces(str(data), rows=64, test_rows=1600, masks=True)
    sets = [
        *(f"data.path={data}", "data.mask=mask", "data.rows=64:1664", f"out={folder}/runs"),
        *(f"name={classifier.removeprefix('faces-')}", f"models.classifier={classifier}"),
        *("method=counterfactual-attack-demo", "engine.shard_rows=64", "engine.kind=local"),
        *("score.bootstrap=100", "interventions.control=0"),
    ]
    config = load_run("demo-plain", sets)
    models = {name: config.models[name] for name in ("classifier", "autoencoder", "oracle")}
    config = config.model_copy(update={"models": models})
    store = open_run(config)
    if not store.exists(MANIFEST):
        run(config, stages=("generate", "interventions", "score"), store=store, part=Part(rows))
    return read_pool(str(store.uri), config)


def read_pool(uri: str, config: RunConfig) -> Pool:
    """Return the answers of a run that was scored and measured."""
    store = open_store(uri)
    scores = read_stage(store, scored_stage(store), OF_SCORE)
    table = read_stage(store, intervened_stage(store), OF_EFFECTS)
    oracle = list(config.models["oracle"].classes)
    answers = to_answers(
        scores,
        config.models["classifier"].classes,
        oracle,
        config.score.threshold,
        groups=[""] * scores.num_rows,
        weights=np.ones(scores.num_rows),
    )
    kept = table.filter(table["log_odds"].is_valid())
    place = {name: at for at, name in enumerate(scores["id"].to_pylist())}
    found = np.full(scores.num_rows, -1)
    found[[place[name] for name in kept["id"].to_pylist()]] = np.arange(kept.num_rows)
    regions = region_names(config)
    return Pool(answers, effect_arrays(kept, len(regions)), found, regions, (8, 8))


def effect_arrays(table: pa.Table, regions: int) -> Arrays:
    """Return the experiment of each flipped row as arrays."""
    changed = vectors(table["changed"])
    on = np.stack([switches_of(row, changed.shape[1]) for row in table["mixtures"].to_pylist()])
    ends = np.stack([vectors(table[f"log_odds_{when}"])[:, :1] for when in ("before", "after")], 1)
    return {
        "on": on,
        "outcomes": vectors(table["log_odds"]).reshape(len(on), on.shape[1], -1)[..., :1],
        "ends": ends,
        "changed": changed,
        "places": vectors(table["places"]).reshape(len(on), changed.shape[1], regions),
        "kinds": vectors(table["kinds"]),
    }


def draw(pools: tuple[Pool, Pool], bad: float, rows: int, rng: np.random.Generator) -> Measured:
    """Return what an audit of `rows` rows measures; bad: the share that the second pool answers.

    Drawn with replacement, each drawn row with a bootstrap group of its own, as other rows have.
    """
    others = round(bad * rows)
    chosen = [
        rng.integers(0, len(pool.answers), count)
        for pool, count in zip(pools, (rows - others, others), strict=True)
    ]
    parts = [pool.answers for pool in pools]
    answers = Answers(
        [part.classes[at] for part, own in zip(parts, chosen, strict=True) for at in own],
        [""] * rows,
        np.concatenate([part.flipped[own] for part, own in zip(parts, chosen, strict=True)]),
        np.concatenate([part.distance[own] for part, own in zip(parts, chosen, strict=True)]),
        parts[0].attributes,
        np.concatenate([part.changed[own] for part, own in zip(parts, chosen, strict=True)]),
        np.ones(rows),
    )
    where = [pool.there[own] for pool, own in zip(pools, chosen, strict=True)]
    where = [own[own >= 0] for own in where]
    held = {
        name: np.concatenate(
            [pool.effects[name][own] for pool, own in zip(pools, where, strict=True)]
        )
        for name in pools[0].effects
    }
    groups = rng.integers(0, GROUPS, len(held["on"]))
    kinds = np.zeros((GROUPS, len(KINDS)))
    np.add.at(kinds, groups, held.pop("kinds"))
    sums = effects.update(
        held["on"], held["outcomes"], held["ends"], groups, held["changed"], held["places"]
    )
    return Measured(answers, Effects(sums, kinds, pools[0].regions, pools[0].grid, len(groups)))


def alarms_at(tests: list[Comparison], level: float) -> list[str]:
    """Return the kinds of the tests that raise an alarm at a level."""
    return [
        test.kind
        for test in tests
        if test.adjusted is not None
        and test.adjusted <= level
        and (test.kind == "distance" or abs(test.difference or 0.0) > LEAST)
    ]


def simulate(pools: tuple[Pool, Pool], case: str, rows: int, audits: int) -> dict[str, Any]:
    """Return the share of audits with an alarm, by level, and what raised it."""
    raised = {
        name: [0, dict.fromkeys(("attribute", "place", "kind", "distance"), 0)] for name in LEVELS
    }
    tests = 0
    for seed in range(audits):
        rng = np.random.default_rng([seed, rows, sorted(CASES).index(case)])
        reference = draw(pools, 0.0, rows, rng)
        found = compare(draw(pools, CASES[case], rows, rng), reference, 0.01, LEAST)
        tests = sum(test.p is not None for test in found)
        for name, level in LEVELS.items():
            kinds = set(alarms_at(found, level))
            raised[name][0] += bool(kinds)
            for kind in kinds & raised[name][1].keys():
                raised[name][1][kind] += 1
    return {
        "case": case,
        "rows": rows,
        "audits": audits,
        "tests": tests,
        "alarms": {name: count for name, (count, _) in raised.items()},
        "by": {name: by for name, (_, by) in raised.items()},
    }


def page(found: list[dict[str, Any]]) -> str:
    """Return the committed page; found: the results of every case."""
    plain, biased = found[0]["pool"]
    lines = [
        f"Pool: {plain} rows answered by `faces-plain` and {biased} by `faces-biased`,"
        f" `counterfactual-attack-demo`, {found[0]['tests']} tests in an audit.",
        "",
        "| case | rows | audits | alarms at 0.01 | alarms at 5 % a year, 52 audits |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        cells = []
        for name in LEVELS:
            count, audits = one["alarms"][name], one["audits"]
            low, high = wilson(count, audits)
            kinds = [f"{kind} {n}" for kind, n in one["by"][name].items() if n]
            by = f" ({', '.join(kinds)})" if kinds else ""
            cells.append(f"{100 * count / audits:.1f} % [{100 * low:.1f}, {100 * high:.1f}]{by}")
        lines.append(f"| {one['case']} | {one['rows']} | {one['audits']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pool", type=Path, default=Path("runs/audit-pool"))
    parser.add_argument("--rows", type=int, default=512, help="rows that each classifier answers")
    parser.add_argument("--audits", type=int, default=1000, help="null audits of each size")
    parser.add_argument("--changed", type=int, default=300, help="audits of each other case")
    args = parser.parse_args()
    plain, biased = (make_pool(args.pool, name, args.rows) for name in CLASSIFIERS)
    sizes = [len(plain.answers), len(biased.answers)]
    results = args.pool / "results"
    results.mkdir(parents=True, exist_ok=True)
    found = []
    for case in CASES:
        for rows in ROWS:
            audits = args.audits if case == "null" else args.changed
            path = results / f"{case.replace(' ', '-')}-{rows}-{audits}.json"
            if not path.exists():
                done = {**simulate((plain, biased), case, rows, audits), "pool": sizes}
                path.write_text(json.dumps(done))
            found.append(json.loads(path.read_text()))
            print(json.dumps(found[-1]), flush=True)
    print(page(found))


if __name__ == "__main__":
    main()
