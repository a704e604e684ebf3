"""A method that gives three answers to a query: its rows are stored, set aside, tried again and
verified as wholes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from actors.answer import Answerer
from actors.generate import Generate
from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    row_generators,
    row_noise,
    settle,
)
from pipelines.engine.fingerprints import worker_config
from storage.codec import decode, encode
from storage.commit import commit_shard, read_commits, read_committed, to_retry, todo
from storage.plan import plan_shards
from storage.records import Plan, Shard
from storage.run import read_plan, write_plan
from storage.schema import counterfactual_id
from storage.uri import Store, open_store
from storage.verify import verify

ROWS, SHARD, SIZE, EACH = 7, 3, 8, 3


class Brightness(nn.Module):
    """By the mean; sums within a row alone, so that its numbers do not depend on the batch."""

    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        z = 20 * (images.flatten(1).double().sum(1) / images[0].numel() - 0.5)
        return torch.stack([-z, z], 1)


class Thrice:
    """Moves a picture towards its target by chance, three times; `most` queries fit in memory."""

    needs = ("classifier",)
    most = 99

    def __call__(self, queries: ImageQueries, classifier: Any) -> ImageAnswers:
        if len(queries) > self.most:
            raise MemoryError
        many = queries.repeated(EACH)
        far = (
            row_noise(row_generators(queries.seed), (EACH, 1, 1, 1), queries.images.device)
            .flatten(0, 1)
            .abs()
        )
        images = many.images + 0.4 * far * (2 * many.target - 1)[:, None, None, None]
        steps = torch.arange(EACH).repeat(len(queries))
        return settle(
            classifier, images, many, ["stuck"] * len(many), Budget.of(len(many)), steps=steps
        )


class Lossy(Thrice):
    """Loses an answer."""

    def __call__(self, queries: ImageQueries, classifier: Any) -> ImageAnswers:
        found = super().__call__(queries, classifier)
        short = {
            name: getattr(found, name)[:-1]
            for name in ("counterfactual", "flipped", "steps", "reasons")
        }
        return ImageAnswers(**short, forward=found.forward[:-1], backward=found.backward[:-1])


class Stepless(Thrice):
    """Counts the steps of queries, not of answers."""

    def __call__(self, queries: ImageQueries, classifier: Any) -> ImageAnswers:
        found = super().__call__(queries, classifier)
        found.steps = found.steps[: len(queries)]
        return found


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Generate, Store]]:
    """make(name, method): a worker, and the store of its planned run over 7 pictures."""
    monkeypatch.setattr(
        "actors.answer.load_models", lambda config, names, device: {"classifier": Brightness()}
    )
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 250, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(ROWS)]
    (tmp_path / "data").mkdir()
    cells = [{"bytes": encode(picture), "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": cells}), tmp_path / "data" / "a.parquet")
    shards, _ = plan_shards(str(tmp_path / "data"), shard_rows=SHARD, rows=None)

    def make(
        name: str, method: Thrice, core: bool = False, **engine: Any
    ) -> tuple[Generate, Store]:
        monkeypatch.setattr("actors.answer.load_method", lambda config: method)
        config = RunConfig.model_validate(
            {
                "name": name,
                "data": {"path": str(tmp_path / "data"), "size": SIZE},
                "models": {
                    "classifier": {
                        "role": "classifier",
                        "target": "a.b",
                        "classes": ["dark", "bright"],
                    }
                },
                "method": {
                    "target": "counterfactory.methods.pixel_pgd.PixelPGD",
                    "core": core,
                },
                "engine": {"batch": 2, **engine},
            }
        )
        store = open_store(tmp_path / name)
        write_plan(store, Plan({}, shards, ROWS))
        return Generate(
            *worker_config(config, {"classifier": "none"}), "generate", store.uri
        ), store

    return make


def work(
    worker: Generate, store: Store, shards: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    return [
        worker(shard)
        for shard in (todo(read_plan(store), store, "generate") if shards is None else shards)
    ]


def stored(store: Store) -> list[dict[str, Any]]:
    tables = [
        read_committed(store, commit)
        for _, commit in sorted(read_commits(store, "generate").items())
    ]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).drop_columns(["seconds"]).to_pylist()
    return rows


def test_every_batch_gives_the_same_answers_each_under_its_own_name(make: Any) -> None:
    worker, store = make("two", Thrice())
    receipts = work(worker, store)
    assert [(r.rows_in, r.rows_out, r.answers) for r in receipts] == [
        (3, 3, 9),
        (3, 3, 9),
        (1, 1, 3),
    ]
    rows = stored(store)
    assert [row["k"] for row in rows] == [0, 1, 2] * ROWS
    assert [row["steps"] for row in rows] == [0, 1, 2] * ROWS
    fingerprint = worker.answerer.job.method_fingerprint
    for row in rows:
        assert row["cf_id"] == counterfactual_id(row["id"], fingerprint, row["target"], row["k"])
        assert row["counterfactual"]["path"] == f"{row['cf_id']}.png"
        seen = decode(row["counterfactual"]["bytes"], size=SIZE, crop=None, max_pixels=100)
        assert row["flipped"] == ((seen.mean() > 127.5) == bool(row["target"]))
    assert (
        len({row["counterfactual"]["bytes"] for row in rows})
        == len({row["cf_id"] for row in rows})
        == len(rows)
    )
    assert (
        len({row["original"]["bytes"] for row in rows}) == len({row["id"] for row in rows}) == ROWS
    )
    assert 0 < sum(row["flipped"] for row in rows) < len(rows)
    assert verify(store) == []
    for batch in (1, 3):
        other, elsewhere = make(f"of-{batch}", Thrice(), batch=batch)
        work(other, elsewhere)
        assert stored(elsewhere) == rows
    short = Thrice()
    short.most = 1
    small, elsewhere = make("short", short, batch=3)
    work(small, elsewhere)
    assert stored(elsewhere) == rows
    assert small.batch.size == 1  # halved until a row's answers fitted


def test_cores_are_stored_and_judged_in_the_place_of_the_answers(make: Any) -> None:
    worker, store = make("whole", Thrice())
    work(worker, store)
    cut, elsewhere = make("core", Thrice(), core=True)
    work(cut, elsewhere)
    full, cores = stored(store), stored(elsewhere)
    assert not {row["cf_id"] for row in full} & {row["cf_id"] for row in cores}
    smaller = 0
    for whole, core in zip(full, cores, strict=True):
        assert (core["id"], core["k"], core["flipped"]) == (
            whole["id"],
            whole["k"],
            whole["flipped"],
        )
        x, y, z = (
            decode(row[name]["bytes"], size=SIZE, crop=None, max_pixels=100).astype(int)
            for row, name in (
                (whole, "original"),
                (whole, "counterfactual"),
                (core, "counterfactual"),
            )
        )
        assert (abs(z - x) <= abs(y - x) + 1).all()
        assert core["flipped"] == ((z.mean() > 127.5) == bool(core["target"]))
        assert (core["forward"] > whole["forward"]) == whole["flipped"]
        assert core["backward"] == whole["backward"]
        assert core["mask"] is not None
        smaller += bool((z != y).any())
        if not whole["flipped"]:
            assert (z == y).all()
            assert core["p_target_after"] == whole["p_target_after"]
    assert smaller
    assert verify(elsewhere) == []
    for batch in (1, 3):
        other, again = make(f"core-{batch}", Thrice(), core=True, batch=batch)
        work(other, again)
        assert stored(again) == cores


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            Lossy(),
            r"PixelPGD to give the same number of answers, 1 or more, to each of 2 rows, got 5",
        ),
        (
            Stepless(),
            r"expected steps of the 6 answers of counterfactory.methods.pixel_pgd.PixelPGD, got 2",
        ),
    ],
)
def test_answers_that_do_not_go_to_the_queries_end_the_run_and_blame_no_row(
    make: Any, method: Any, told: str
) -> None:
    worker, store = make("run", method)
    with pytest.raises(UserError, match=told):
        work(worker, store)
    assert read_commits(store, "generate") == {}


def test_every_batch_of_a_worker_has_as_many_answers(make: Any) -> None:
    worker, _ = make("run", Thrice())
    worker.answerer.each = 2
    with pytest.raises(UserError, match="PixelPGD to give 2 answers to each of 2 rows, got 6"):
        worker(load_plan(worker)[0])


def load_plan(worker: Generate) -> list[Shard]:
    return read_plan(worker.store).shards


def test_a_row_of_which_one_answer_cannot_be_stored_is_set_aside_whole_and_tried_again(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = make("whole", Thrice())
    work(whole, expected)
    worker, store = make("run", Thrice())
    bad, plain = stored(expected)[4], Answerer.__call__  # a row's second answer

    def call(self: Answerer, batch: Any) -> Any:
        answers, unusable = plain(self, batch)
        for answer in answers:
            if answer.cf_id == bad["cf_id"]:
                answer.after = torch.full((2,), torch.nan)
        return answers, unusable

    monkeypatch.setattr(Answerer, "__call__", call)
    work(worker, store)
    (quarantined,) = [
        entry for c in read_commits(store, "generate").values() for entry in c.quarantined
    ]
    assert quarantined["id"] == bad["id"]
    assert quarantined["reason"].startswith("answer 1: the classifier gave the counterfactual")
    assert verify(store) == []
    assert stored(store) == [row for row in stored(expected) if row["id"] != bad["id"]]

    monkeypatch.setattr(Answerer, "__call__", plain)
    (receipt,) = work(worker, store, to_retry(read_plan(worker.store), store))
    assert (
        receipt.rows_in,
        receipt.rows_out,
        receipt.answers,
        receipt.quarantined,
    ) == (3, 3, 9, 0)
    assert stored(store) == stored(expected)
    assert verify(store) == []


def test_a_run_that_was_killed_ends_with_the_same_table(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = make("whole", Thrice())
    work(whole, expected)
    worker, store = make("run", Thrice())
    put = type(store).put_new

    def killed(self: Store, path: str, data: bytes) -> bool:
        if path == "commit/generate/000001.json":  # its data file is written
            raise KeyboardInterrupt
        return bool(put(self, path, data))

    monkeypatch.setattr(type(store), "put_new", killed)
    with pytest.raises(KeyboardInterrupt):
        work(worker, store)
    monkeypatch.undo()
    assert list(read_commits(store, "generate")) == [0]
    monkeypatch.setattr(
        "actors.answer.load_models", lambda config, names, device: {"classifier": Brightness()}
    )
    again, _ = make("run", Thrice(), batch=3)
    work(again, store)
    assert stored(store) == stored(expected)
    assert verify(store) == []


def test_a_lost_answer_is_noticed(make: Any) -> None:
    worker, store = make("run", Thrice())
    work(worker, store)
    commit = read_commits(store, "generate")[2]
    table = read_committed(store, commit).slice(0, 2)
    said: dict[str, Any] = {
        "rows_in": 1,
        "rows_out": 1,
        "quarantined": [],
        "seconds": 0.0,
        "extra": {},
    }
    other = open_store(f"{store.uri}-lost")
    write_plan(other, Plan({}, load_plan(worker), ROWS))
    for index, shard in enumerate(load_plan(worker)[:2]):
        kept = read_committed(store, read_commits(store, "generate")[index])
        commit_shard(
            other, "generate", shard, kept, **{**said, "rows_in": SHARD, "rows_out": SHARD}
        )
    commit_shard(other, "generate", load_plan(worker)[2], table, **said)
    assert verify(other) == [
        "generate: shard 2: expected 3 answers to each row, as elsewhere, got 2"
    ]
    kept = read_committed(store, read_commits(store, "generate")[0])
    with pytest.raises(
        ValueError, match="expected as many answers to each of 3 rows, got 8 answers"
    ):
        commit_shard(
            other,
            "generate",
            load_plan(worker)[0],
            kept.slice(0, 8),
            **{**said, "rows_in": 3, "rows_out": 3},
        )
    kept = kept.set_column(
        kept.column_names.index("k"), "k", pa.array([0, 1, 3, *[0, 1, 2] * 2], pa.int32())
    )
    third = open_store(f"{store.uri}-other")
    write_plan(third, Plan({}, load_plan(worker)[:1], SHARD))
    commit_shard(
        third, "generate", load_plan(worker)[0], kept, **{**said, "rows_in": 3, "rows_out": 3}
    )
    name = kept["id"][0].as_py()
    assert verify(third) == [
        f"generate: shard 0: expected answers 0 to 2 to row {name}, got 0, 1, 3"
    ]
