"""A sweep of two thresholds and a control on drawn faces: finished, resumed, and told."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.strict import UserError, check
from configs.sweep import PlotConfig, SweepConfig
from pipelines.sweep import job as sweeping
from pipelines.sweep.job import sweep
from pipelines.sweep.plots import plot
from pipelines.sweep.table import Column, Grid, grids, latex, markdown, notes, page, ranks, short
from storage.commit import read_commits, read_committed
from storage.uri import Store, open_store
from storage.verify import verify

QUICK = "method.settings.max_steps=12"
CELLS = ("threshold-0.6", "threshold-0.9", "pixel-pgd-demo")


def config(faces: Path, out: Path, **more: Any) -> SweepConfig:
    raw: dict[str, Any] = {
        "name": "little",
        "base": "demo-plain",
        "grid": {"method.settings.threshold": [0.6, 0.9]},
        "cells": [{"method": "pixel-pgd-demo"}],
        "metrics": ["flip_rate", "l1", "changed[Smiling]"],
        "plots": [{"x": "l1", "y": "flip_rate", "along": "threshold"}],
        "out": str(out),
    }
    return check(SweepConfig, raw | more, "test")


def settings(faces: Path) -> list[str]:
    return [
        f"data.path={faces}",
        "data.rows=:12",
        "engine.kind=local",
        "engine.shard_rows=4",
        "score.cout_steps=5",
        QUICK,
    ]


@pytest.fixture(scope="module")
def done(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, Store]:
    made = config(faces, tmp_path_factory.mktemp("sweep"))
    return made, sweep(made, settings(faces))


def test_every_cell_is_an_ordinary_run(done: tuple[SweepConfig, Store]) -> None:
    _, store = done
    for name in CELLS:
        cell = open_store(store.url(name))
        assert verify(cell) == []
        assert cell.exists("MANIFEST.json")
        assert json.loads(cell.read("score/table.json"))["rows"] == 12


def test_the_tidy_table_holds_every_cells_figures(done: tuple[SweepConfig, Store]) -> None:
    _, store = done
    lines = pq.read_table(store.url("table.parquet")).to_pylist()
    assert {line["cell"] for line in lines} == set(CELLS)
    assert {(line["cell"], line["threshold"]) for line in lines} >= {
        ("threshold-0.6", "0.6"),
        ("pixel-pgd-demo", ""),
    }
    for name in CELLS:
        table = json.loads(open_store(store.url(name)).read("score/table.json"))
        for metric in ("flip_rate", "l1", "core_share", "core_l1", "concentration"):
            told = next(m for m in table["metrics"] if m["metric"] == metric)
            line = next(one for one in lines if one["cell"] == name and one["metric"] == metric)
            assert (line["value"], line["low"], line["n"]) == (
                told["value"],
                told["low"],
                told["n"],
            )
    assert any(line["metric"] == "changed[Smiling]" for line in lines)
    rows = list(csv.DictReader(io.StringIO(store.read("table.csv").decode())))
    assert len(rows) == len(lines)


def test_differences_are_of_the_same_rows(done: tuple[SweepConfig, Store]) -> None:
    """Against the two runs' scores, joined here by id."""
    _, store = done
    (line,) = [
        one
        for one in csv.DictReader(io.StringIO(store.read("pairs.csv").decode()))
        if (one["metric"], one["first"], one["second"]) == ("l1", CELLS[0], CELLS[2])
    ]
    scores = []
    for name in (CELLS[0], CELLS[2]):
        cell = open_store(store.url(name))
        stage = json.loads(cell.read("score/table.json"))["stage"]
        tables = [read_committed(cell, commit) for commit in read_commits(cell, stage).values()]
        scores.append({row["id"]: row["l1"] for table in tables for row in table.to_pylist()})
    apart = [scores[0][key] - scores[1][key] for key in scores[0]]
    assert int(line["n"]) == 12
    assert float(line["difference"]) == pytest.approx(np.mean(apart))
    assert float(line["low"]) <= np.mean(apart) <= float(line["high"])
    assert line["better"] == (
        ""
        if float(line["low"]) <= 0 <= float(line["high"])
        else CELLS[0 if np.mean(apart) < 0 else 2]
    )


