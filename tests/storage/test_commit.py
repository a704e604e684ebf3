"""Commits: the first stands, whoever races or dies, and readers see nothing else."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import commit as commits
from storage.attempts import LOCAL, begin
from storage.commit import (
    commit_path,
    commit_shard,
    committed,
    data_path,
    read_commits,
    read_committed,
    stages,
    todo,
    totals,
)
from storage.records import Commit, Plan, Shard
from storage.uri import Store, open_store

ROOT = Path(__file__).parents[2]


def shard(index: int, rows: int = 3) -> Shard:
    return Shard(index, "in.parquet", "in.parquet", "1-1", start=0, rows=rows, offset=0)


def table(index: int, rows: int = 3) -> pa.Table:
    ids = [f"row-{index}-{i}" for i in range(rows)]
    return pa.table(
        {"id": ids, "cf_id": [f"cf-{name}" for name in ids], "k": pa.array([0] * rows, pa.int32())}
    )


def commit(store: Store, index: int = 0, stage: str = "generate", **given: Any) -> Commit:
    said: dict[str, Any] = {
        "rows_in": 3,
        "quarantined": [],
        "seconds": 1.5,
        "extra": {"flipped": 2, "note": "x"},
        **given,
    }
    return commit_shard(store, stage, shard(index), said.pop("table", table(index)), **said)


def test_a_commit_says_what_its_file_holds(store: Store) -> None:
    bad = [{"id": "row-x", "reason": "no image: null"}]
    made = commit(store, 7, table=table(7, 2), quarantined=bad)
    assert store.list("") == ["commit/generate/000007.json", made.file]
    data = store.read(made.file)
    assert made.file.startswith("data/generate/000007-")
    assert (made.sha256, made.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (made.rows_in, made.rows_out, made.rows) == (3, 2, 2)
    assert made.quarantined == bad
    assert made.shard == shard(7)
    assert made.versions["pyarrow"] == pa.__version__
    assert read_commits(store, "generate") == {7: made}
    assert read_committed(store, made).equals(table(7, 2))
    assert read_committed(store, made, ["k"]).column_names == ["k"]


def test_the_losing_writer_accepts_the_winners_commit(store: Store) -> None:
    first = commit(store, seconds=1.0)
    assert commit(store, seconds=2.0) == first
    assert read_commits(store, "generate") == {0: first}
    # the loser's file stays: nothing is deleted on the write path
    assert len(store.list("data")) == 2
    assert read_committed(store, first).equals(table(0))


def test_todo_is_plan_minus_commits(store: Store) -> None:
    plan = Plan({}, [shard(i) for i in range(4)], 12)
    assert todo(plan, store, "generate") == plan.shards
    for index in (2, 0):
        commit(store, index)
    assert committed(store, "generate") == [0, 2]
    assert [left.index for left in todo(plan, store, "generate")] == [1, 3]
    assert len(todo(plan, store, "score-1a2b")) == 4


def test_empty_tables_can_be_committed(store: Store) -> None:
    bad = [{"id": f"{i}", "reason": "bad"} for i in range(3)]
    made = commit(store, table=table(0, 0), quarantined=bad)
    assert (made.rows_out, made.rows) == (0, 0)
    assert read_committed(store, made).schema.equals(table(0, 0).schema)


def test_several_counterfactuals_a_row(store: Store) -> None:
    twice = pa.concat_tables([table(0), table(0)])
    made = commit(store, table=twice, rows_out=3)
    assert (made.rows_in, made.rows_out, made.rows) == (3, 3, 6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rows_in": 4}, r"expected rows_in = rows_out \+ quarantined, got 4 = 3 \+ 0"),
        ({"quarantined": [{"id": "x", "reason": "y"}]}, r"got 3 = 3 \+ 1"),
        ({"table": table(0, 2), "rows_in": 2}, "expected all 3 rows of shard 0, got 2"),
        ({"table": table(0, 2), "quarantined": [{"id": "x"}]}, "expected quarantined rows as"),
        ({"extra": {"loss": float("nan")}}, "JSON"),
    ],
)
def test_what_does_not_add_up_is_not_committed(
    store: Store, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        commit(store, **given)
    assert store.list("") == []


@pytest.mark.parametrize(
    "stage", ["", "../x", "a/b", "A", "-a", "a.b", "a b", "x" * 65, "gen\nerate"]
)
def test_no_stage_name_leaves_the_run_folder(store: Store, stage: str) -> None:
    calls = (
        lambda: commit(store, stage=stage),
        lambda: begin(store, stage, shard(0), LOCAL),
        lambda: committed(store, stage),
    )
    for call in calls:
        with pytest.raises(ValueError, match="expected"):
            call()
    assert store.list("") == []


@pytest.mark.parametrize("index", [-1, "../0", 1.0, True, None])
def test_no_shard_index_leaves_the_run_folder(store: Store, index: Any) -> None:
    for call in (
        lambda: commit(store, index),
        lambda: begin(store, "generate", shard(index), LOCAL),
    ):
        with pytest.raises(ValueError, match="expected a shard index >= 0"):
            call()
    assert store.list("") == []


@pytest.mark.parametrize(
    "file",
    ["../secret.parquet", "data/score/x.parquet", "/etc/passwd", "data/generate/../../x.parquet"],
)
def test_a_commit_cannot_name_a_file_elsewhere(store: Store, file: str) -> None:
    made = replace(commit(store), file=file)
    with pytest.raises(ValueError, match="expected a data file of stage generate"):
        data_path(made)
    with pytest.raises(ValueError, match="expected a data file of stage generate"):
        read_committed(store, made)
    store.replace(commit_path("generate", 0), json.dumps(made.to_json()).encode())
    with pytest.raises(ValueError, match=r"000000\.json: expected the commit of this shard"):
        read_commits(store, "generate")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"stage": "generate"}'])
def test_a_damaged_commit_is_named(store: Store, data: bytes) -> None:
    store.write(commit_path("generate", 3), data)
    with pytest.raises(
        ValueError, match=rf"000003\.json: expected the commit of this shard, got {len(data)} bytes"
    ):
        read_commits(store, "generate")


def test_a_commit_under_anothers_name_is_refused(store: Store) -> None:
    commit(store, 0)
    store.write(commit_path("generate", 1), store.read(commit_path("generate", 0)))
    with pytest.raises(ValueError, match=r"000001\.json: expected the commit of this shard"):
        read_commits(store, "generate")


def test_crash_leftovers_are_ignored_by_readers(store: Store) -> None:
    made = commit(store, 0)
    unfinished = ["commit/generate/.1f.tmp", "commit/generate/.lock", "data/generate/.2.tmp"]
    for path in ("data/generate/000001-aa-bb.parquet", "commit/generate/note.txt", *unfinished):
        store.write(path, b"half a fi")
    assert read_commits(store, "generate") == {0: made}
    assert todo(Plan({}, [shard(0), shard(1)], 6), store, "generate") == [shard(1)]


def test_stages_are_what_was_begun(store: Store) -> None:
    assert stages(store) == []
    commit(store, stage="a-score")
    begin(store, "b-score", shard(0), LOCAL)
    commit(store)
    assert stages(store) == ["generate", "a-score", "b-score"]


def test_totals_are_sums(store: Store) -> None:
    commit(store, 0)
    commit(
        store,
        1,
        table=table(1, 1),
        quarantined=[{"id": f"{i}", "reason": "r"} for i in range(2)],
        seconds=0.5,
    )
    sums = totals(read_commits(store, "generate"))
    assert sums["bytes"] == sum(len(store.read(path)) for path in store.list("data"))
    del sums["bytes"]
    counts = {
        "shards": 2,
        "rows_in": 6,
        "rows_out": 4,
        "rows": 4,
        "quarantined": 2,
        "seconds": 2.0,
        "flipped": 4,
    }
    assert sums == counts
    assert totals({})["rows_in"] == 0


def test_many_commits_are_read_in_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    made = commit(store, 0)
    count = 32 * commits.READERS + 5  # more than one helping
    for index in range(1, count):
        text = json.dumps(replace(made, shard=shard(index)).to_json())
        (tmp_path / commit_path("generate", index)).write_text(text)
    assert list(read_commits(store, "generate")) == list(range(count))


def test_threads_that_race_agree_on_one_commit(store: Store) -> None:
    for index in range(5):
        barrier, got = threading.Barrier(4), []

        def work(i: int) -> None:
            barrier.wait()  # noqa: B023
            got.append(commit(store, index, seconds=float(i)))  # noqa: B023

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 4
        assert all(made == got[0] for made in got)
        assert read_commits(store, "generate")[index] == got[0]


PROLOGUE = """
import os, signal, sys, json, time
import pyarrow as pa
from dataclasses import replace
from pathlib import Path
from storage import commit, local, records, uri
store = uri.open_store(sys.argv[1])
def work(index, seconds):
    shard = records.Shard(index, "in.parquet", "in.parquet", "1-1", 0, 3, index * 3)
    ids = [f"row-{index}-{i}" for i in range(3)]
    columns = {"id": ids, "cf_id": ["cf-" + n for n in ids], "k": pa.array([0] * 3, pa.int32())}
    given = {"rows_in": 3, "quarantined": [], "seconds": seconds, "extra": {}}
    return commit.commit_shard(store, "generate", shard, pa.table(columns), **given)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def dying_at(place, name, when=lambda *_: True):
    real = getattr(place, name)
    setattr(place, name, lambda *a, **k: die() if when(*a) else real(*a, **k))
