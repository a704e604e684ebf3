"""The scoring worker alone: what it reads, what it writes, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from actors.rows.scores import SCORES
from actors.score import Score
from actors.worker import Job
from configs.schema import RunConfig
from configs.strict import UserError
from storage.codec import encode
from storage.commit import commit_shard, read_commits, read_committed
from storage.records import Shard
from storage.schema import COUNTERFACTUALS
from storage.uri import Store, open_store

SHARD = Shard(3, "f", "f", "v", start=0, rows=4, offset=0)


class Brightness:
    """Class 1 where the picture is bright; an attribute oracle of two when asked."""

    def __init__(self, *, classes: tuple[str, ...] = ("dark", "bright")) -> None:
        self.classes, self.attributes = classes, ("Bright", "Red")
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        mean = images.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1) * 9


class Oracle(Brightness):
    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images[:, 0].mean((1, 2))], 1)


def config(*models: str, **score: Any) -> tuple[RunConfig, Job]:
    """What a worker gets of a run with these models; all three by default."""
    specs = {
        "classifier": {"role": "classifier", "target": "a.b", "classes": ["dark", "bright"]},
        "oracle": {"role": "attributes", "target": "a.b", "classes": ["Bright", "Red"]},
        "second": {"role": "classifier", "target": "a.b", "classes": ["dark", "bright"]},
    }
    run = {
        "name": "run",
        "data": {"path": "data", "size": 6, "max_pixels": 100},
        "engine": {"device": "cpu"},
        "models": {name: specs[name] for name in models or specs},
        "method": {"target": "a.b"},
        "score": {"causal": ["Bright"], "batch": 3, "bootstrap": 10, **score},
    }
    return RunConfig.model_validate(run), Job()


def record(i: int, before: int, after: int, **changed: Any) -> dict[str, Any]:
    picture = [np.full((6, 6, 3), level, np.uint8) for level in (before, after)]
    row = {
        "id": f"r{i}",
        "cf_id": f"c{i}",
        "k": 0,
        "row": i,
        "label": 0,
        "source": 0,
        "target": 1,
        "predicted": int(after > 127),
        "correct": True,
        "flipped": after > 127,
        "seconds": 0.25,
        "forward": 7,
        "method": "m",
        "original": {"bytes": encode(picture[0]), "path": "o.png"},
        "counterfactual": {"bytes": encode(picture[1]), "path": "c.png"},
    }
    return {**row, **changed}


@pytest.fixture
def made(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Store, dict[str, Any]]]:
    """made(records, **models): a store with one generated shard, and the models by name."""

    def make(records: list[dict[str, Any]], **models: Any) -> tuple[Store, dict[str, Any]]:
        store = open_store(tmp_path)
        built = {"classifier": Brightness(), "oracle": Oracle(), "second": Brightness(), **models}
        monkeypatch.setattr(
            "actors.score.load_models", lambda c, names, device: {n: built[n] for n in names}
        )
        table = pa.Table.from_pylist(records, schema=COUNTERFACTUALS)
        bad = [{"id": f"bad{i}", "reason": "broken"} for i in range(SHARD.rows - len(records))]
        commit_shard(
            store, "generate", SHARD, table, rows_in=4, quarantined=bad, seconds=1.0, extra={}
        )
        return store, built

    return make


def test_scores_of_a_shard(made: Any) -> None:
    store, _ = made([record(0, 50, 200), record(1, 50, 100), record(2, 50, 50), record(3, 50, 200)])
    receipt = Score(*config(), "score-1", store.uri)(SHARD)
    assert {
        k: getattr(receipt, k) for k in ("index", "rows_in", "rows_out", "quarantined", "flipped")
    } == {
        "index": 3,
        "rows_in": 4,
        "rows_out": 4,
        "quarantined": 0,
        "flipped": 2,
    }
    commit = read_commits(store, "score-1")[3]
    assert commit.extra["classes"] == ["dark", "bright"]
    assert commit.extra["attributes"] == ["Bright", "Red"]
    assert commit.extra["verdict_differs"] == 0
    table = read_committed(store, commit)
    assert table.schema.equals(SCORES)
    rows = table.to_pylist()
    assert [row["flipped"] for row in rows] == [True, False, False, True]
    assert [row["l1"] for row in rows] == pytest.approx([150 / 255, 50 / 255, 0, 150 / 255])
    assert [row["sparsity"] for row in rows] == [1, 1, 0, 1]
    p = 1 / (1 + np.exp(-18 * (50 / 255 - 0.5)))
    # a pair without a change: its constant
    assert rows[2]["cout"] == pytest.approx(2 * p - 1, abs=1e-6)
    # nothing changed: no share
    assert (rows[2]["causal_share"], rows[2]["changed_causal"]) == (None, 0)
    assert (rows[0]["causal_share"], rows[0]["changed_causal"], rows[0]["changed_spurious"]) == (
        0.5,
        1,
        1,
    )
    assert rows[0]["attributes_after"] == pytest.approx([200 / 255] * 2)
    assert (rows[0]["second_agrees"], rows[1]["second_agrees"], rows[0]["second_base"]) == (1, 0, 1)
    assert (rows[0]["seconds"], rows[0]["forward"], rows[0]["backward"]) == (0.25, 7, None)


def test_rows_do_not_depend_on_the_batch(made: Any) -> None:
    store, built = made([record(i, 40 + 3 * i, 140 + 9 * i) for i in range(4)])
    tables = []
    for stage, batch in (("score-a", 1), ("score-b", 64)):
        Score(*config(batch=batch), stage, store.uri)(SHARD)
        tables.append(read_committed(store, read_commits(store, stage)[3]).to_pandas())
    for name in ("cout", "p_target", "l1", "l2", "linf"):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-6)
    assert max(built["classifier"].batches) == 64  # composites of several rows go together


class Memory(Brightness):
    """Its GPU holds so many images."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.holds = holds

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > self.holds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().__call__(images)


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_scores_the_same(made: Any) -> None:
    records = [
        record(0, 50, 200),
        record(1, 60, 190),
        record(2, 70, 180, id="r1", k=1),
        record(3, 80, 170),
    ]
    store, built = made(records)
    settings = config(batch=16)
    receipt = Score(*settings, "score-a", store.uri)(SHARD)
    assert receipt.notes == []
    built["classifier"] = Memory(3)
    receipt = Score(*settings, "score-b", store.uri)(SHARD)
    assert receipt.notes == ["out of memory with score.batch=16: goes on with 2"]
    tables = [read_committed(store, read_commits(store, f"score-{x}")[3]).to_pandas() for x in "ab"]
    assert tables[1]["cf_id"].to_list() == ["c0", "c1", "c2", "c3"]
    for name in ("cout", "p_target", "l1", "second_p_target"):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-6)


