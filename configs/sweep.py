"""A sweep: one base run, and cells that differ from it in the settings of a grid, a list, or
both.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from configs.schema import PRESET_GROUPS, Name, RunConfig, resolve_run
from configs.strict import Strict, UserError, apply_sets, check, presets, read_preset

Setting = str | int | float | bool | None | list[Any] | dict[str, Any]
FIXED = ("name", "out")  # the sweep sets a cell's name and folder


class PlotConfig(Strict):
    """A trade-off plot of one metric against another, or against an axis of numbers; a line per
    method joins the points of an axis.
    """

    x: str
    y: str
    along: str | None = None  # the axis that a line joins; default: no lines, points only


class SweepConfig(Strict):
    """A base run and its cells; every cell is an ordinary run under out/name.

    grid: dotted setting -> its values; all combinations are cells. A value of a preset's key may be
    a glob over preset names, and a glob after `!` removes names (`method: ["*-demo",
    "!steex-demo"]`). cells: further cells, each dotted setting -> value. An axis is named in tables
    by the last part of its setting's name, or by `labels`.
    """

    name: Name
    base: str | dict[str, Any]  # a run config's preset or path, or the settings themselves
    grid: dict[str, Annotated[list[Setting], Field(min_length=1)]] = {}
    cells: list[dict[str, Setting]] = []
    labels: dict[str, str] = {}  # dotted setting -> its axis' name in tables
    out: str = "runs"
    rows: list[str] = []  # axes whose values are a table's rows; default: all but `by`
    by: list[str] = []  # axes with a table for each value
    metrics: list[str] = []  # columns of the tables; default: every metric measured
    pairs: bool = True  # compare every two cells of a table on the same rows
    plots: list[PlotConfig] = []

    @model_validator(mode="after")
    def _some(self) -> SweepConfig:
        if not self.grid and not self.cells:
            raise ValueError("expected `grid` or `cells`, got neither")
        for key in [*self.grid, *(key for cell in self.cells for key in cell)]:
            if key.split(".")[0] in FIXED:
                raise ValueError(
                    f"expected settings other than {' and '.join(FIXED)} in the cells, got {key!r}"
                )
        return self


@dataclass(frozen=True)
class Cell:
    """One cell: the settings in which it differs, and its run."""

    settings: dict[str, Setting]
    run: RunConfig


def load_sweep(name: str, sets: list[str] | None = None) -> SweepConfig:
    """Read a sweep by preset name or path; sets: `a.b=c` settings that override it."""
    return check(SweepConfig, apply_sets(read_preset("sweep", name), sets or [], {}), name)


def cells(sweep: SweepConfig, sets: list[str] | None = None) -> list[Cell]:
    """Return every cell with its checked run; sets: settings that override those of all cells.

    UserError, which names the cell, where its settings are wrong or it is there twice.
    """
    found: dict[str, Cell] = {}
    for settings in chosen(sweep):
        raw = (
            read_preset("run", sweep.base)
            if isinstance(sweep.base, str)
            else copy.deepcopy(sweep.base)
        )
        laid = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        raw |= {"name": slug(settings), "out": f"{sweep.out.rstrip('/')}/{sweep.name}"}
        run = resolve_run(raw, [*laid, *(sets or [])], f"{sweep.name}, cell {slug(settings)}")
        if run.name in found:
            raise UserError(f"{sweep.name}: expected each cell once, got {run.name} twice")
        found[run.name] = Cell(settings=settings, run=run)
    return list(found.values())


def chosen(sweep: SweepConfig) -> list[dict[str, Setting]]:
    """Return the settings in which each cell differs: the grid's combinations, then the list's."""
    axes = [[(key, value) for value in _values(key, values)] for key, values in sweep.grid.items()]
    listed = [dict(one) for one in itertools.product(*axes)] if axes else []
    for cell in sweep.cells:
        options = [[(key, value) for value in _values(key, [value])] for key, value in cell.items()]
        listed += [dict(one) for one in itertools.product(*options)]
    return listed


def slug(settings: dict[str, Setting]) -> str:
    """Return a cell's name: the values of its settings, joined by `_`.

    A number, a list, true, false and null have the last part of the setting's name before them.
    """
    parts = []
    for key, value in settings.items():
        text = str(value.get("preset", "custom") if isinstance(value, dict) else value)
        parts.append(text if isinstance(value, str | dict) else f"{key.rpartition('.')[2]}-{text}")
    return re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(parts)).strip("-._")[:100]


def axis(sweep: SweepConfig, key: str) -> str:
    """Return the name of a setting in tables."""
    return sweep.labels.get(key, key.rpartition(".")[2])


def _values(key: str, values: list[Setting]) -> list[Setting]:
    """Return an axis' values, each once, with globs replaced by the preset names that match.

    UserError where a glob matches no preset.
    """
    group = PRESET_GROUPS.get(key) or PRESET_GROUPS.get(f"{key.rpartition('.')[0]}.*")
    out: list[Setting] = []
    for value in values:
        if group and isinstance(value, str) and value.startswith("!"):
            out = [
                name
                for name in out
                if not (isinstance(name, str) and fnmatch.fnmatch(name, value[1:]))
            ]
        elif group and isinstance(value, str) and set("*?[") & set(value):
            found = fnmatch.filter(presets(group), value)
            if not found:
                raise UserError(
                    f"{key}: expected a preset like {value!r}, got none in configs/{group}"
                )
            out += [name for name in found if name not in out]
        elif value not in out:
            out.append(value)
    return out
