"""Interventions of a made-up run: a committed stage and its table, as the job writes them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.codec import decode, encode
from storage.commit import commit_shard, iterate_commits, read_committed
from storage.run import read_plan, write_plan
from storage.schema import INTERVENTIONS
from storage.uri import Store, open_store

STAGE, SIZE, CELLS = "interventions-3c4d", 64, 8
EFFECT = 6.2  # log-odds that a row's whole change adds
NONE = {"value": None, "low": None, "high": None, "n": 0}


def span(value: float, half: float = 0.05, n: int = 20) -> dict[str, Any]:
    """A figure with its interval."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def effect_map(best: tuple[int, ...], held: float = 0.8, seed: int = 0) -> dict[str, Any]:
    """A map whose cells `best` hold that share together; one cell works against the flip."""
    shares = np.random.default_rng(seed).normal(0, 0.004, CELLS**2)
    shares[list(best)] = held / len(best)
    shares[0] = -0.03
    shares += (1 - shares.sum()) / CELLS**2
    changed = np.random.default_rng(seed + 1).random(CELLS**2) + 0.2
    changed /= changed.sum()
    return {
        "n": 20,
        "effect": EFFECT,
        "map": shares.tolist(),
        "low": (shares - 0.02).tolist(),
        "high": (shares + 0.02).tolist(),
        "changed": changed.tolist(),
        "concentration": span(held),
        "changed_concentration": 0.19,
        "spread": False,
    }


def prove(store: Store, best: tuple[int, ...] = (51, 52), **over: Any) -> dict[str, Any]:
    """Commit the stage for all generated shards of a run, and write its table; over: keys that the
    table has instead.
    """
    classes = read_plan(store).config["models"]["classifier"]["classes"]
    sums: dict[tuple[int, int], list[NDArray[Any]]] = {}
    total = measured = 0
    for commit in iterate_commits(store, "generate"):
        rows = read_committed(store, commit).to_pylist()
        found = [_row(row, best) for row in rows]
        total += len(rows)
        for row in rows:
            if row["flipped"]:
                measured += 1
                pair = np.stack([_pixels(row[key]) for key in ("original", "counterfactual")])
                sums.setdefault((row["source"], row["target"]), []).append(pair)
        commit_shard(
            store,
            STAGE,
            commit.shard,
            pa.Table.from_pylist(found, schema=INTERVENTIONS),
            rows_in=len({row["id"] for row in rows}),
            rows_out=len({row["id"] for row in rows}),
            quarantined=[],
            seconds=1.0,
            extra={},
        )
    directions = []
    for place, ((source, target), pairs) in enumerate(sorted(sums.items())):
        before, after = (encode(mean) for mean in np.mean(pairs, 0).astype(np.uint8))
        directions.append(
            {
                **effect_map(best, seed=place),
                "n": len(pairs),
                "source": classes[source],
                "target": classes[target],
                "before": base64.b64encode(before).decode(),
                "after": base64.b64encode(after).decode(),
            }
        )
    table = {
        "stage": STAGE,
        "rows": total,
        "n": measured,
        "shards": {"done": 3, "planned": 3},
        "grid": [CELLS, CELLS],
        "size": [SIZE, SIZE],
        "models": {"classifier": "ab" * 32, "oracle": "cd" * 32},
        "whole": effect_map(best),
        "directions": directions,
        "control": {"n": 12, "concentration": span(0.22), "similarity": span(0.1)},
        "kinds": {"colour": span(0.05), "coarse": span(0.25), "fine": span(0.70)},
        "kinds_changed": {"colour": 0.21, "coarse": 0.48, "fine": 0.31},
        "places": [
            {"name": "mouth", "share": span(0.83), "changed": 0.07},
            {"name": "hair", "share": span(0.02), "changed": 0.44},
        ],
        "rings": [
            {"name": "border", "share": span(0.03), "changed": 0.33},
            {"name": "left half", "share": span(0.49), "changed": 0.5},
        ],
        "attributes": [
            {"name": "Smiling", "similarity": span(0.97, 0.02), "rate": span(0.98, 0.02)},
            {"name": "Blond_Hair", "similarity": span(0.21), "rate": span(0.36)},
        ],
        "alike": [],
        "core": {
            "n": 20,
            "share": span(0.12),
            "l1": span(0.011, 0.002),
            "full_l1": span(0.051, 0.004),
            "cells": 2,
            "second": {"n": 19, "full": 0.95, "core": 0.9},
        },
        "metrics": [],
        "subsets": [],
        "audit": None,
        **over,
    }
    store.replace("interventions/table.json", json.dumps(table).encode())
    return table


def _row(row: dict[str, Any], best: tuple[int, ...]) -> dict[str, Any]:
    """A row of the stage: its core keeps the cells `best`; a row that did not flip has none."""
    told = {key: row[key] for key in ("id", "cf_id", "k", "source", "target", "flipped")}
    if not row["flipped"]:
        return told
    before, after = (_pixels(row[key]) for key in ("original", "counterfactual"))
    core, cell = before.copy(), SIZE // CELLS
    for place in best:
        top, left = place // CELLS * cell, place % CELLS * cell
        here = (slice(top, top + cell), slice(left, left + cell))
        core[here] = after[here]
    gap = np.abs(after.astype(float) - before).mean(2)
    changed = gap.reshape(CELLS, cell, CELLS, cell).mean((1, 3)).ravel()
    shares = np.full(CELLS**2, 0.1 / CELLS**2)
    shares[list(best)] += 0.9 / len(best)
    return {
        **told,
        "core": {"bytes": encode(core), "path": None},
        "core_cells": list(best),
        "core_share": 0.12,
        "core_l1": float(np.abs(core.astype(float) - before).mean() / 255),
        "core_p_target": 0.91,
        "own_map": (EFFECT * shares).tolist(),
        "changed": (changed / changed.sum()).tolist(),
        "second_full": True,
        "second_core": True,
    }


def _pixels(cell: dict[str, Any]) -> NDArray[np.uint8]:
    return decode(cell["bytes"], size=SIZE, crop=None, max_pixels=SIZE**2)


def with_two_answers(store: Store, folder: Path) -> Store:
    """Copy a run that was only generated, each row with a second answer."""
    twice = open_store(folder)
    write_plan(twice, read_plan(store))
    for commit in iterate_commits(store, "generate"):
        table = read_committed(store, commit)
        again = [{**row, "k": 1, "cf_id": f"{row['cf_id']}-1"} for row in table.to_pylist()]
        commit_shard(
            twice,
            "generate",
            commit.shard,
            pa.concat_tables([table, pa.Table.from_pylist(again, schema=table.schema)]),
            rows_in=commit.rows_in,
            quarantined=commit.quarantined,
            seconds=1.0,
            extra={},
            rows_out=commit.rows_out,
        )
    return twice
