"""Sweeps: which cells there are, what they are called, and mistakes that end in one line."""

from typing import Any

import pytest

from configs.strict import UserError, check, presets
from configs.sweep import SweepConfig, axis, cells, chosen, load_sweep, slug


def made(**settings: Any) -> SweepConfig:
    return check(SweepConfig, {"name": "s", "base": "faces", **settings}, "test")


def test_a_grid_gives_every_combination_and_a_list_adds_to_it() -> None:
    sweep = made(
        grid={
            "models.classifier": ["faces-plain", "faces-biased"],
            "method.settings.threshold": [0.5, 0.9],
        },
        cells=[{"method": "pixel-pgd-demo"}],
    )
    found = cells(sweep)
    assert len(found) == 5
    assert [cell.run.name for cell in found][:2] == [
        "faces-plain_threshold-0.5",
        "faces-plain_threshold-0.9",
    ]
    assert {cell.run.out for cell in found} == {"runs/s"}
    assert found[1].run.method.settings["threshold"] == 0.9
    assert found[2].run.models["classifier"].preset == "faces-biased"
    assert found[4].run.method.target == "counterfactory.methods.pixel_pgd.PixelPGD"


def test_a_glob_takes_every_preset_of_its_group() -> None:
    wanted = sorted(name for name in presets("method") if name.endswith("-demo"))
    assert [settings["method"] for settings in chosen(made(grid={"method": ["*-demo"]}))] == wanted
    fewer = [
        settings["method"] for settings in chosen(made(grid={"method": ["*-demo", "!steex-*"]}))
    ]
    assert fewer == [name for name in wanted if name != "steex-demo"]
    with pytest.raises(UserError, match="expected a preset like 'none-\\*'"):
        chosen(made(grid={"method": ["none-*"]}))


def test_the_command_lines_settings_win_in_every_cell() -> None:
    found = cells(made(grid={"seed": [1, 2]}), ["data.rows=:4", "engine.batch=2"])
    assert {cell.run.data.rows for cell in found} == {":4"}
    assert {cell.run.engine.batch for cell in found} == {2}
    assert [cell.run.seed for cell in found] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `grid` or `cells`"),
        ({"grid": {"out": ["a"]}}, "expected settings other than name and out"),
        (
            {"grid": {"seed": [1]}, "cells": [{"seed": 1}]},
            "expected each cell once, got seed-1 twice",
        ),
        (
            {"grid": {"engine.batches": [1]}},
            "cell batches-1: unknown key 'engine.batches': did you mean 'batch'",
        ),
        ({"grid": {"seed": []}}, "grid.seed"),
        ({"gird": {"seed": [1]}}, "unknown key 'gird': did you mean 'grid'"),
    ],
)
def test_mistakes_end_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells(made(**settings))


def test_names_are_safe_and_axes_short() -> None:
    assert slug({"method": "a/../b c", "method.settings.x": [1, 2]}) == "a-..-b-c_x-1-2"
    assert axis(made(grid={"seed": [1]}, labels={"seed": "noise"}), "seed") == "noise"
    assert axis(made(grid={"seed": [1]}), "models.classifier") == "classifier"


@pytest.mark.parametrize("name", presets("sweep"))
def test_every_shipped_sweep_is_valid(name: str) -> None:
    assert cells(load_sweep(name))
