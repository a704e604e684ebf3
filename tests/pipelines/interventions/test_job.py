"""The experiment on pairs whose cause is known: a classifier of one patch, in pictures that change
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.engine.part import Part
from pipelines.interventions import job as stage_job
from pipelines.interventions.job import intervene, region_names
from pipelines.interventions.lines import format_table, summary
from pipelines.run import run, skipped
from pipelines.score.job import score
from storage.codec import decode, encode
from storage.commit import commit_shard, iterate_commits, read_committed
from storage.records import Plan, Shard
from storage.run import write_plan
from storage.schema import COUNTERFACTUALS
from storage.seal import read_sealed
from storage.uri import Store, open_store
from storage.verify import verify

SIZE, CELL = 32, 4  # cells of 4 px: 8 x 8 of them
PATCH = (slice(4, 8), slice(24, 28))  # the cell in row 1, column 6
TOP = 1 * 8 + 6
REGIONS = ("rest", "patch")


class PatchReader(nn.Module):
    """A classifier of the mean of one patch; its log-odds are linear in the pixels."""

    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        z = 20 * (images[:, :, PATCH[0], PATCH[1]].mean((1, 2, 3)) - 0.5)
        return torch.stack([-z / 2, z / 2], 1)


class PatchOracle(nn.Module):
    """Three attributes: the patch, an inverted copy of it, and the lower right corner."""

    attributes = ("Patch", "Dark_Patch", "Corner")

    def forward(self, images: Tensor) -> Tensor:
        patch = images[:, :, PATCH[0], PATCH[1]].mean((1, 2, 3))
        corner = images[:, :, 28:, 28:].mean((1, 2, 3))
        return torch.stack([patch, 1 - patch, corner], 1)


class OnlyCorner(PatchOracle):
    """An oracle that does not know the patch."""

    attributes = ("Corner",)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, 2:]


def pair(i: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its counterfactual: the patch turns, and noise changes everywhere."""
    rng = np.random.default_rng(i)
    x = rng.integers(60, 190, (SIZE, SIZE, 3), dtype=np.uint8)
    y = np.clip(x.astype(int) + rng.integers(-40, 41, x.shape), 0, 255).astype(np.uint8)
    x[PATCH], y[PATCH] = (200, 50) if i % 2 else (50, 200)
    return x, y


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    built: dict[str, nn.Module] = {"classifier": PatchReader(), "second": PatchReader()}
    for place in ("actors.interventions", "actors.score"):
        monkeypatch.setattr(
            f"{place}.load_models", lambda config, names, device: {n: built[n] for n in names}
        )
    return built


def make(
    folder: Path, rows: int = 48, shard: int = 16, oracle: nn.Module | None = None, **other: Any
) -> tuple[Store, RunConfig]:
    """A committed generate stage of these pairs; every fifth row did not flip."""
    store = open_store(folder)
    spec = {"role": "classifier", "target": "a.b", "classes": ["dark", "bright"]}
    found: dict[str, Any] = {"classifier": spec}
    if oracle is not None:
        names = list(getattr(oracle, "attributes"))  # noqa: B009
        found["oracle"] = {"role": "attributes", "target": "a.b", "classes": names}
    config = RunConfig.model_validate(
        {
            "name": "patch",
            "data": {"path": "nowhere", "size": SIZE, "mask": "mask"},
            "models": found,
            "method": {"target": "counterfactory.methods.ace.ACE"},
            "engine": {"kind": "local"},
            "score": {"bootstrap": 100},
            **other,
        }
    )
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[PATCH] = 1
    shards = [
        Shard(n, "f", "f", "v", start=at, rows=min(shard, rows - at), offset=at)
        for n, at in enumerate(range(0, rows, shard))
    ]
    write_plan(store, Plan({"data": "d"}, shards, rows, config=config.model_dump()))
    for part in shards:
        made = []
        for i in range(part.start, part.start + part.rows):
            x, y = pair(i)
            flipped = i % 5 != 4
            made.append(
                {
                    "id": f"row-{i}",
                    "cf_id": f"cf-{i}",
                    "k": 0,
                    "row": i,
                    "source": i % 2,
                    "target": 1 - i % 2,
                    "predicted": 1 - i % 2 if flipped else i % 2,
                    "correct": True,
                    "flipped": flipped,
                    "method": "m",
                    "original": {"bytes": encode(x), "path": f"{i}.png"},
                    "counterfactual": {"bytes": encode(y if flipped else x), "path": f"{i}c.png"},
                    "regions": encode(mask),
                }
            )
        commit_shard(
            store,
            "generate",
            part,
            pa.Table.from_pylist(made, schema=COUNTERFACTUALS),
            rows_in=part.rows,
            quarantined=[],
            seconds=1.0,
            extra={},
        )
    return store, config


