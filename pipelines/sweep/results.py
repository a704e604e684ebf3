"""The results of a sweep: one tidy table for programs, tables and plots for people, and differences
on the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from configs.sweep import Cell, SweepConfig, axis
from counterfactory.metrics.estimate import Measure
from pipelines.engine.committed import TABLE
from pipelines.engine.tables import escape_markdown, to_csv
from pipelines.score.measures import row_measures
from pipelines.sweep.pairs import pairs
from pipelines.sweep.plots import plot
from pipelines.sweep.table import Grid, grids, latex, markdown, notes, page, select_figures
from storage.records import Line
from storage.seal import read_sealed
from storage.tables import to_parquet
from storage.uri import Store

FIGURES = ("metric", "subset", "n", "value", "low", "high", "better", "unit", "note")
DIFFERENCES = ("metric", "first", "second", "n", "difference", "low", "high", "better")
HOW = "Best bold, second underlined; figures whose 95 % intervals overlap share a rank."
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;
color:#1d1d1f}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
caption{text-align:left;font-weight:600;padding:.3rem 0}
div{overflow-x:auto}"""


def write_results(
    store: Store, sweep: SweepConfig, cells: Sequence[Cell], stores: Sequence[Store]
) -> list[str]:
    """Write table.parquet and .csv (tidy), tables.md, .tex and .html, pairs.csv and the plots.

    Returns the tables and the page's address as text. A tidy line has a cell's axes and one figure.
    Figures of attributes are `changed[NAME]`, over the flipped rows.
    """
    axes = axes_of(sweep, cells)
    lines = [
        line
        for cell, place in zip(cells, stores, strict=True)
        for line in tidy(sweep, axes, cell, place)
    ]
    store.replace("table.parquet", parquet(lines, axes))
    store.replace("table.csv", to_csv(["cell", *axes, *FIGURES], lines))
    found = grids(
        lines,
        sweep.rows or [name for name in axes if name not in sweep.by],
        sweep.by,
        sweep.metrics,
    )
    compared = compare(sweep, cells, stores)
    if compared:
        store.replace("pairs.csv", to_csv(DIFFERENCES, compared))
    drawn = {f"plots/{p.y}-over-{p.x}.svg": plot(lines, p, axes, sweep.by) for p in sweep.plots}
    for name, picture in drawn.items():
        store.replace(name, picture.encode(errors="backslashreplace"))
    store.replace("tables.md", markdowns(sweep, found, compared).encode(errors="backslashreplace"))
    store.replace("tables.tex", "\n".join(map(latex, found)).encode(errors="backslashreplace"))
    store.replace(
        "tables.html",
        html_page(sweep, found, list(drawn.values())).encode(errors="backslashreplace"),
    )
    return [*(markdown(grid) for grid in found), f"sweep: {store.url('tables.html')}"]


def axes_of(sweep: SweepConfig, cells: Sequence[Cell]) -> list[str]:
    """Return the settings in which the cells differ, by their names in the tables."""
    return list(dict.fromkeys(axis(sweep, key) for cell in cells for key in cell.settings))


def tidy(sweep: SweepConfig, axes: list[str], cell: Cell, store: Store) -> Iterator[dict[str, Any]]:
    """Return the figures of one cell, one line for each."""
    table = read_sealed(store, TABLE)
    values = {axis(sweep, key): _shown(value) for key, value in cell.settings.items()}
    place = {"cell": cell.run.name, **{name: values.get(name, "") for name in axes}}
    for i, value in enumerate(table["metrics"]):
        line = Line.from_json(value, f"{store.url(TABLE)}: metrics[{i}]").to_json()
        if not line["by"]:
            yield {**place, **{name: line[name] for name in FIGURES}}
    known = table.get("attributes")
    if known:
        for name, value, low, high in zip(
            known["names"], known["changed"], known["low"], known["high"], strict=True
        ):
            figure = {
                "metric": f"changed[{name}]",
                "subset": "flipped",
                "n": known["n"],
                "value": value,
            }
            yield {
                **place,
                **figure,
                "low": low,
                "high": high,
                "better": None,
                "unit": "",
                "note": "",
            }


