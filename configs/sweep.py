"""A sweep: one base run and the cells that differ from it, as a grid over settings, a list, or
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
FIXED = ("name", "out")  # a cell's name and place follow from the sweep


class PlotConfig(Strict):
    """A trade-off plot: one metric against another or against an axis of numbers, a line per method
    over an axis.
    """

    x: str
    y: str
    along: str | None = None  # the axis that a line joins; default: no lines, points only


class SweepConfig(Strict):
    """Cells over a base run; every cell is an ordinary run under out/name.

    grid: dotted setting -> its values, all combinations; a value of a preset's key may be a glob
    over preset names, and one with `!` before it takes names out again (`method: ["*-demo",
    "!steex-demo"]`). cells: further cells, each dotted setting -> value. Axes are told by the last
    part of their setting's name, or as `labels` says.
    """

    name: Name
    base: str | dict[str, Any]  # a run config's preset or path, or the settings themselves
    grid: dict[str, Annotated[list[Setting], Field(min_length=1)]] = {}
    cells: list[dict[str, Setting]] = []
    labels: dict[str, str] = {}  # dotted setting -> what its axis is called in tables
    out: str = "runs"
    rows: list[str] = []  # axes that make a table's rows; default: all but `by`
    by: list[str] = []  # axes that make a table each
    metrics: list[str] = []  # columns of the tables; default: every metric that was measured
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
    """One cell: what sets it apart, and its run."""

    settings: dict[str, Setting]
    run: RunConfig


def load_sweep(name: str, sets: list[str] | None = None) -> SweepConfig:
    """Read a sweep by preset name or path, with `a.b=c` settings laid over it."""
    return check(SweepConfig, apply_sets(read_preset("sweep", name), sets or [], {}), name)


def cells(sweep: SweepConfig, sets: list[str] | None = None) -> list[Cell]:
    """Every cell's run, checked; sets: settings laid over all of them. UserError names the cell
    that is off.
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
    """What sets each cell apart: the grid's combinations, then the list's."""
    axes = [[(key, value) for value in _values(key, values)] for key, values in sweep.grid.items()]
    listed = [dict(one) for one in itertools.product(*axes)] if axes else []
    for cell in sweep.cells:
        options = [[(key, value) for value in _values(key, [value])] for key, value in cell.items()]
        listed += [dict(one) for one in itertools.product(*options)]
    return listed


def slug(settings: dict[str, Setting]) -> str:
    """A cell's name: its settings' values, with the setting's last part where the value alone would
    not tell.
    """
    parts = []
    for key, value in settings.items():
        text = str(value.get("preset", "custom") if isinstance(value, dict) else value)
        parts.append(text if isinstance(value, str | dict) else f"{key.rpartition('.')[2]}-{text}")
    return re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(parts)).strip("-._")[:100]


def axis(sweep: SweepConfig, key: str) -> str:
    """What a setting is called in tables."""
    return sweep.labels.get(key, key.rpartition(".")[2])


def _values(key: str, values: list[Setting]) -> list[Setting]:
    """An axis' values, with globs over preset names spelled out."""
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