def rows_of(store: Store, stage: str) -> list[dict[str, Any]]:
    return [
        row
        for commit in iterate_commits(store, stage)
        for row in read_committed(store, commit).to_pylist()
    ]


def test_the_patch_has_the_whole_effect_and_is_the_core(
    tmp_path: Path, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_job, "region_names", lambda config: REGIONS)
    models["oracle"] = PatchOracle()
    store, config = make(tmp_path, oracle=models["oracle"], interventions={"places": ["patch"]})
    table = intervene(store, config)
    whole = table["whole"]
    assert int(np.argmax(whole["map"])) == TOP
    # a linear cause: its cell has all of the effect but what the soft edge gives to neighbours
    assert whole["map"][TOP] == pytest.approx(1, abs=0.3)
    assert sum(whole["map"]) == pytest.approx(1)
    assert whole["changed"][TOP] < 0.15
    assert whole["low"][TOP] <= whole["map"][TOP] <= whole["high"][TOP]
    assert whole["spread"] is False
    assert table["places"][0]["name"] == "patch"
    assert [m["metric"] for m in table["metrics"]][-1] == "place_share[patch]"
    assert {d["source"] for d in table["directions"]} == {"dark", "bright"}
    assert sum(d["n"] for d in table["directions"]) == table["n"] == 39
    assert table["rows"] == 48
    assert table["control"]["similarity"]["value"] > 0.8  # unrelated pairs show the same place

    by_name = {line["name"]: line["similarity"]["value"] for line in table["attributes"]}
    assert by_name["Patch"] == pytest.approx(1, abs=0.02)
    assert by_name["Dark_Patch"] == pytest.approx(by_name["Patch"], abs=1e-6)
    assert by_name["Corner"] < 0.5
    assert table["audit"]["alike"] == ["Patch", "Dark_Patch"]
    assert table["audit"]["depends_on"] is None
    assert "cannot tell Patch and Dark_Patch apart" in table["audit"]["verdict"]

    for row in rows_of(store, table["stage"]):
        if not row["flipped"]:
            assert all(row[name] is None for name in row if name not in stage_keys())
            continue
        assert TOP in row["core_cells"]
        x, y = pair(int(row["id"].removeprefix("row-")))
        core = decode(row["core"]["bytes"], size=SIZE, crop=None, max_pixels=10**6)
        assert (np.abs(core.astype(int) - x) <= np.abs(y.astype(int) - x) + 1).all()
        assert row["core_p_target"] > 0.5
        expect = np.abs(core.astype(float) - x).mean() / 255
        assert row["core_l1"] == pytest.approx(expect, abs=1e-3)
        assert row["core_share"] == pytest.approx(row["core_l1"] / row["full_l1"], abs=0.02)
        assert row["evaluations"] <= 30
    assert table["core"]["cells"] <= 3
    assert table["core"]["share"]["value"] < 0.4
    assert "cells" in " ".join(format_table(table))
    assert "in a tenth" in summary(table)
    assert verify(store) == []


def stage_keys() -> set[str]:
    return {"id", "cf_id", "k", "source", "target", "correct", "flipped"}


