"""A training set of counterfactuals: the flipped rows that pass the gates, balanced over
classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import AugmentConfig, RunConfig
from configs.strict import UserError
from pipelines.augment.answers import ALIKE, BEYOND, reader, select_apart
from pipelines.augment.card import card, summary
from pipelines.augment.judged import Judged, read_judged
from pipelines.augment.parts import Parts, schema_of
from pipelines.engine.committed import class_names, generated, made_shards, scored_stage
from pipelines.judge.job import SCORES as JUDGE_SCORES
from storage.commit import commit_path, read_commit, read_committed, revisions
from storage.uri import Store

CARD, COUNTS = "augment/README.md", "augment/counts.json"
COPIED = ("source", "target", "label", "flipped", "split")
MEASURED = (
    "p_target",
    "cout",
    "l1",
    "l2",
    "sparsity",
    "second_p_target",
    "causal_share",
    "changed_spurious",
)
UNBALANCED = "left out to balance the classes"
Ids = NDArray[np.bytes_]
Row = dict[str, Any]


def augment(store: Store, config: RunConfig) -> dict[str, Any]:
    """Write augment/data/part-00000.parquet and further parts, counts.json and a card.

    Returns the counts and `summary`, a sentence. Works in two passes: one over columns to count and
    select, one over the images of the selected rows. Needs the scores. The same run and settings
    result in the same rows. Empties further parts of an earlier, larger set.
    """
    _check_gates(store, config)
    settings, shards, stage = config.augment, made_shards(store), scored_stage(store)
    scores = _scores(store, stage, shards)
    names, judged = class_names(store, config), read_judged(store)
    gates = gates_of(settings)
    rejected = dict.fromkeys([*gates, ALIKE, BEYOND, UNBALANCED], 0)
    passed: dict[int, list[Ids]] = {}
    considered = unsplit = originals = 0
    for index in shards:
        through: dict[int, list[bytes]] = {}
        good: list[Row] = []
        for row in _rows(store, scores[index], judged):
            considered += 1
            originals += row["k"] == 0
            unsplit += row["split"] is None
            failed = next((name for name, passes in gates.items() if not passes(row)), None)
            if failed:
                rejected[failed] += 1
            else:
                good.append(row)
        good, left_out = select_apart(
            good, reader(store, config, index), settings.min_apart, settings.per_row
        )
        for name, n in left_out.items():
            rejected[name] += n
        for row in good:
            through.setdefault(row["target"], []).append(row["cf_id"].encode())
        for target, ids in through.items():
            passed.setdefault(target, []).append(np.array(ids))
    found = {target: np.concatenate(parts) for target, parts in passed.items()}
    chosen = pick(found, settings.balance)
    rejected[UNBALANCED] = sum(map(len, found.values())) - sum(map(len, chosen.values()))
    del passed, found
    parts = Parts(store, schema_of(names))
    kept: Counter[str] = Counter()
    for row in _images(store, scores, judged, chosen):
        label = row["target"] if settings.label == "target" else row["label"]
        kept[names[label]] += 1
        parts.add({**_set_row(row, names, config), "label": label, "label_name": names[label]})
    files = parts.close()
    counts: dict[str, Any] = {
        "considered": considered,
        "originals": originals,
        "without_split": unsplit,
        "kept": sum(kept.values()),
        "per_class": dict(sorted(kept.items())),
        "rejected": {gate: n for gate, n in rejected.items() if n},
        "files": files,
        "digest": parts.digest.hexdigest(),
        "settings": settings.model_dump(),
        "classes": names,
    }
    counts["summary"] = summary(counts)
    store.replace(COUNTS, json.dumps(counts, indent=1).encode())
    store.replace(CARD, card(config, counts).encode(errors="backslashreplace"))
    return counts


def gates_of(settings: AugmentConfig) -> dict[str, Callable[[Row], bool]]:
    """Return the conditions that a row must pass, in the order in which they are checked.

    The key is the name under which a rejection is counted. Where a gate is set, a row without a
    value for it fails.
    """

    def at_least(column: str, limit: float) -> Callable[[Row], bool]:
        return lambda row: row[column] is not None and row[column] >= limit

    def at_most(column: str, limit: float) -> Callable[[Row], bool]:
        return lambda row: row[column] is not None and row[column] <= limit

    gates: dict[str, Callable[[Row], bool]] = {
        "not flipped": lambda row: bool(row["flipped"]),
        f"not in split {' or '.join(settings.splits)}": lambda row: row["split"] in settings.splits,
    }
    if settings.label == "original":
        gates["without a label"] = lambda row: row["label"] is not None
    limits = (
        ("min_target", "p_target", settings.min_target, at_least),
        ("max_l1", "l1", settings.max_l1, at_most),
        ("min_cout", "cout", settings.min_cout, at_least),
        ("max_other_attributes", "changed_spurious", settings.max_other_attributes, at_most),
        ("min_judge", "judge", settings.min_judge, at_least),
    )
    for name, column, limit, gate in limits:
        if limit is not None:
            gates[f"outside {name} {limit:g}"] = gate(column, limit)
    return gates


def pick(passed: dict[int, Ids], balance: bool) -> dict[int, Ids]:
    """Return the cf_ids to keep, by target class.

    Returns all where `balance` is false. Else each class keeps as many rows as the smallest class
    has. These are the rows with the smallest cf_id, which is a hash, so the sample is fair and does
    not depend on order.
    """
    if not balance or not passed:
        return {target: np.sort(ids) for target, ids in passed.items()}
    size = min(len(ids) for ids in passed.values())
    return {target: np.sort(ids)[:size] for target, ids in passed.items()}


def _scores(store: Store, stage: str, shards: list[int]) -> dict[int, str]:
    """Return the path of the commit of each shard's scores; UserError where a shard is not
    scored.
    """
    scored = revisions(store, stage)
    for index in shards:
        if index not in scored:
            raise UserError(
                f"expected scores of shard {index}, got none: run the score stage to its end first"
            )
    return {index: commit_path(stage, index, scored[index]) for index in shards}


def _rows(store: Store, path: str, judged: Judged) -> Iterator[dict[str, Any]]:
    """Return the scored rows of a shard without their images; path: the commit of its scores."""
    commit = read_commit(store, path)
    rows = read_committed(store, commit, ["cf_id", "id", "k", *COPIED, *MEASURED]).to_pylist()
    for row, judge in zip(rows, judged.of([row["cf_id"] for row in rows]), strict=True):
        yield {**row, "judge": judge}


def _images(
    store: Store, scores: dict[int, str], judged: Judged, chosen: dict[int, Ids]
) -> Iterator[dict[str, Any]]:
    """Return the chosen rows with their images, in the order of shards.

    Does not read the images of shards without a chosen row.
    """
    last = {target: ids[-1].decode() for target, ids in chosen.items() if len(ids)}
    for commit in generated(store):
        rows = [
            row
            for row in _rows(store, scores[commit.shard.index], judged)
            if row["cf_id"] <= last.get(row["target"], "")
            and _among(row["cf_id"], chosen[row["target"]])
        ]
        if not rows:
            continue
        table = read_committed(store, commit, ["cf_id", "method", "counterfactual"])
        place = {name: i for i, name in enumerate(table["cf_id"].to_pylist())}
        found = table.take(pa.array([place[row["cf_id"]] for row in rows]))
        for row, images in zip(rows, _pieces(found), strict=True):
            yield {**row, **images}


def _pieces(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Return a table's rows; few of them are Python objects at one time."""
    for batch in table.to_batches(max_chunksize=64):
        yield from batch.to_pylist()


