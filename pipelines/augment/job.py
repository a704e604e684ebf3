"""A training set of counterfactuals: the flipped rows that pass the gates, balanced over
classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.augment.answers import ALIKE, BEYOND, reader, select_apart
from pipelines.augment.calibration import compare, warnings_of, write_calibration
from pipelines.augment.card import card, set_name, summary
from pipelines.augment.croissant import croissant
from pipelines.augment.exports import write_folder, write_webdataset
from pipelines.augment.gates import check_gates, gates_of
from pipelines.augment.judged import JUDGED, Judged, read_judged
from pipelines.augment.labels import Labels, labels_of
from pipelines.augment.leaks import NEAR_COPY, SAME_ID, SAME_PIXELS, read_held_out
from pipelines.augment.parts import Parts, schema_of
from pipelines.augment.reviewed import read_reviewed
from pipelines.augment.together import LabelsByAttributes
from pipelines.engine.committed import class_names, generated, made_shards, scored_stage
from pipelines.judge.job import SCORES as JUDGE_SCORES
from storage.commit import commit_path, read_commit, read_committed, revisions
from storage.uri import Store

CARD, COUNTS = "augment/README.md", "augment/counts.json"
CROISSANT = "augment/croissant.json"
COPIED = ("source", "target", "label", "flipped", "split")
ATTRIBUTES = ("attributes_before", "attributes_after")
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


class Opinions(NamedTuple):
    """What a judge and reviewers said of the rows; reviewed: verdicts by cf_id."""

    judged: Judged
    reviewed: dict[str, str | None]


def augment(store: Store, config: RunConfig) -> dict[str, Any]:
    """Write augment/data/part-00000.parquet and further parts, the further formats of
    augment.formats, counts.json, croissant.json and a card.

    Returns the counts and `summary`, a sentence. Works in two passes: one over columns to count and
    select, one over the images of the selected rows. Needs the scores. The same run and settings
    result in the same rows. Empties further parts of an earlier, larger set.
    """
    calibration = compare(store, config) if store.exists(JUDGE_SCORES) else None
    check_gates(store, config, calibration)
    settings, shards, stage = config.augment, made_shards(store), scored_stage(store)
    scores = _scores(store, stage, shards)
    names = class_names(store, config)
    opinions = Opinions(
        read_judged(store), read_reviewed(store) if settings.label == "review" else {}
    )
    attributes = _attributes(store, scores)
    labels = labels_of(config, names, attributes)
    by_attribute = LabelsByAttributes(names, attributes, config.score.threshold)
    gates = gates_of(settings, labels)
    held_out = read_held_out(store, config)
    reasons = [*gates, SAME_ID, SAME_PIXELS, NEAR_COPY, ALIKE, BEYOND, UNBALANCED]
    rejected = dict.fromkeys(reasons, 0)
    passed: dict[int, list[Ids]] = {}
    considered = unsplit = originals = 0
    for index in shards:
        through: dict[int, list[bytes]] = {}
        good: list[Row] = []
        for row in _rows(store, scores[index], opinions, labels):
            if row["k"] == 0 and row["split"] in settings.splits:
                for side in ("label", "source"):
                    by_attribute.add(side, row[side], row["attributes_before"])
            considered += 1
            originals += row["k"] == 0
            unsplit += row["split"] is None
            failed = next((name for name, passes in gates.items() if not passes(row)), None)
            if failed:
                rejected[failed] += 1
            else:
                good.append(row)
        images = reader(store, config, index)
        good, leaked = held_out.without_leaks(good, images)
        good, left_out = select_apart(good, images, settings.min_apart, settings.per_row)
        for name, n in (leaked | left_out).items():
            rejected[name] += n
        for row in good:
            through.setdefault(row["assigned"], []).append(row["cf_id"].encode())
        for label, ids in through.items():
            passed.setdefault(label, []).append(np.array(ids))
    found = {label: np.concatenate(parts) for label, parts in passed.items()}
    chosen = pick(found, settings.balance)
    rejected[UNBALANCED] = sum(map(len, found.values())) - sum(map(len, chosen.values()))
    del passed, found
    parts = Parts(store, schema_of(names))
    kept: Counter[str] = Counter()
    for row in _images(store, scores, opinions, labels, chosen):
        kept[names[row["assigned"]]] += 1
        by_attribute.add("after", row["assigned"], row["attributes_after"])
        parts.add(_set_row(row, names, config))
    files = parts.close()
    warnings = [labels.warning] if labels.warning else []
    if labels.rule == "judge" and calibration is not None:
        warnings += warnings_of(calibration)
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
        "label": labels.rule,
        "warnings": warnings,
        "classes": names,
        "attributes": by_attribute.table(),
        "held_out": {"rows": held_out.rows, "unreadable": held_out.unreadable},
    }
    counts["summary"] = summary(counts)
    name = set_name(config, counts)
    counts["formats"] = _export(store, settings.formats, files, name)
    described = {file.removeprefix("augment/"): store.replaced[file] for file in files}
    told = croissant(name, counts["summary"], parts.schema, described)
    store.replace(CROISSANT, json.dumps(told, indent=1).encode())
    store.replace(COUNTS, json.dumps(counts, indent=1).encode())
    if calibration is not None:
        write_calibration(store, calibration)
    store.replace(CARD, card(config, counts).encode(errors="backslashreplace"))
    return counts


def _export(store: Store, formats: Sequence[str], files: list[str], name: str) -> dict[str, str]:
    """Write the further formats; returns the folder of each, from the folder augment/."""
    written = {}
    if "webdataset" in formats:
        write_webdataset(store, files)
        written["webdataset"] = "webdataset"
    if "folder" in formats:
        written["folder"] = write_folder(store, files, name).removeprefix("augment/")
    return written


def pick(passed: dict[int, Ids], balance: bool) -> dict[int, Ids]:
    """Return the cf_ids to keep, by label.

    Returns all where `balance` is false. Else each class keeps as many rows as the smallest class
    has. These are the rows with the smallest cf_id, which is a hash, so the sample is fair and does
    not depend on order.
    """
    if not balance or not passed:
        return {label: np.sort(ids) for label, ids in passed.items()}
    size = min(len(ids) for ids in passed.values())
    return {label: np.sort(ids)[:size] for label, ids in passed.items()}


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


def _attributes(store: Store, scores: dict[int, str]) -> list[str]:
    """Return the names of the oracle's attributes; [] where the run was scored without one."""
    first = read_commit(store, scores[min(scores)])
    return list(first.extra.get("attributes") or [])


