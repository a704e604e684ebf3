"""Themes of a run whose classifier reads one patch in some rows and another one in the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from pipelines.gc import gc
from pipelines.interventions import job as stage_job
from pipelines.interventions import themes as themes_job
from pipelines.interventions.job import intervene
from pipelines.interventions.lines import look_of, theme_lines, theme_summary
from pipelines.report.show import show
from pipelines.run import run
from storage.seal import read_sealed, sealed
from storage.uri import Store
from storage.verify import verify
from tests.pipelines.interventions import test_job
from tests.pipelines.interventions.test_job import PATCH, SIZE, make, models
from tests.pipelines.report.test_job import page_of

THEMES = "interventions/themes.json"
OTHER = (slice(20, 24), slice(8, 12))  # the cell in row 5, column 2
GATE = (slice(28, 32), slice(28, 32))
REGIONS = ("rest", "patch")
PAGE = Path(__file__).parents[3] / "docs" / "schema.md"
__all__ = ["models"]


class TwoReader(nn.Module):
    """A classifier of the mean of one patch where a corner is dark, and of another one where it is
    bright.
    """

    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        one, two, gate = (images[:, :, p[0], p[1]].mean((1, 2, 3)) for p in (PATCH, OTHER, GATE))
        z = 20 * (torch.where(gate < 0.5, one, two) - 0.5)
        return torch.stack([-z / 2, z / 2], 1)


class TwoOracle(nn.Module):
    """Both patches as attributes."""

    attributes = ("One", "Two")

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, :, p[0], p[1]].mean((1, 2, 3)) for p in (PATCH, OTHER)], 1)


def second_cause(i: int) -> bool:
    """A third of the rows of either direction are read by the second patch."""
    return i // 2 % 3 == 0


def pair(i: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its counterfactual: the patch that is read turns, the other one stays, and
    noise changes everywhere but in the corner.
    """
    rng = np.random.default_rng(i)
    x = rng.integers(60, 190, (SIZE, SIZE, 3), dtype=np.uint8)
    y = np.clip(x.astype(int) + rng.integers(-40, 41, x.shape), 0, 255).astype(np.uint8)
    read, other = (OTHER, PATCH) if second_cause(i) else (PATCH, OTHER)
    x[read], y[read] = (200, 50) if i % 2 else (50, 200)
    y[other] = x[other]
    x[GATE] = y[GATE] = 220 if second_cause(i) else 30
    return x, y