def compare(
    sweep: SweepConfig, cells: Sequence[Cell], stores: Sequence[Store]
) -> list[dict[str, Any]]:
    """Return differences on the same rows between cells that belong to the same table.

    These cells agree in all axes of `sweep.by`.
    """
    if not sweep.pairs:
        return []
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        values = {axis(sweep, key): _shown(value) for key, value in cell.settings.items()}
        groups.setdefault(tuple(values.get(name, "") for name in sweep.by), []).append(i)
    out = []
    for members in groups.values():
        measures = measures_of(sweep, [cells[i] for i in members])
        names = [cells[i].run.name for i in members]
        out += pairs(
            names, [stores[i] for i in members], measures, cells[members[0]].run.score.bootstrap
        )
    return out


def measures_of(sweep: SweepConfig, cells: Sequence[Cell]) -> list[Measure]:
    """Return the sweep's measures of single rows that all cells have as columns of their scores."""
    common: list[Measure] = list(row_measures(cells[0].run))
    for cell in cells[1:]:
        common = [measure for measure in common if measure in row_measures(cell.run)]
    common = [measure for measure in common if not measure.derive]  # the others have no column
    names = [measure.name for measure in common]
    wanted = select_figures(sweep.metrics, names) if sweep.metrics else names
    return [measure for measure in common if measure.name in wanted]


def markdowns(sweep: SweepConfig, found: list[Grid], compared: list[dict[str, Any]]) -> str:
    """Return all tables, a sentence on how to read them, and the differences whose interval
    excludes 0.
    """
    told = f"# {sweep.name}\n\n{HOW}\n\n"
    for grid in found:
        told += (
            markdown(grid)
            + "\n"
            + "".join(f"- {escape_markdown(note)}\n" for note in notes(grid))
            + "\n"
        )
    sure = [line for line in compared if line["better"]]
    if sure:
        told += (
            "**On the same rows** (mean of first - second, 95 % bootstrap interval without 0)\n\n"
        )
        told += "| metric | first | second | difference | better |\n|---|---|---|---|---|\n"
        for line in sure:
            span = f"{line['difference']:.3g} [{line['low']:.3g}, {line['high']:.3g}]"
            names = (line["metric"], line["first"], line["second"], span, line["better"])
            told += f"| {' | '.join(map(escape_markdown, names))} |\n"
    return told


def html_page(sweep: SweepConfig, found: list[Grid], plots: list[str]) -> str:
    """Return one page with the tables and the plots, without scripts or external files."""
    from markupsafe import escape

    body = "".join(
        f"<div>{page(grid)}</div>" + "".join(f"<p>{escape(note)}</p>" for note in notes(grid))
        for grid in found
    )
    head = f'<meta charset="utf-8"><title>{escape(sweep.name)}</title><style>{STYLE}</style>'
    pictures = "".join(f"<figure>{svg}</figure>" for svg in plots)
    return (
        "<!doctype html><html"
        f" lang=en>{head}<h1>{escape(sweep.name)}</h1><p>{HOW}</p>{body}{pictures}</html>"
    )


def parquet(lines: list[dict[str, Any]], axes: list[str]) -> bytes:
    """Return tidy lines as Parquet.

    Axes are text, so that sweeps of numbers and of names have the same schema.
    """
    kinds = {"n": pa.int64(), "value": pa.float64(), "low": pa.float64(), "high": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in ["cell", *axes, *FIGURES]])
    return to_parquet(pa.Table.from_pylist(lines, schema=schema))


def _shown(value: Any) -> str:
    return str(value.get("preset", json.dumps(value)) if isinstance(value, dict) else value)