def _rows(store: Store, path: str, opinions: Opinions, labels: Labels) -> Iterator[Row]:
    """Return the scored rows of a shard without their images; path: the commit of its scores.

    They have the judge's scores, the means over its answers, the reviewers' verdict and the label.
    """
    commit = read_commit(store, path)
    columns = ["cf_id", "id", "k", *COPIED, *MEASURED, *ATTRIBUTES]
    rows = read_committed(store, commit, columns).to_pylist()
    for row, answers in zip(rows, opinions.judged.of([row["cf_id"] for row in rows]), strict=True):
        means = [None] * len(JUDGED) if answers is None else answers.mean(0).tolist()
        row |= {"answers": answers, **dict(zip(JUDGED, means, strict=True))}
        row["judge"] = None if answers is None else float(answers.mean())
        row["review"] = opinions.reviewed.get(row["cf_id"])
        row["assigned"], row["probabilities"] = labels.of(row)
        yield row


def _images(
    store: Store,
    scores: dict[int, str],
    opinions: Opinions,
    labels: Labels,
    chosen: dict[int, Ids],
) -> Iterator[Row]:
    """Return the chosen rows with their images, in the order of shards.

    Does not read the images of shards without a chosen row.
    """
    last = {label: ids[-1].decode() for label, ids in chosen.items() if len(ids)}
    for commit in generated(store):
        rows = [
            row
            for row in _rows(store, scores[commit.shard.index], opinions, labels)
            if row["cf_id"] <= last.get(row["assigned"], "")
            and _among(row["cf_id"], chosen[row["assigned"]])
        ]
        if not rows:
            continue
        table = read_committed(store, commit, ["cf_id", "method", "original", "counterfactual"])
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
    """Return a row of the set."""
    return {
        "id": row["cf_id"],
        "image": {"bytes": row["counterfactual"]["bytes"], "path": f"{row['cf_id']}.png"},
        "original": {
            "bytes": row["original"]["bytes"],
            "path": f"{row['cf_id']}.original.png",
        },
        "label": row["assigned"],
        "label_name": names[row["assigned"]],
        "probabilities": row["probabilities"],
        "source_id": row["id"],
        "k": row["k"],
        "method": row["method"],
        "run": config.name,
        "split": row["split"],
        "source": names[row["source"]],
        "target": names[row["target"]],
        "original_label": None if row["label"] is None else names[row["label"]],
        **{name: row[name] for name in (*MEASURED, "judge", *JUDGED)},
    }
