"""Gridlines of charts."""

from __future__ import annotations

import pytest

from pipelines.report.charts import _levels


@pytest.mark.parametrize(
    "peak", [0.0123, 0.0999, 0.3, 0.45, 0.455, 0.49, 0.9, 0.905, 0.95, 0.9999, 1.0]
)
def test_any_peak_has_two_to_five_round_gridlines(peak: float) -> None:
    levels = _levels(peak)
    assert 2 <= len(levels) <= 5
    assert 0 < levels[0] <= levels[-1] <= peak + 1e-9
