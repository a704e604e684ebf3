"""The pictures of a row with interventions are those that the report's gallery draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.schema import RunConfig
from pipelines.read import frame
from pipelines.report.cells import full_share, overlay_cells
from pipelines.report.pictures import change, full_scale, overlay
from pipelines.review.index import read_rows
from pipelines.review.views import SAMPLE, View, Views
from storage.codec import decode
from storage.run import read_plan
from storage.seal import read_sealed
from storage.uri import Store
from tests.pipelines.report.proven import CELLS, SIZE, prove
from tests.pipelines.report.test_job import make_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = make_run(tmp_path_factory.mktemp("viewed"), "viewed")
    prove(made)
    return made


@pytest.fixture
def views(store: Store) -> Views:
    config = RunConfig.model_validate(read_plan(store).config)
    return Views(store, config, read_rows(store, config))


def pixels(view: View | None) -> NDArray[Any]:
    assert view is not None
    assert view.kind == "image/png"
    return decode(view.data, size=SIZE, crop=None, max_pixels=10**6)


def test_each_view_is_the_galleries(store: Store, views: Views) -> None:
    rows = frame(store.uri)
    assert list(views.draws.names) == ["original", "counterfactual", "core", "where", "change"]
    table = read_sealed(store, "interventions/table.json")
    top = full_share([way[key] for way in table["directions"] for key in ("map", "changed")])
    pairs = [
        [np.asarray(row[s]) for s in ("original", "counterfactual")] for _, row in rows.iterrows()
    ]
    of_first = int((views.rows.shards == 0).sum())
    first = [p for p, f in zip(pairs[:of_first], rows["flipped"], strict=False) if f][:SAMPLE]
    scale = full_scale([change(*pair) for pair in first])
    flipped = Counter(rows["flipped"])
    assert min(flipped[True], flipped[False]) > 0
    for (_, row), (before, after) in zip(rows.iterrows(), pairs, strict=True):
        name = row["cf_id"]
        np.testing.assert_array_equal(pixels(views.view(name, "original")), before)
        expected = overlay(before, change(before, after), scale)
        np.testing.assert_array_equal(pixels(views.view(name, "change")), expected)
        if not row["flipped"]:
            assert views.view(name, "core") is None
            assert views.view(name, "where") is None
            continue
        np.testing.assert_array_equal(pixels(views.view(name, "core")), np.asarray(row["core"]))
        shares = np.array(row["own_map"]) / sum(row["own_map"].tolist())
        expected = overlay_cells(before, shares.tolist(), (CELLS, CELLS), top)
        np.testing.assert_array_equal(pixels(views.view(name, "where")), expected)


def test_the_core_is_described(store: Store) -> None:
    config = RunConfig.model_validate(read_plan(store).config)
    rows = read_rows(store, config)
    told = rows.describe(range(len(rows)))
    table = frame(store.uri, ["cf_id", "flipped", "core_share", "core_cells"])
    assert [row["cf_id"] for row in told] == table["cf_id"].tolist()
    for row, (_, own) in zip(told, table.iterrows(), strict=True):
        assert (row["core"] is not None) == own["flipped"]
        if row["core"]:
            assert row["core"]["kept"] == f"{len(own['core_cells'])} of {CELLS**2} cells"
            assert row["core"]["share"] == f"{100 * own['core_share']:.0f} %"