def dying_after(place, name, when=lambda *_: True):
    real = getattr(place, name)
    setattr(place, name, lambda *a, **k: (real(*a, **k), when(*a) and die())[0])
"""


def start(code: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROLOGUE + code, *args]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_race_agree_on_every_commit(tmp_path: Path) -> None:
    code = """
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([work(i, float(sys.argv[2])).attempt for i in range(8)]))
"""
    workers = [start(code, str(tmp_path), str(i)) for i in range(3)]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    answers = []
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, _ = worker.communicate()
        answers.append(json.loads(out))
    store = open_store(tmp_path)
    stands = read_commits(store, "generate")
    assert answers == [[stands[i].attempt for i in range(8)]] * 3
    for made in stands.values():
        assert read_committed(store, made).num_rows == 3
    assert len(store.list("data")) == 24


DEATHS = {  # where the process dies: (code, data files left, commits left)
    "with half a data file written": (
        "dying_at(local.os, 'fsync', lambda fd: os.fstat(fd).st_size > 0)",
        0,
        0,
    ),
    "before the data file has its name": ("dying_at(local.os, 'replace')", 0, 0),
    "between data file and commit": ("dying_at(uri.Store, 'put_new')", 1, 0),
    "before the commit has its name": ("dying_at(local.os, 'link')", 1, 0),
    "right after the commit": ("dying_after(local.os, 'link')", 1, 1),
}


@pytest.mark.parametrize("where", DEATHS)
def test_a_kill_anywhere_leaves_a_folder_that_is_finished_by_doing_it_again(
    where: str, tmp_path: Path
) -> None:
    code, files, done = DEATHS[where]
    worker = start(f"{code}\nwork(0, 1.0)", str(tmp_path))
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    store, plan = open_store(tmp_path), Plan({}, [shard(0)], 3)
    assert len(store.list("data")) == files
    assert len(read_commits(store, "generate")) == done
    assert len(todo(plan, store, "generate")) == 1 - done
    before = read_commits(store, "generate")
    made = commit(store)
    assert before in ({}, {0: made})
    assert read_commits(store, "generate") == {0: made}
    assert read_committed(store, made).equals(table(0))
    assert todo(plan, store, "generate") == []