class OneByOne(Brightness):
    """Takes one image at a time, as a network does that was exported for one."""

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            raise RuntimeError(f"shape '[1, 4]' is invalid for {len(images)} images")
        return super().__call__(images)


def test_a_network_that_takes_one_image_at_a_time_is_asked_so(made: Any) -> None:
    records = [record(0, 50, 200), record(1, 60, 190), record(2, 80, 170)]
    store, built = made(records)
    Score(*config(batch=16), "score-a", store.uri)(SHARD)
    built["classifier"] = OneByOne()
    receipt = Score(*config(batch=16), "score-b", store.uri)(SHARD)
    (note,) = receipt.notes
    assert note.startswith("RuntimeError: shape '[1, 4]' is invalid for 3 images with score.batch")
    tables = [read_committed(store, read_commits(store, f"score-{x}")[3]).to_pandas() for x in "ab"]
    for name in ("cout", "p_target", "l1", "second_p_target"):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-6)


def test_a_row_that_does_not_fit_in_memory_alone_is_told_in_a_line(made: Any) -> None:
    store, _ = made([record(0, 50, 200)], classifier=Memory(0))
    with pytest.raises(
        UserError, match="shard 3, row c0: expected it to fit in memory alone, got OutOfMemoryError"
    ):
        Score(*config(), "score-1", store.uri)(SHARD)