def test_an_effect_at_a_place_that_no_attribute_has(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    models["oracle"] = OnlyCorner()
    store, config = make(
        tmp_path, oracle=models["oracle"], score={"bootstrap": 100, "causal": ["Corner"]}
    )
    found = intervene(store, config)["audit"]
    assert found["depends_on"] is None
    assert found["spurious"] is True  # the attribute that should decide does not
    assert "No attribute of the oracle has its effect there" in found["verdict"]
    assert "cell 2,7 of 8x8" in found["where"]


def test_the_verdict_needs_no_oracle(
    tmp_path: Path, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_job, "region_names", lambda config: REGIONS)
    store, config = make(tmp_path, interventions={"places": ["rest"]})
    table = intervene(store, config)
    assert table["audit"]["spurious"] is True
    assert "the classifier relies on something else" in table["audit"]["verdict"]
    told = score(store, config)
    assert told["audit"]["verdict"] == table["audit"]["verdict"]
    lines = {line["metric"]: line for line in told["metrics"]}
    assert lines["core_share"]["n"] == 39
    assert lines["concentration"]["value"] > 0.7
    assert lines["place_share[rest]"]["value"] < 0.4


def test_further_models_see_a_sample_of_the_rows(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    class Counted(PatchOracle):
        seen = 0

        def forward(self, images: Tensor) -> Tensor:
            self.seen += len(images)
            return super().forward(images)

    tables = {}
    for sample in (6, 256):
        models["oracle"] = oracle = Counted()
        store, config = make(
            tmp_path / str(sample), oracle=oracle, interventions={"sample": sample}
        )
        raw = config.model_dump()
        raw["models"]["second"] = dict(raw["models"]["classifier"])
        tables[sample] = table = intervene(store, RunConfig.model_validate(raw))
        rows = [row for row in rows_of(store, table["stage"]) if row["flipped"]]
        asked = [row for row in rows if row["attributes_log_odds"] is not None]
        assert len(asked) == min(sample, 39)  # 2 of each of the three shards, or all
        assert [r["kinds"] is not None for r in rows] == [r in asked for r in rows]
        assert [r["second_core"] is not None for r in rows] == [r in asked for r in rows]
        # a pair's ends are of all rows, for the attributes' flip rates
        assert oracle.seen == 2 * 39 + 16 * len(asked)
        # a row's own mixtures, in its own order
        for row in asked:
            patch = np.array(row["attributes_log_odds"]).reshape(16, 3)[:, 0]
            assert np.corrcoef(patch, np.array(row["log_odds"]))[0, 1] ** 2 > 0.99
    few, whole = tables[6], tables[256]
    assert few["whole"]["map"] == whole["whole"]["map"]  # the classifier sees all rows
    assert few["core"]["n"] == whole["core"]["n"] == 39
    assert {line["similarity"]["n"] for line in few["attributes"]} == {6}
    assert few["kinds"]["fine"]["n"] == few["core"]["second"]["n"] == 6
    by_name = {line["name"]: line["similarity"]["value"] for line in few["attributes"]}
    assert by_name["Patch"] == pytest.approx(1, abs=0.02)


def test_shards_and_resume_change_nothing_of_the_map(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    one, config = make(tmp_path / "one", shard=48)
    many, _ = make(tmp_path / "many", shard=10)
    whole = intervene(one, config)
    first = intervene(many, config, part=Part(shards=(0, 2)))
    assert first["shards"] == {"done": 2, "planned": 5}
    again = intervene(many, config)
    assert again["shards"]["done"] == 5
    np.testing.assert_allclose(again["whole"]["map"], whole["whole"]["map"], atol=1e-6)
    np.testing.assert_allclose(again["whole"]["low"], whole["whole"]["low"], atol=1e-6)
    before = {commit.sha256 for commit in iterate_commits(many, again["stage"])}
    assert intervene(many, config) == again
    assert before == {commit.sha256 for commit in iterate_commits(many, again["stage"])}


def test_rows_that_did_not_flip_alone(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    store, config = make(tmp_path, rows=5, shard=1)
    plan_rows = [row for row in rows_of(store, "generate") if not row["flipped"]]
    assert len(plan_rows) == 1
    table = intervene(store, config)
    assert table["n"] == 4
    few, config = make(tmp_path / "few", rows=1)
    assert intervene(few, config)["whole"]["concentration"]["low"] is None  # one row: no interval


def test_no_flipped_row(
    tmp_path: Path, models: dict[str, nn.Module], make_run: Callable[..., Any]
) -> None:
    made = make_run(rows=1, shards=1, models=("classifier",))  # its row did not flip
    table = intervene(made.store, made.config)
    assert table["n"] == 0
    assert table["audit"]["verdict"].startswith("No row was flipped")
    assert list(format_table(table)) == ["no flipped row to measure"]


def test_settings(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    store, config = make(tmp_path, interventions={"places": ["mouth"]})
    with pytest.raises(UserError, match=r"interventions.places: expected names of the masks' reg"):
        intervene(store, config)
    assert region_names(config) == ()
    off = config.model_copy(
        update={"interventions": config.interventions.model_copy(update={"enabled": False})}
    )
    assert skipped(off) == {"attribution", "interventions"}
    assert skipped(config) == {"attribution"}


def test_scores_of_other_models_do_not_use_the_table(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    store, config = make(tmp_path)
    run(config, stages=("interventions", "score"), store=store)
    assert read_sealed(store, "score/table.json")["audit"] is not None
    raw = config.model_dump()
    raw["models"]["second"] = dict(raw["models"]["classifier"])
    told = score(store, RunConfig.model_validate(raw))
    assert told["audit"] is None
    assert "core_share" not in {line["metric"] for line in told["metrics"]}


def test_other_mixtures_for_other_settings(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    store, config = make(tmp_path, rows=10)
    first = intervene(store, config)
    other = config.model_copy(
        update={"interventions": config.interventions.model_copy(update={"grid": 4})}
    )
    second = intervene(store, other)
    assert first["stage"] != second["stage"]
    assert second["grid"] == [4, 4]
    assert int(np.argmax(second["whole"]["map"])) == 3  # the upper right of 4 x 4 cells


def test_counterfactuals_that_others_made_and_a_black_box(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    """No method of ours, so any flip counts; a classifier that gives labels alone."""

    class Labels(PatchReader):
        def forward(self, images: Tensor) -> Tensor:
            chosen = super().forward(images).argmax(1)
            return torch.nn.functional.one_hot(chosen, 2).float().log()  # 0 and -infinity

    models["classifier"] = Labels()
    other = {"target": "elsewhere", "settings": {"column": "counterfactual"}}
    store, config = make(tmp_path, method=other)
    table = intervene(store, config)
    assert int(np.argmax(table["whole"]["map"])) == TOP
    assert table["whole"]["effect"] == pytest.approx(32)  # from -16 to 16, the limit of log-odds
    assert table["core"]["cells"] <= 3


def test_blocks_and_batches_that_fit_in_memory(
    tmp_path: Path, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(PatchReader):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 16:
                raise MemoryError
            return super().forward(images)

    whole, config = make(tmp_path / "whole")
    usual = intervene(whole, config)
    models["classifier"] = Small()
    monkeypatch.setattr("actors.modality.AHEAD_BYTES", 5 * 3 * SIZE * SIZE)  # five images
    store, config = make(tmp_path / "blocks")
    table = intervene(store, config)
    assert table["n"] == usual["n"]
    np.testing.assert_allclose(table["whole"]["map"], usual["whole"]["map"], atol=1e-6)
    assert table["control"]["n"] > 0
    assert table["core"]["n"] == usual["core"]["n"]


def test_a_tint_has_no_place_and_the_look_says_so(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    """The pairs differ in one patch, and a classifier of the mean colour sees it as a tint."""

    class Tint(PatchReader):
        def forward(self, images: Tensor) -> Tensor:
            z = 400 * (images.mean((1, 2, 3)) - 0.49)
            return torch.stack([-z / 2, z / 2], 1)

    models["classifier"] = Tint()
    store, config = make(tmp_path)
    table = intervene(store, config)
    assert table["look"]["value"] == pytest.approx(1, abs=0.1)
    assert table["look"]["n"] >= 16
    assert table["whole"]["spread"] is True
    assert table["audit"]["verdict"].startswith("The effect is spread over the image")
    models["classifier"] = PatchReader()
    other = intervene(*make(tmp_path / "patch"))
    assert abs(other["look"]["value"]) < 0.3
    assert other["whole"]["spread"] is False


def test_networks_that_take_one_image_at_a_time(
    tmp_path: Path, models: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    class One(PatchReader):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) != 1:
                raise RuntimeError("expected input of shape (1,3,32,32)")
            return super().forward(images)

    models["classifier"] = One()
    store, config = make(tmp_path, rows=6, shard=6)
    table = intervene(store, config)
    assert int(np.argmax(table["whole"]["map"])) == TOP
    assert table["core"]["n"] == table["n"] == 5
    said = capsys.readouterr().err
    assert said.count("with 64 mixtures at a time: goes on with 1") == 1
    broken = PatchReader()
    broken.forward = lambda images: 1 / 0  # type: ignore[method-assign,assignment]
    models["classifier"] = broken
    with pytest.raises(ZeroDivisionError):  # a fault is not hidden
        intervene(*make(tmp_path / "broken", rows=6, shard=6))


def test_an_asked_for_table_counts_where_run_skips_the_stage(
    tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    store, config = make(tmp_path, interventions={"enabled": False})
    intervene(store, config)
    told = score(store, config)
    assert told["audit"] is not None
    assert "core_share" in {line["metric"] for line in told["metrics"]}
