"""Every mistake of a user is one line, before any training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.retrain import RetrainConfig, load_retrain
from configs.strict import UserError, presets
from pipelines.retrain import worker
from pipelines.retrain.job import retrain
from tests.pipelines.retrain.conftest import rows_of, write_set

World = Callable[..., RetrainConfig]


def error(make: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.Retrain, "made", None)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"arms": ["lines"]}, r"expected a known arm or the key `kind`, got 'lines': did you mean"),
        ({"arms": {"own": {"line": [0, 1]}}}, r"expected a known arm or the key `kind`, got 'own'"),
        ({"arms": {"line": {"line": [2, 1]}}}, r"expected 0 <= first <= second, got \[2.0, 1.0\]"),
        ({"arms": ["line"], "augment": []}, r"arms.line: expected `augment`, runs or sets"),
        ({"arms": ["balanced"], "groups": []}, r"arms.balanced: expected `groups`, got none"),
        ({"arms": ["dfr"], "validation": None}, r"arms.dfr: expected `validation` rows"),
        ({"arms": ["before"]}, r"arms.before: expected `classifier` in models, got none"),
        ({"arms": {"erm": {"train": {"stepz": 3}}}}, r"arms.erm.train: unknown key 'stepz'"),
        ({"seeds": [1, 1]}, r"seeds: expected each seed once"),
        ({"test": None}, r"expected `test`, the rows to compare on, got none"),
        ({"verdict": {"attribute": "a"}}, r"verdict: expected `oracle` in models, got none"),
        ({"choose": {"best": ["erm", "none"]}}, r"choose: expected|best: expected an arm"),
        ({"group_arms": ["other"]}, r"group_arms: expected an arm, got 'other'"),
        ({"groups": ["hue"]}, r"hue"),
        ({"mix": {"share": 1}}, r"mix.share"),
        ({"augment": ["nowhere"]}, r"augment: expected Parquet files at .*nowhere, got none"),
    ],
)
def test_settings_that_do_not_fit(world: World, over: dict[str, Any], told: str) -> None:
    assert re.search(told, error(lambda: retrain(world(**over))))


def test_a_set_with_other_classes_or_another_order_of_them(world: World, tmp_path: Path) -> None:
    write_set(tmp_path / "turned", 4, classes=["yes", "no"])
    text = error(lambda: retrain(world(augment=[str(tmp_path / "turned")])))
    assert "expected the classes no, yes in this order, got yes, no" in text
    write_set(tmp_path / "other", 4, classes=["cat", "dog"])
    text = error(lambda: retrain(world(augment=[str(tmp_path / "other")])))
    assert text.endswith("expected the classes no, yes, got cat, dog")


def test_a_set_whose_rows_are_in_the_test_rows(world: World, tmp_path: Path) -> None:
    write_set(tmp_path / "same", 4, source_id="test-7")
    text = error(lambda: retrain(world(augment=[str(tmp_path / "same")])))
    assert "expected no counterfactuals of rows in `test`, got 4 the same id" in text
    test = pq.read_table(tmp_path / "test.parquet")
    write_set(tmp_path / "pixels", 4, original=test["image"][0].as_py())
    text = error(lambda: retrain(world(augment=[str(tmp_path / "pixels")])))
    assert "got 4 the same pixels" in text


def test_a_set_without_rows_columns_or_labels(world: World, tmp_path: Path) -> None:
    empty = write_set(tmp_path / "empty", 2) / "data" / "part-00000.parquet"
    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    assert "expected rows in" in error(lambda: retrain(world(augment=[str(tmp_path / "empty")])))
    bare = write_set(tmp_path / "bare", 2) / "data" / "part-00000.parquet"
    pq.write_table(pq.read_table(bare).drop_columns(["original"]), bare)
    text = error(lambda: retrain(world(augment=[str(tmp_path / "bare")])))
    assert "expected the column 'original' of an augmentation set" in text
    write_set(tmp_path / "unlabelled", 2, original_label=None)
    over = {"augment": [str(tmp_path / "unlabelled")], "arms": ["copies"]}
    text = error(lambda: retrain(world(**over)))
    assert "arms.copies: expected counterfactuals with the column 'original_label'" in text
    plan = tmp_path / "run" / "plan.json"
    plan.parent.mkdir()
    plan.write_text("{}")
    text = error(lambda: retrain(world(augment=[str(plan.parent)])))
    assert text.endswith(f"`counterfactory augment {plan.parent}` first")


def test_a_group_without_rows(world: World, tmp_path: Path) -> None:
    def without(name: str) -> None:
        path = tmp_path / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.compute.equal(table["label"], table["cue"])), path)

    without("train")
    text = error(lambda: retrain(world(arms=["balanced"])))
    assert (
        "arms.balanced: train.data: expected rows of every group, got none of (no, cue=1)" in text
    )
    without("validation")
    text = error(lambda: retrain(world(arms=["dfr"])))
    assert "validation: expected rows of every group, got none of (no, cue=1), (yes, cue=0)" in text
    without("test")
    assert "test: expected rows of every group" in error(lambda: retrain(world()))


def test_labels_that_are_no_class(world: World, tmp_path: Path) -> None:
    test = {**rows_of(tmp_path, "test"), "label": "id"}
    assert "expected one of no, yes" in error(lambda: retrain(world(test=test)))


@pytest.mark.parametrize("name", presets("retrain"))
def test_every_shipped_retraining_is_valid(name: str) -> None:
    assert load_retrain(name).arms


def test_a_retraining_of_another_role_is_refused(world: World) -> None:
    text = error(lambda: world(("train.role=denoiser", "train.classes=[]")))
    assert "train: expected role classifier, got denoiser" in text