def test_a_wrong_verdict_in_the_table_is_counted_and_judged_anew(made: Any) -> None:
    store, _ = made([record(0, 50, 100, flipped=True, predicted=1), record(1, 50, 200)])
    Score(*config(), "score-1", store.uri)(SHARD)
    commit = read_commits(store, "score-1")[3]
    assert commit.extra["verdict_differs"] == 1
    assert read_committed(store, commit)["flipped"].to_pylist() == [False, True]


@pytest.mark.parametrize(
    "cell", [None, {"bytes": b"", "path": ""}, {"bytes": encode(np.zeros((6, 6), np.uint8))[:40]}]
)
def test_a_stored_image_that_is_none_is_an_error_that_names_the_row(made: Any, cell: Any) -> None:
    store, _ = made([record(0, 50, 200), record(1, 50, 200, counterfactual=cell)])
    with pytest.raises(
        UserError, match="shard 3, row c1: expected a stored counterfactual that can be read, got "
    ):
        Score(*config(), "score-1", store.uri)(SHARD)
    assert read_commits(store, "score-1") == {}


class Sick(Brightness):
    """No number for what is nearly white."""

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(images).where((images.mean((1, 2, 3)) < 0.9)[:, None], torch.nan)


class SickOracle(Oracle, Sick):
    def __call__(self, images: Tensor) -> Tensor:
        return Oracle.__call__(self, images).where(
            (images.mean((1, 2, 3)) < 0.9)[:, None], torch.nan
        )


def test_what_models_give_no_number_for_is_null_in_that_row_alone_and_counted(made: Any) -> None:
    records = [record(0, 50, 200), record(1, 50, 250), record(2, 250, 60), record(3, 60, 180)]
    store, built = made(records)
    Score(*config(), "score-a", store.uri)(SHARD)
    built |= {"classifier": Sick(), "oracle": SickOracle(), "second": Sick()}
    Score(*config(), "score-b", store.uri)(SHARD)
    commit = read_commits(store, "score-b")[3]
    good, rows = (
        read_committed(store, read_commits(store, f"score-{x}")[3]).to_pylist() for x in "ab"
    )
    assert [rows[0], rows[3]] == [good[0], good[3]]
    unknown = (
        "attributes_before",
        "attributes_after",
        "changed_all",
        "changed_others",
        "changed_causal",
        "cout",
    )
    for name in ("p_target", "second_p_target", "second_agrees", *unknown):
        assert (name, rows[1][name]) == (name, None)
    assert (rows[1]["flipped"], rows[1]["second_base"], rows[1]["l1"]) == (False, 1, good[1]["l1"])
    for name in ("second_base", *unknown):
        assert (name, rows[2][name]) == (name, None)
    assert (rows[2]["p_target"], rows[2]["second_agrees"]) == (good[2]["p_target"], 0)
    missing = commit.extra["not_finite"]
    assert {
        name: missing[name] for name in ("p_target", "cout", "attributes_after", "changed_all")
    } == {
        "p_target": 1,
        "cout": 2,
        "attributes_after": 2,
        "changed_all": 2,
    }
    assert read_commits(store, "score-a")[3].extra["not_finite"] == {}


def test_an_empty_shard_and_no_further_models(made: Any) -> None:
    store, _ = made([])
    settings = config("classifier", causal=[])
    assert Score(*settings, "score-1", store.uri)(SHARD).rows_out == 0
    table = read_committed(store, read_commits(store, "score-1")[3])
    assert (table.num_rows, table.schema.equals(SCORES)) == (0, True)


def test_models_that_do_not_fit_are_refused(made: Any) -> None:
    store, _ = made([record(0, 50, 200)], second=Brightness(classes=("bright", "dark")))
    with pytest.raises(
        UserError,
        match=r"models\.second: expected the classifier's classes, dark, bright, got bright",
    ):
        Score(*config(), "score-1", store.uri)
    settings = config("classifier", "oracle", causal=["Brigt"])
    with pytest.raises(UserError, match="got 'Brigt': did you mean 'Bright'"):
        Score(*settings, "score-1", store.uri)
    with pytest.raises(
        UserError, match=r"score\.causal: expected an oracle in models to see Bright, got none"
    ):
        Score(*config("classifier"), "score-1", store.uri)
