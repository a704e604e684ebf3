"""The report on made-up runs: complete and partial, hostile strings, several runs, and in a browser."""

import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from configs.schema import RunConfig
from configs.strict import UserError
from metrics.rates import wilson
from pipelines.report import redact, report
from pipelines.report_data import balanced, rank, read_run
from pipelines.report_gallery import choose
from pipelines.report_pictures import amplified, change, data_uri, full_scale, overlay
from sources.faces import ATTRIBUTES, draw, labels
from storage.codec import decode, encode
from storage.commit import commit_shard
from storage.run import versions, write_plan
from storage.schema import COUNTERFACTUALS, SCORES, counterfactual_id
from storage.uri import Store, open_store

CLASSES = ["not smiling", "smiling"]
SHARD = 12
PLANTED = '"><script>document.title="planted"</script><img src=x onerror="document.title=\'planted\'">'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def settings(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    """A resolved config, as plan.json holds it."""
    oracle = {"role": "attributes", "target": "models.networks.SmallCNN", "classes": list(ATTRIBUTES)}
    classifier = {"role": "classifier", "target": "models.networks.SmallCNN", "classes": CLASSES, **more.pop("classifier", {})}
    config = {
        "name": name,
        "data": {"path": str(folder / "data"), "label": "Smiling", "size": 64},
        "models": {"classifier": classifier, "oracle": oracle},
        "method": {"target": "methods.counterfactual_attack.CounterfactualAttack", "settings": {"max_steps": 100, "lr": 0.1}},
        "score": {"causal": ["Smiling"]},
        "out": str(folder),
        **more,
    }
    return RunConfig.model_validate(config).model_dump()


def make_run(
    folder: Path, name: str, *, decides: str = "Smiling", rows: int = 30, scored: bool = True, ids: str = "face-{}", left: int = 0, **more: Any
) -> Store:
    """A run on drawn faces whose counterfactuals change what `decides`: generated, but for `left` shards, and scored."""
    store = open_store(folder / name)
    shards = [
        {"index": i, "file": "faces.parquet", "version": "1", "start": at, "rows": min(SHARD, rows - at), "offset": at}
        for i, at in enumerate(range(0, rows, SHARD))
    ]
    plan = {
        "fingerprint": {"data": "0123456789abcdef", "method": "fedcba9876543210", "target": "00ff00ff00ff00ff", "code": "0.1.0"},
        "shards": shards,
        "rows": rows,
        "config": settings(name, folder, **more),
        "versions": versions(),
        "models": {"classifier": "ab" * 32, "oracle": "cd" * 32},
    }
    write_plan(store, plan)
    number = np.arange(rows)
    bits = labels(1, number)
    changed = bits.copy()
    chance = np.random.default_rng(7)
    column = ATTRIBUTES.index(decides)
    changed[:, column] ^= chance.random(rows) < 0.95
    changed[:, ATTRIBUTES.index("Mouth_Slightly_Open")] ^= chance.random(rows) < 0.12
    before = draw(1, number, attributes=bits)
    noise = chance.normal(0, 3, before.shape)
    after = np.clip(0.9 * draw(1, number, attributes=changed) + 0.1 * before + noise, 0, 255).astype(np.uint8)
    flipped = changed[:, column] != bits[:, column]
    source = bits[:, ATTRIBUTES.index("Smiling")].astype(int)
    reasons = ["the step limit was reached", "the flip was lost in 8 bits", f"stuck {PLANTED}"]
    records, scores = [], []
    for i in range(rows):
        identity, target = ids.format(i), int(1 - source[i])
        p = float(chance.beta(9, 1) * 0.3 + 0.7) if flipped[i] else float(chance.random() * 0.5)
        low = float(chance.beta(1, 14) * 0.5)
        row = {"id": identity, "cf_id": counterfactual_id(identity, name, target, 0), "k": 0, "row": i, "split": "test"}
        row |= {"label": int(bits[i, 0]), "source": int(source[i]), "target": target, "correct": bool(bits[i, 0] == source[i])}
        row |= {"predicted": target if flipped[i] else 1 - target, "flipped": bool(flipped[i])}
        row |= {"reason": None if flipped[i] else reasons[i % 3], "p_source_before": 1 - low, "p_target_before": low}
        row |= {"p_source_after": 1 - p, "p_target_after": p, "steps": int(chance.integers(8, 100)), "forward": 60, "backward": 55}
        row |= {"seconds": 0.12, "method": "methods.counterfactual_attack.CounterfactualAttack", "carried": "{}"}
        row |= {"original": {"bytes": encode(before[i]), "path": None}, "counterfactual": {"bytes": encode(after[i]), "path": None}}
        records.append(row)
        gap = np.abs(before[i].astype(float) - after[i]) / 255
        score = {key: row[key] for key in ("id", "cf_id", "k", "split", "label", "source", "target", "correct", "flipped")}
        score |= {"l1": gap.mean(), "attributes_before": bits[i].astype(float), "attributes_after": changed[i].astype(float)}
        scores.append(score)
    for shard in shards[: len(shards) - left]:
        part = slice(shard["start"], shard["start"] + shard["rows"] - 1)  # the last row of each shard is a bad one
        bad = [{"id": ids.format(part.stop), "reason": "image: truncated PNG" if shard["index"] else f"no image {PLANTED}"}]
        table = pa.Table.from_pylist(records[part], schema=COUNTERFACTUALS)
        commit_shard(store, "generate", shard, table, rows_in=shard["rows"], quarantined=bad, seconds=4.2, extra={})
        if scored:
            table = pa.Table.from_pylist(scores[part], schema=SCORES)
            commit_shard(store, "score-1a2b", shard, table, rows_in=table.num_rows, quarantined=[], seconds=1.0, extra={})
    if scored:
        store.replace("score/table.json", json.dumps(score_table(decides, flipped, bits != changed, scores)).encode())
    return store


def score_table(decides: str, flipped: np.ndarray, changes: np.ndarray, scores: list[dict[str, Any]]) -> dict[str, Any]:
    """score/table.json of the made-up run."""
    n, hits = len(flipped), int(flipped.sum())
    low, high = wilson(hits, n)
    rate = {"metric": "flip_rate", "n": n, "value": hits / n, "low": low, "high": high, "better": "higher", "unit": "", "note": ""}
    l1 = float(np.mean([s["l1"] for s in scores]))
    figures = [("cout", 0.41, 0.05), ("l1", l1, l1 / 9), ("l2", 2 * l1, l1 / 4), ("sparsity", 0.62, 0.03), ("second_agrees", 0.93, 0.03)]
    figures += [("causal_share", 0.9 if decides == "Smiling" else 0.04, 0.03), ("seconds", 0.12, 0.004), ("forward", 60.0, 0.0)]
    metrics = [{**rate, "subset": "correct", "by": None}, {**rate, "subset": "all", "by": None}]
    metrics.append({**rate, "subset": "all", "by": "smiling -> not smiling"})
    for name, value, half in figures:
        subset = {"cout": "correct", "second_agrees": "flipped", "causal_share": "flipped"}.get(name, "all")
        better = "lower" if name in ("l1", "l2", "sparsity", "seconds", "forward") else "higher"
        metrics.append({"metric": name, "subset": subset, "n": n, "value": value, "low": value - half, "high": value + half})
        metrics[-1] |= {"better": better, "unit": "", "note": "", "by": None}
    empty = {"metric": "changed_spurious", "subset": "flipped", "n": 0, "value": None, "low": None, "high": None}
    metrics.append({**empty, "better": "lower", "unit": "", "note": "n = 0", "by": None})
    rates = [int(c) for c in changes[flipped].sum(0)]
    bands = [wilson(c, hits) for c in rates]
    wrong = decides != "Smiling"
    end = ", not Smiling (0 %): the classifier relies on a spurious attribute." if wrong else ", as expected."
    return {
        "stage": "score-1a2b",
        "rows": n,
        "metrics": metrics,
        "attributes": {
            "names": list(ATTRIBUTES),
            "causal": ["Smiling"],
            "n": hits,
            "changed": [c / hits for c in rates],
            "low": [band[0] for band in bands],
            "high": [band[1] for band in bands],
            "mean_change": [0.0] * len(ATTRIBUTES),
        },
        "audit": {
            "depends_on": decides,
            "spurious": wrong,
            "rate": 1.0,
            "runner_up": "Mouth_Slightly_Open",
            "expected": ["Smiling"],
            "verdict": f"Decisions were flipped mostly by changing {decides} (100 % of flips){end}",
        },
        "directions": [],
    }
