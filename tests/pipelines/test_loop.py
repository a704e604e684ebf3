"""`demo --loop`: what each part of the chain gets from the part before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.retrain import RetrainConfig
from configs.schema import RunConfig
from pipelines import loop
from pipelines.report.story import Story
from pipelines.retrain.job import TABLE
from pipelines.run import STAGES
from storage.seal import sealed
from storage.uri import Store, open_store
from tests.pipelines.report.proven import prove, span
from tests.pipelines.report.test_story import TABLE as RETRAINED


def test_each_part_gets_what_the_part_before_made(
    tmp_path: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"demo-biased": "hair", "demo-mended": "mouth"}
    stores = {name: make_run(name=name).store for name in (*places, "demo-mend")}
    for name, place in places.items():
        prove(stores[name], places=[{"name": place, "share": span(0.9), "changed": 0.2}])
    ran: list[tuple[RunConfig, tuple[str, ...]]] = []
    trained: list[RetrainConfig] = []
    told: dict[str, Any] = {}

    def run(config: RunConfig, stages: tuple[str, ...] = STAGES) -> Store:
        ran.append((config, stages))
        return stores[config.name]

    def retrain(config: RetrainConfig) -> Store:
        trained.append(config)
        store = open_store(f"{config.out}/{config.name}")
        store.replace(TABLE, sealed(RETRAINED))
        card = b"role: classifier\ntarget: counterfactory.models.classifiers.ConvNet\n"
        store.replace("line-0/model.yaml", card + b"classes: [a, b]\n")
        return store

    def report(runs: Sequence[Store], *, out: str, story: Story) -> str:
        told.update(runs=runs, story=story)
        return out

    for name, fake in {"run": run, "retrain": retrain, "report": report}.items():
        monkeypatch.setattr(loop, name, fake)
    monkeypatch.setattr(loop, "judge_and_list", lambda store, config: None)
    monkeypatch.setattr(loop, "augment_counts", lambda store: {"files": 1, "rows": 314})
    monkeypatch.setattr("pipelines.demo.ROWS", (2, 2))
    monkeypatch.setattr(loop, "ROWS", 6)
    monkeypatch.setattr(loop, "TEST_ROWS", 4)
    page = loop.loop(str(tmp_path), ["engine.kind=local"])

    (first, all_of_it), (made, some), (second, again) = ran
    assert [c.name for c in (first, made, second)] == ["demo-biased", "demo-mend", "demo-mended"]
    assert (all_of_it, some, again) == (STAGES, loop.STAGES, STAGES)
    assert {c.engine.kind for c in (first, made, second, trained[0])} == {"local"}
    assert made.augment.label == "oracle"
    assert made.models["classifier"].weights == first.models["classifier"].weights
    assert made.data.path == f"{tmp_path}/biased"
    assert trained[0].train.data.path == f"{tmp_path}/biased/train-*.parquet"
    assert trained[0].augment == [stores["demo-mend"].uri]
    assert trained[0].test is not None
    assert len(list(Path(trained[0].test.path).glob("test-*.parquet"))) == 1
    assert second.models["classifier"].preset == f"{tmp_path}/demo-retrain/line-0/model.yaml"
    assert second.data == first.data
    assert second.method == first.method
    assert told["runs"] == [stores["demo-biased"], stores["demo-mended"]]
    assert told["story"].headline.startswith("Hair decided")
    assert told["story"].steps[1].figure == "314"
    assert page == f"{tmp_path}/loop.html"