@pytest.fixture
def two(models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    monkeypatch.setattr(test_job, "pair", pair)
    monkeypatch.setattr(stage_job, "region_names", lambda config: REGIONS)
    models.update(classifier=TwoReader(), second=TwoReader(), oracle=TwoOracle())
    return models


def themes_of(store: Store, config: RunConfig) -> dict[str, Any]:
    intervene(store, config)
    return read_sealed(store, THEMES)


def test_two_causes_are_two_themes_with_their_rows(tmp_path: Path, two: dict[str, Any]) -> None:
    store, config = make(tmp_path, rows=150, shard=50, oracle=two["oracle"])
    found = themes_of(store, config)
    assert found["stage"] == read_sealed(store, "interventions/table.json")["stage"]
    assert [way["source"] for way in found["directions"]] == ["dark", "bright"]
    flipped = [i for i in range(150) if i % 5 != 4]
    for way, odd in zip(found["directions"], (0, 1), strict=True):
        mine = [i for i in flipped if i % 2 == odd]
        assert way["flips"] == way["n"] == len(mine)
        assert way["rest"] == 0
        assert way["stability"]["value"] > 0.9
        assert [theme["n"] for theme in way["themes"]] == [
            sum(not second_cause(i) for i in mine),
            sum(map(second_cause, mine)),
        ]
        for theme, (second, name, cell) in zip(
            way["themes"], ((False, "One", 14), (True, "Two", 42)), strict=True
        ):
            rows = [int(row["id"].removeprefix("row-")) for row in theme["exemplars"]]
            assert len(set(rows)) == 6
            assert all(i in mine and second_cause(i) is second for i in rows)
            assert theme["share"]["value"] == pytest.approx(theme["n"] / way["n"])
            assert theme["share"]["low"] < theme["share"]["value"] < theme["share"]["high"]
            # 150 of 255 levels, times 20: what the patch alone adds
            assert theme["effect"]["value"] == pytest.approx(20 * 150 / 255, abs=0.5)
            assert int(np.argmax(theme["map"])) == cell
            assert [one["name"] for one in theme["attributes"]] == [name]
            assert theme["attributes"][0]["rate"]["value"] == 1
            assert theme["attributes"][0]["gained"] == (0 if odd else 1)
            assert look_of(theme).startswith("darker" if odd else "lighter")
        assert way["themes"][0]["regions"][0]["name"] == "patch"
    lines = list(theme_lines(found))
    assert lines[0].startswith("dark -> bright: 2 themes in 60 flips; stability")
    assert any("    - One in 100 %" in line for line in lines)
    assert any("at patch" in line for line in lines)


def test_one_cause_is_one_theme_without_oracle_or_masks(
    tmp_path: Path, two: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "second_cause", lambda i: False)
    monkeypatch.setattr(stage_job, "region_names", lambda config: ())
    store, config = make(tmp_path, rows=100, shard=50)
    found = themes_of(store, config)
    for way in found["directions"]:
        assert [theme["n"] for theme in way["themes"]] == [40]
        assert way["stability"]["value"] is None
        assert way["themes"][0]["attributes"] == []
        assert way["themes"][0]["regions"] == []
        assert theme_summary(way) == "one theme in 40 flips"
    assert any("cell 2,7 of 8x8" in line for line in theme_lines(found))


def test_order_and_shards_do_not_matter(
    tmp_path: Path, two: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, config = make(tmp_path / "one", rows=120, shard=120)
    many, _ = make(tmp_path / "many", rows=120, shard=50)
    monkeypatch.setattr(themes_job, "MOST_ROWS", 40)
    found = [plain(themes_of(store, config)) for store in (one, many)]
    assert found[0] == found[1]
    for way in found[0]["directions"]:
        assert (way["n"], way["flips"]) == (40, 48)
        assert theme_summary(way).startswith("2 themes in a sample of 40 of 48 flips")


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Themes rounded, without their rows' shards and what the cores keep, whose search starts at
    what other rows of the shard show.
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items() if k not in ("shard", "core_share")}
        if isinstance(value, list):
            return [rounded(one) for one in value]
        return round(value, 6) if isinstance(value, float) else value

    whole: dict[str, Any] = rounded({**found, "stage": ""})
    return whole


def test_a_tiny_run_has_no_themes_and_says_why(tmp_path: Path, two: dict[str, Any]) -> None:
    store, config = make(tmp_path, rows=12)
    found = themes_of(store, config)
    assert [way["themes"] for way in found["directions"]] == [[], []]
    assert "no themes in 5 flips: fewer than 20 rows" in next(iter(theme_lines(found)))
    none, config = make(tmp_path / "none", rows=1)
    assert len(themes_of(none, config)["directions"]) == 1


def test_the_setting(tmp_path: Path, two: dict[str, Any]) -> None:
    store, off = make(tmp_path, rows=12, interventions={"themes": 0})
    intervene(store, off)
    assert not store.exists(THEMES)
    on = RunConfig.model_validate({**off.model_dump(), "interventions": {"themes": 1}})
    assert len(themes_of(store, on)["directions"]) == 2
    assert themes_of(store, off)["directions"] == [], "themes of before are not left behind"
    with pytest.raises(ValueError, match="themes"):
        RunConfig.model_validate({**off.model_dump(), "interventions": {"themes": -1}})


def test_verify_gc_show_and_report_know_the_themes(tmp_path: Path, two: dict[str, Any]) -> None:
    store, config = make(tmp_path, rows=150, shard=50, oracle=two["oracle"])
    run(config, stages=("interventions", "report"), store=store)
    assert verify(store) == []
    assert "themes" not in gc(store, older_than="0s")
    assert "themes      bright -> dark: 2 themes in 60 flips; stability" in show(store)
    page = page_of(store)
    section = page.partition('<section id="themes"')[2].partition("</section>")[0]
    assert 'href="#themes"' in page
    assert section.count('<article class="theme">') == 4
    assert section.count("<img") == 4 * 6 * 3
    assert len(re.findall(r'aria-label="[^"]*where its effect lies, most at row', section)) == 4
    assert "2 themes in 60 flips; stability" in section
    store.replace(THEMES, store.read(THEMES).replace(b'"most": 6', b'"most": 5'))
    assert any(THEMES in line for line in verify(store))


def test_themes_of_another_stage_are_not_shown(tmp_path: Path, two: dict[str, Any]) -> None:
    store, config = make(tmp_path, rows=60)
    intervene(store, config)
    assert "themes      bright" in show(store)
    table = read_sealed(store, "interventions/table.json")
    store.replace("interventions/table.json", sealed({**table, "stage": "interventions-0"}))
    assert "themes  " not in show(store)


def test_every_key_is_in_the_documentation(tmp_path: Path, two: dict[str, Any]) -> None:
    store, config = make(tmp_path, rows=150, shard=50, oracle=two["oracle"])
    found = themes_of(store, config)
    text = PAGE.read_text().partition("\n## Themes\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `([^`]+)` \|", text, re.M))
    way = found["directions"][0]
    theme = way["themes"][0]
    keys = {*found} - {"directions"}
    keys |= {f"directions[].{key}" for key in way if key != "themes"}
    keys |= {f"directions[].themes[].{key}" for key in theme}
    assert told == keys
