"""Feature interaction (Yang et al. 2021, 4.6.1): the attributes that a method moved together with
the image, for one row and for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.strict import UserError
from pipelines.engine.committed import generated, load_plan
from storage.commit import read_committed
from storage.uri import Store

Array = NDArray[np.float64]
TOLD = ("id", "k", "target", "flipped")
COLUMNS = [*TOLD, "condition_before", "condition_after"]
FAR = 0.1  # share of an attribute's range, which is 0 to 1


def interaction(store: Store, row: str | None = None) -> str:
    """Return a page of text on how far each attribute of the flipped rows moved.

    It has one part for each target class, with the farthest attribute first. row: shows only the
    answers to that row. UserError where the run's method moves no attributes, or where there is no
    such row.
    """
    config = load_plan(store).config
    names, classes = attribute_names(config), config["models"]["classifier"]["classes"]
    found = [record for record in iterate_moved(store) if row is None or record["id"] == row]
    if not found:
        what = "rows" if row is None else f"a row {row!r} among those"
        raise UserError(
            f"{store.uri}: expected {what} whose attributes a method moved (AIP does), got none"
        )
    ways = np.array([record["way"] for record in found])
    if ways.shape[1] != len(names):
        raise UserError(
            f"{store.uri}: expected {len(names)} attributes in every row, got {ways.shape[1]}"
        )
    several = any(record["k"] for record in found)
    if row is not None:
        lines = []
        for record, way in zip(found, ways, strict=True):
            which = f", answer {record['k']}" if several else ""
            verdict = "flipped" if record["flipped"] else "not flipped"
            lines.append(f"{row}{which}: {verdict}, from what it was to what it became")
            lines += [
                f"  {names[place]:24s} {way[place]:+.3f}"
                for place in np.argsort(-np.abs(way), kind="stable")
            ]
        return "\n".join(lines)
    flipped = np.array([record["flipped"] for record in found])
    targets = np.array([record["target"] for record in found])
    what = "answers" if several else "rows"
    lines = [f"{store.uri}: {flipped.sum()} flipped of {len(found)} {what}"]
    for target in np.unique(targets[flipped]):
        of = ways[flipped & (targets == target)]
        name = classes[target] if target < len(classes) else f"class {target}"
        lines += [
            f"to {name}, {len(of)} {what}",
            f"  {'attribute':24s} {'mean way':>9s} {'mean length':>12s} {f'moved > {FAR:g}':>12s}",
        ]
        for place in np.argsort(-np.abs(of).mean(0), kind="stable"):
            way, far = of[:, place], (np.abs(of[:, place]) > FAR).mean()
            lines.append(
                f"  {names[place]:24s} {way.mean():+9.3f} {np.abs(way).mean():12.3f} {far:12.1%}"
            )
    return "\n".join(lines)


def iterate_moved(store: Store) -> Iterator[dict[str, Any]]:
    """Return the answers whose attributes were moved.

    Each has id, k, target, flipped, and `way` (A,): the attributes after minus before.
    """
    for commit in generated(store):
        for record in read_committed(store, commit, columns=COLUMNS).to_pylist():
            # runs older than this column do not have it
            if record.get("condition_after") is not None:
                way = np.subtract(record["condition_after"], record["condition_before"])
                yield {**{name: record[name] for name in TOLD}, "way": way}


def attribute_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the attributes that the run's AttGAN reads.

    UserError where the run has no model of the role attgan.
    """
    for spec in config["models"].values():
        if spec["role"] == "attgan":
            return list(spec["classes"])
    raise UserError("models: expected one of role attgan, whose attributes are moved, got none")
