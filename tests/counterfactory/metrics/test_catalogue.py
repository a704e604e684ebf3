"""The list of metrics: that it holds together, and that what follows from it does follow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.rows.scores import SCORES
from counterfactory.metrics.catalogue import (
    FIGURES,
    METRIC,
    METRICS,
    figures_of,
    function,
    markdown,
    outdated,
)
from counterfactory.metrics.pairs import Pairs
from counterfactory.models.networks import WANTED

ROOT = Path(__file__).parents[3]
NETWORKS: dict[str, Any] = {
    "classifier": lambda x: x.mean((2, 3))[:, :2],
    "second": lambda x: x.mean((2, 3))[:, 1:],
    "oracle": lambda x: x.mean((2, 3)),
    "lpips": lambda a, b: (a - b).abs().mean((1, 2, 3)),
    **{name: (lambda x: x.flatten(1)) for name in ("s3", "fs", "lpr", "fid")},
}


@pytest.fixture
def pairs() -> Pairs:
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).mul(255).round()
    return Pairs(
        images / 255,
        images.flip(3) / 255,
        torch.zeros(6, dtype=torch.int64),
        torch.ones(6, dtype=torch.int64),
        ids=list("aabbcd"),
        networks=NETWORKS,
        settings={
            **{"cout": "bounded", "cout_steps": 5, "cout_tolerance": 0.0},
            **{"threshold": 0.5, "lpr_tolerance": 0.1},
        },
        causal=[0],
        query=0,
    )


@pytest.mark.parametrize("name", [metric.name for metric in METRICS if metric.function])
def test_a_function_fills_the_columns_that_are_declared(name: str, pairs: Pairs) -> None:
    metric = METRIC[name]
    found = function(metric.function)(pairs)
    # `flipped` is a row's own column, judged again
    assert set(found) - {"flipped"} == set(metric.columns)
    assert all(len(values) == 6 for values in found.values())


def test_every_figure_is_explained_and_its_column_is_there() -> None:
    names = [figure.name for metric in METRICS for figure in metric.figures]
    assert len(set(names)) == len(names) == len(FIGURES)
    assert set(WANTED) <= set(names)
    columns = [name for metric in METRICS for name in metric.columns]
    assert len(set(columns)) == len(columns)
    for metric in METRICS:
        assert metric.version >= 1
        for figure in metric.figures:
            assert figure.label, figure.name
            assert figure.help, figure.name
            assert (figure.kind == "set") == (not figure.column), figure.name
            if figure.derive:
                assert callable(function(figure.derive))
                assert set(figure.reads) <= set(SCORES.names)
            elif figure.column and metric.name not in ("judge", "interventions"):
                assert figure.column in SCORES.names, figure.name


def test_a_run_has_the_figures_whose_needs_it_has() -> None:
    bare = [figure.name for figure in figures_of(())]
    assert bare[0] == "flip_rate"
    assert "cout" in bare
    assert not {"lpips", "mnac", "second_agrees", "fid", "cd", "judge"} & set(bare)
    more = [figure.name for figure in figures_of(("oracle",))]
    assert [name for name in more if name not in bare] == ["mnac"]
    most = [figure.name for figure in figures_of(("oracle", "query"))]
    assert [name for name in most if name not in more] == ["mnac[without target]", "cd"]


def test_versions_are_compared_by_name() -> None:
    now = {metric.name: metric.version for metric in METRICS}
    assert outdated(now) == ""
    assert outdated({"cout": now["cout"]}) == ""
    assert outdated({**now, "cout": 0}) == "cout 0, now 1"
    assert outdated({"gone": 1}) == "gone 1, now gone"
    assert outdated(None) == "made before metrics had versions"


def test_the_docs_table_is_the_list() -> None:
    text = (ROOT / "docs" / "figures.md").read_text()
    assert text.endswith(markdown()), (
        'docs/figures.md: expected the table of `python -c "from counterfactory.metrics.catalogue'
        ' import markdown; print(markdown())"`'
    )


def test_reading_the_list_loads_nothing_heavy() -> None:
    code = (
        "import sys, counterfactory.metrics.catalogue as c; assert c.FIGURES;"
        "print([x for x in ('torch', 'numpy', 'torchmetrics') if x in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.strip() == "[]"
