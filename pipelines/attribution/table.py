"""Turns sums into global importances as table.json, its CSV and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from configs.strict import UserError
from counterfactory.metrics import importance
from counterfactory.metrics.importance import ImportanceSums
from pipelines.engine.committed import class_name
from storage.commit import iterate_commits, read_committed
from storage.uri import Store

if TYPE_CHECKING:
    from pipelines.attribution.sums import Sums

TABLE_CSV = "attribution/table.csv"
COLUMNS = ("descriptor", "by", "n", "value", "low", "high")


def build_table(
    sums: Sums, names: Sequence[str], continuous: Sequence[str], classes: list[str]
) -> dict[str, Any]:
    """Return the table's parts, computed from sums.

    `global` is signed towards the second class where there are two classes. With more classes, the
    flips have no common sign: `global` is then the mean size, and the directions hold the signs.
    """
    signed = len(classes) == 2
    whole = importance.compute(sums.signed if signed else sums.sizes)
    order = importance.ranked(whole)
    ways = sorted(
        sums.ways.items(), key=lambda item: (item[0] is None, -item[1].n, item[0] or (0, 0))
    )
    return {
        "descriptors": list(names),
        "continuous": list(continuous),
        "rows": sums.rows,
        "n": sums.signed.n,
        "not_finite": sums.not_finite,
        "towards": class_name(classes, 1) if signed else None,
        "order": [names[d] for d in order],
        "clear": importance.clear(whole),
        "global": _lines(sums.signed if signed else sums.sizes, names, order),
        "directions": [
            {
                "source": None if way is None else class_name(classes, way[0]),
                "target": None if way is None else class_name(classes, way[1]),
                "n": part.n,
                "importances": _lines(part, names, order),
            }
            for way, part in ways
        ],
    }


def arrow(direction: Mapping[str, Any]) -> str:
    """Return a direction as text, with the names of its classes."""
    return (
        "other directions"
        if direction["source"] is None
        else f"{direction['source']} -> {direction['target']}"
    )


def summary(table: Mapping[str, Any]) -> str:
    """Return one line on the descriptor that moved farthest and on the next one."""
    told = [
        f"{line['descriptor']} {_figure(line)}"
        for line in table["global"][:2]
        if line["value"] is not None
    ]
    if not told:
        return f"no flipped row of {table['rows']}"
    towards = f", towards {table['towards']}" if table["towards"] else " (sizes)"
    margin = "" if table["clear"] or len(told) < 2 else "; too close to tell which moved farther"
    return (
        f"{told[0]}{', then ' + told[1] if len(told) > 1 else ''}{towards} (n {table['n']}){margin}"
    )


def format_table(table: Mapping[str, Any], top: int) -> Iterator[str]:
    """Return lines with the `top` first descriptors over all flips and for each direction."""
    towards = f"signed towards {table['towards']}" if table["towards"] else "sizes"
    rest = f", {table['not_finite']} not finite" if table["not_finite"] else ""
    yield (
        f"{table['n']} flipped of {table['rows']} rows{rest}, by {table['predictors']} on"
        f" {table['encoder']}"
    )
    yield from _format_lines(f"mean importance, {towards}", table["global"], top)
    for way in table["directions"]:
        lines = sorted(way["importances"], key=lambda line: -abs(line["value"] or 0.0))
        yield from _format_lines(f"{arrow(way)}, {way['n']} rows", lines, top)


def format_row(store: Store, table: Mapping[str, Any], name: str) -> Iterator[str]:
    """Return the importances of one row's counterfactuals as lines, the largest first.

    table: as returned by `attribute`. UserError where there is no such row.
    """
    names, seen = table["descriptors"], False
    for commit in iterate_commits(store, table["stage"]):
        found = read_committed(
            store, commit, ["id", "k", "flipped", "before", "after", "importance"]
        )
        for row in found.filter(pc.equal(found["id"], name)).to_pylist():
            seen = True
            yield f"{name}, answer {row['k']}: {'flipped' if row['flipped'] else 'not flipped'}"
            if row["importance"] is None:
                yield "  its latents are not finite"
                continue
            for d in sorted(range(len(names)), key=lambda d: -abs(row["importance"][d])):
                scores = f"score {row['before'][d]:+.2f} -> {row['after'][d]:+.2f}"
                yield f"  {names[d]:24s} {row['importance'][d]:+.3f}  {scores}"
    if not seen:
        raise UserError(f"{name}: expected the id of an attributed row of {store.uri}, got none")


def iterate_lines(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return every importance as a line of COLUMNS; `by` is empty for all flips together."""
    for by, n, lines in (
        ("", table["n"], table["global"]),
        *((arrow(way), way["n"], way["importances"]) for way in table["directions"]),
    ):
        yield from ({**line, "by": by, "n": n} for line in lines)


def _lines(
    sums: ImportanceSums, names: Sequence[str], order: Sequence[int]
) -> list[dict[str, Any]]:
    found = importance.compute(sums)
    return [
        {
            "descriptor": names[d],
            "value": found[d].value,
            "low": found[d].low,
            "high": found[d].high,
        }
        for d in order
    ]


def _format_lines(head: str, lines: Sequence[Mapping[str, Any]], top: int) -> Iterator[str]:
    yield head
    for line in lines[:top]:
        if line["value"] is not None:
            yield f"  {line['descriptor']:24s} {_figure(line)}"


def _figure(line: Mapping[str, Any]) -> str:
    span = "" if line["low"] is None else f" [{line['low']:+.3f}, {line['high']:+.3f}]"
    return f"{line['value']:+.3f}{span}"
