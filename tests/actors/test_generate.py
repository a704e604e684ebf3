"""A worker that is given two shards reads one while it computes the other, and writes it while the
next computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import actors.generate as module
import actors.rows.read as rows_module
from actors.answer import Answerer
from actors.generate import Generate
from actors.worker import Job
from configs.schema import RunConfig
from pipelines.engine import runner as stage
from pipelines.engine.fingerprints import worker_config
from storage.attempts import HUNG, LOCAL, begin, note, note_hung_row
from storage.codec import encode
from storage.commit import read_commits, read_committed, to_retry, totals
from storage.plan import plan_shards
from storage.records import Plan, Receipt
from storage.uri import Store, open_store

SOON = 60.0  # a limit for a test that would otherwise hang
ROWS, SHARD, SIZE = 12, 4, 8


class Brightness(nn.Module):
    classes = ("dark", "bright")

    def forward(self, images: Tensor) -> Tensor:
        z = 20 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-z, z], 1)


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Generate, list[dict[str, Any]], Store]]:
    """make(name): a worker, the shards of 12 pictures, and the run's store."""
    monkeypatch.setattr(
        "actors.answer.load_models", lambda config, names, device: {"classifier": Brightness()}
    )
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 250, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(ROWS)]
    cells = [{"bytes": encode(picture), "path": None} for picture in pictures]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": cells}), tmp_path / "data" / "a.parquet")
    shards, _ = plan_shards(str(tmp_path / "data"), shard_rows=SHARD, rows=None)

    def make(name: str, **engine: Any) -> tuple[Generate, list[dict[str, Any]], Store]:
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
                    "settings": {"max_steps": 2},
                },
                "engine": {"batch": 2, **engine},
            }
        )
        uri = str(tmp_path / name)
        settings = worker_config(config, {"classifier": "none"})
        return Generate(*settings, stage="generate", run_uri=uri), shards, open_store(uri)

    return make


def answers(store: Store) -> list[dict[str, Any]]:
    """What was committed, without the times."""
    tables = [
        read_committed(store, commit)
        for _, commit in sorted(read_commits(store, "generate").items())
    ]
    return pa.concat_tables(tables).drop_columns(["seconds"]).to_pylist()


def test_two_shards_at_a_time_give_what_one_gives(make: Any) -> None:
    one, shards, store = make("one")
    for shard in shards:
        one(shard)
    two, _, other = make("two", batch=3)
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(two, shards))
    assert answers(other) == answers(store)
    assert [receipt.rows_out for receipt in receipts] == [SHARD] * 3


def test_a_shard_is_read_and_decoded_while_another_is_computed(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Event()
    worker, shards, _ = make("run")
    as_row, answer = rows_module.as_row, Answerer.__call__

    def reading(record: Any, number: int, *rest: Any) -> Any:
        row = as_row(record, number, *rest)
        if number == 2 * SHARD - 1:  # the second shard's last
            decoded.set()
        return row

    def computing(self: Any, batch: Any) -> Any:
        assert decoded.wait(SOON)
        return answer(self, batch)

    monkeypatch.setattr(rows_module, "as_row", reading)
    monkeypatch.setattr(Answerer, "__call__", computing)
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(worker, shards[:2]))
    assert [receipt.rows_out for receipt in receipts] == [SHARD, SHARD]