def _among(name: str, ids: Ids) -> bool:
    at = int(np.searchsorted(ids, name.encode()))
    return at < len(ids) and bool(ids[at] == name.encode())


def _set_row(row: dict[str, Any], names: list[str], config: RunConfig) -> dict[str, Any]:
    """Return a row of the set without its label."""
    return {
        "id": row["cf_id"],
        "image": {"bytes": row["counterfactual"]["bytes"], "path": f"{row['cf_id']}.png"},
        "source_id": row["id"],
        "k": row["k"],
        "method": row["method"],
        "run": config.name,
        "split": row["split"],
        "source": names[row["source"]],
        "target": names[row["target"]],
        "original_label": None if row["label"] is None else names[row["label"]],
        **{name: row[name] for name in (*MEASURED, "judge")},
    }


def _check_gates(store: Store, config: RunConfig) -> None:
    """Raise UserError where a gate is set that this run cannot measure on any row."""
    if config.augment.max_other_attributes is not None and not (
        config.score.causal and "oracle" in config.models
    ):
        raise UserError(
            "augment.max_other_attributes: expected an oracle in models and score.causal, got none"
        )
    if config.augment.min_judge is not None and not store.exists(JUDGE_SCORES):
        raise UserError(
            "augment.min_judge: expected the judge's answers, got none: parse them by `judge"
            " --answers` first"
        )