def test_again_does_nothing_and_more_cells_add_only_themselves(
    done: tuple[SweepConfig, Store], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = done
    asked: list[int] = []
    real = sweeping.run_stage

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(kwargs["shards"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(sweeping, "run_stage", counted)
    before = store.read("table.csv")
    sweep(made, settings(faces))
    assert asked == [0, 0, 0]  # generate, interventions, score
    assert store.read("table.csv") == before
    asked.clear()
    sweep(
        made.model_copy(update={"cells": [*made.cells, {"method": "pixel-pgd"}]}), settings(faces)
    )
    assert asked == [3, 3, 3]


def test_cells_follow_one_another_with_one_copy_of_each_model(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import counterfactory.models.wrapping.load

    built: list[str] = []
    turns: list[int] = []
    real_build, real_stage = counterfactory.models.wrapping.load.build, sweeping.run_stage

    def build(spec: Any, *args: Any) -> Any:
        built.append(spec["target"])
        return real_build(spec, *args)

    def stage(*args: Any, **kwargs: Any) -> Any:
        built.clear()
        turns[:] = [job.cell for job in kwargs["shards"]]
        return real_stage(*args, **kwargs)

    monkeypatch.setattr(counterfactory.models.wrapping.load, "build", build)
    monkeypatch.setattr(sweeping, "run_stage", stage)
    found = sweeping.cells(config(faces, tmp_path), [*settings(faces), "engine.shard_rows=6"])[:2]
    stores = [sweeping.open_run(cell.run) for cell in found]
    jobs = list(sweeping._generate_jobs(found, stores))
    sweeping.run_together(open_store(tmp_path), found[0].run, "generate", jobs)
    assert turns == [0, 0, 0, 1, 1, 1]
    assert sorted(built) == [
        "counterfactory.models.autoencoder.Autoencoder",
        "counterfactory.models.classifiers.ConvNet",
    ]


def test_a_cells_mistake_names_the_cell_and_comes_before_any_work(
    faces: Path, tmp_path: Path
) -> None:
    made = config(faces, tmp_path, cells=[{"method.settings.max_stepz": 3}])
    with pytest.raises(
        UserError, match=r"cell max_stepz-3: method\.settings: unknown key 'max_stepz'"
    ):
        sweep(made, settings(faces))
    assert not open_store(tmp_path).exists("little/threshold-0.6/commit")


def figure(
    value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def test_ranks_know_direction_and_ties() -> None:
    told = [
        figure(0.9, 0.85, 0.95),
        figure(0.88, 0.8, 0.93),
        figure(0.7, 0.6, 0.75),
        figure(0.5, 0.4, 0.55),
        None,
    ]
    assert ranks(told, "higher") == [1, 1, 2, None, None]
    assert ranks(told, "lower") == [None, None, 2, 1, None]
    assert ranks(told, None) == [None] * 5
    assert ranks([figure(1.0), figure(2.0), figure(None)], "lower") == [1, 2, None]
    assert ranks([figure(1.0)], "lower") == [None]
    alone = [
        {**figure(0.2), "note": "n = 1: no interval"},
        figure(0.4, 0.3, 0.5),
        figure(0.9, 0.8, 1.0),
    ]
    assert ranks(alone, "lower") == [None, 1, 2]  # one row without an interval wins nothing


def test_tables_say_the_same_in_three_languages() -> None:
    figures = [[{**figure(0.9, 0.8, 1.0)}, figure(1.5)], [{**figure(0.2, 0.1, 0.3)}, None]]
    columns = [Column("flip_rate", "all", "higher"), Column("x<y_z", "flipped", None)]
    grid = Grid("classifier a&b", ["method"], [("one|two",), ("<script>",)], columns, figures)
    text, tex, html = markdown(grid), latex(grid), page(grid)
    assert r"| flip_rate ↑ | x\<y_z (flipped) |" in text
    assert r"| \<script> |" in text
    assert r"| one\|two | **0.900** [0.800, 1.00] | 1.50 |" in text
    assert "<u>0.200</u>" in text
    assert r"one|two & \textbf{0.900} & 1.50 \\" in tex
    assert r"flip\_rate $\uparrow$" in tex
    assert "<script>" not in html
    assert "<b>0.900</b>" in html
    assert "classifier a&amp;b" in html


def test_notes_name_the_rows_they_are_of_once() -> None:
    columns = [Column("fid", "flipped", "lower")]
    figures = [[{"note": "n < 2048"}], [{"note": "n < 2048"}], [{"note": "n = 0"}], [None]]
    grid = Grid("", ["method"], [("a",), ("b",), ("c",), ("d",)], columns, figures)
    assert notes(grid) == ["fid (a; b): n < 2048"]


def test_axes_make_rows_and_tables() -> None:
    lines = [
        {
            "classifier": c,
            "method": m,
            "metric": "l1",
            "subset": "all",
            "better": "lower",
            "value": v,
        }
        for c, m, v in (("p", "a", 1.0), ("p", "b", 2.0), ("q", "a", 3.0))
    ]
    first, second = grids(lines, ["method"], ["classifier"], ["l1", "unknown"])
    assert first.title == "classifier p"
    assert first.labels == [("a",), ("b",)]
    assert [row[0]["value"] for row in second.figures if row[0]] == [3.0]
    named = [{**line, "metric": "fid[faces-oracle]"} for line in lines]
    (grid, _) = grids([*lines, *named], ["method"], ["classifier"], ["fid", "l1"])
    assert [column.metric for column in grid.columns] == ["fid[faces-oracle]", "l1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (12345.6, "12346"),
        (1.5, "1.50"),
        (-0.01, "-0.0100"),
        (1e-6, "1.00e-06"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_a_plot_joins_cells_along_its_axis_and_escapes() -> None:
    base = {"low": None, "high": None, "better": "lower", "subset": "all"}
    lines = [
        {
            **base,
            "cell": f"c{i}",
            "method": "<m>",
            "alpha": str(i),
            "metric": metric,
            "value": float(i),
        }
        for i in range(3)
        for metric in ("l1", "flip_rate")
    ]
    svg = plot(lines, PlotConfig(x="l1", y="flip_rate", along="alpha"), ["method", "alpha"], [])
    assert svg.count("<polyline") == 1
    assert svg.count("<title>") == 3
    assert "<m>" not in svg
    over = plot(lines, PlotConfig(x="alpha", y="flip_rate", along="alpha"), ["method", "alpha"], [])
    assert over.count("<polyline") == 1
    assert "c2: alpha 2.00, flip_rate 2.00" in over
    assert "No cell" in plot(lines, PlotConfig(x="method", y="flip_rate"), ["method", "alpha"], [])
    assert "No cell" in plot(lines, PlotConfig(x="fid", y="l1"), ["method", "alpha"], [])