def test_a_shard_is_written_while_the_next_is_computed(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = threading.Event()
    worker, shards, _ = make("run")
    commit, answer, calls = module.commit_shard, Answerer.__call__, []

    def computing(self: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if sum(calls) > SHARD:
            computed.set()
        return answer(self, batch)

    def writing(*args: Any, **named: Any) -> Any:
        assert computed.wait(SOON)
        return commit(*args, **named)

    monkeypatch.setattr(Answerer, "__call__", computing)
    monkeypatch.setattr(module, "commit_shard", writing)
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(worker, shards[:2]))
    assert [receipt.rows_out for receipt in receipts] == [SHARD, SHARD]


def test_only_one_shard_computes_at_a_time(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, shards, _ = make("run")
    answer, inside = Answerer.__call__, threading.Lock()

    def computing(self: Any, batch: Any) -> Any:
        assert inside.acquire(blocking=False)
        try:
            return answer(self, batch)
        finally:
            inside.release()

    monkeypatch.setattr(Answerer, "__call__", computing)
    with ThreadPoolExecutor(2) as pool:
        receipts = list(pool.map(worker, shards))
    # a failed assertion would set a row aside
    assert sum(receipt.quarantined for receipt in receipts) == 0


def test_a_commit_says_how_long_its_worker_computed_and_waited(make: Any) -> None:
    worker, shards, store = make("run")
    receipts = [worker(shard) for shard in shards]
    sums = totals(read_commits(store, "generate"))
    for name in ("wait_seconds", "compute_seconds"):
        assert sums[name] == pytest.approx(sum(getattr(receipt, name) for receipt in receipts))
        assert sums[name] > 0


def test_a_shard_that_is_committed_already_is_not_made_again(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, shards, store = make("run")
    receipt = worker(shards[0])
    files = store.list("")
    monkeypatch.setattr(Answerer, "__call__", lambda *args: pytest.fail("computed"))
    again = worker(shards[0])
    assert {n: getattr(again, n) for n in ("index", "rows_in", "rows_out")} == {
        n: getattr(receipt, n) for n in ("index", "rows_in", "rows_out")
    }
    assert store.list("") == files


def test_a_row_with_an_answered_ones_id_stays_aside_when_it_is_tried_again_row_by_row(
    make: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "a.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.append_column("name", pa.array(["a", "b", "a", *map(str, range(ROWS - 3))])), path
    )
    worker, _, store = make("run", attempts=1)
    data = worker.config.data.model_copy(update={"id": "name"})
    worker.config = worker.config.model_copy(update={"data": data})
    (shard, *_), _ = plan_shards(str(path.parent), shard_rows=SHARD, rows=None)
    worker(shard)
    shard = replace(shard, revision=1)
    begin(store, "generate", shard, LOCAL)  # a death
    receipt = worker(shard)
    assert any("row by row" in note for note in receipt.notes)
    assert [row["id"] for row in answers(store)] == ["a", "b", "0"]
    assert receipt.quarantined == 1


def test_a_row_that_hung_when_it_was_tried_again_is_tried_once_more(make: Any) -> None:
    worker, shards, store = make("run")
    plan, hung = Plan({}, shards, 3 * SHARD), shards[0]
    for revision in range(3):
        place = replace(hung, revision=revision)
        note(store, begin(store, "generate", place, "ray"), HUNG)
        note_hung_row(store, "generate", place, 1)
        assert worker(place).quarantined == 1
        assert to_retry(plan, store) == [replace(hung, revision=revision + 1, tries=1)]
    assert worker(to_retry(plan, store)[0]).quarantined == 0


@pytest.mark.parametrize("times", [1, 4])
def test_ctrl_c_is_no_death_and_sets_no_row_aside(
    make: Any, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    worker, shards, store = make("run", attempts=3, kind="local")
    if times == 1:  # row by row
        for _ in range(3):
            begin(store, "generate", shards[0], LOCAL)
    answer = Answerer.__call__

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    def local() -> list[Receipt]:
        given: Any = (worker.config, Job(), None, "generate", lambda **_: worker)
        return list(stage._local(store.uri, *given, shards))

    for _ in range(times):
        monkeypatch.setattr(Answerer, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            local()
    monkeypatch.setattr(Answerer, "__call__", answer)
    receipts = local()
    assert [receipt.quarantined for receipt in receipts] == [0] * 3
    assert [bool(receipt.notes) for receipt in receipts] == [times == 1, False, False]


@pytest.mark.parametrize(("rows", "allowed"), [(1, 10.0), (3, 30.0), (4, 40.0), (64, 40.0)])
def test_a_large_batch_may_take_no_longer_than_a_few_rows(
    make: Any, monkeypatch: pytest.MonkeyPatch, rows: int, allowed: float
) -> None:
    worker, shards, _ = make("run", row_seconds=10)
    limits: list[float] = []
    monkeypatch.setattr(module, "limit", lambda seconds, *_: limits.append(seconds))
    worker._limit(rows, worker.begin(shards[0]).start, None)
    assert limits == [allowed]


def test_a_row_that_the_classifier_gives_no_number_for_is_set_aside(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, shards, store = make("run")
    plain, found = Answerer.__call__, []

    def sick(self: Any, batch: Any) -> Any:
        answered, bad = plain(self, batch)
        found.extend(answered)
        for i, side in ((1, "before"), (2, "after")):
            if len(found) > i:
                setattr(found[i], side, torch.tensor([torch.nan, 0.5]))  # argmax of this is class 0
        return answered, bad

    monkeypatch.setattr(Answerer, "__call__", sick)
    assert worker(shards[0]).quarantined == 2
    told = "the classifier gave the {} probabilities that are not finite"
    commit = read_commits(store, "generate")[0]
    assert [entry["reason"] for entry in commit.quarantined] == [
        told.format(side) for side in ("original", "counterfactual")
    ]
    assert [row["row"] for row in answers(store)] == [0, 3]


def test_deaths_over_one_shard_do_not_count_for_one_that_waits_row_by_row(make: Any) -> None:
    worker, shards, store = make("run", attempts=2)
    worker.session = "ray"
    for _ in range(2):
        begin(store, "generate", shards[1], "ray")
    for _ in range(9):  # its workers end while it waits
        begun = worker.begin(shards[1])
        assert begun.rows is None
        assert "a worker ended over it (2 so far)" in begun.notes[0]
    assert worker.finish(begun).quarantined == 0
    assert len(store.list("attempt")) == 3


def test_a_shard_whose_workers_die_outside_of_any_row_stops_the_run(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        """Stands for the end of the process."""

    from configs.strict import UserError

    def dies(*_: Any) -> Any:
        raise Death

    worker, shards, _ = make("run", attempts=2)
    worker.session = "ray"
    monkeypatch.setattr(module, "unanswered", lambda *_: iter(()))
    monkeypatch.setattr(worker, "_careful", dies)
    for _ in range(4):
        begun = worker.begin(shards[1])
        begun.left = None  # a dead worker notes nothing
        if begun.rows is not None:
            begun.rows.close()
            continue
        with pytest.raises(Death):
            worker.finish(begun)
    with pytest.raises(
        UserError,
        match=r"shard 1 \(4 rows from 4 of .*a\.parquet\): expected its worker to live.*got 4",
    ):
        worker.begin(shards[1])
