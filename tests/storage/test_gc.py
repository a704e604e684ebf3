"""gc: what nothing reads goes, what a commit names stays, and what is young stays."""

import json
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pytest

from storage import gc as module
from storage.attempts import LOCAL, begin
from storage.commit import commit_path, commit_shard, read_commits, read_committed, stages
from storage.gc import MARK, ORPHAN, SUPERSEDED, UNFINISHED, counts, delete, garbage
from storage.records import Commit, Plan, Shard
from storage.run import write_plan
from storage.uri import Store
from storage.verify import verify


def shard(index: int, **more: int) -> Shard:
    return Shard(index, "/in", "in", "1", start=index, rows=1, offset=index, **more)


def table(index: int) -> pa.Table:
    return pa.table(
        {"id": [f"row-{index}"], "cf_id": [f"cf-{index}"], "k": pa.array([0], pa.int32())}
    )


def commit(store: Store, stage: str, index: int, **more: int) -> Commit:
    return commit_shard(
        store,
        stage,
        shard(index, **more),
        table(index),
        rows_in=1,
        quarantined=[],
        seconds=1.0,
        extra={},
    )


@pytest.fixture
def run(store: Store) -> Store:
    """Two of three shards generated and scored, the second twice, and one older scoring."""
    write_plan(store, Plan({}, [shard(i) for i in range(3)], 3))
    for stage in ("generate", "score-new", "score-old"):
        for index in range(2):
            begin(store, stage, shard(index), LOCAL)
            commit(store, stage, index)
    commit(store, "generate", 1, revision=1)
    commit(store, "score-new", 1, revision=1)
    return store


def found(
    store: Store, older_than: float = -60.0, current: Collection[str] = ("score-new",)
) -> dict[str, set[str]]:
    """Paths by reason; by default everything is old, the test's own files and a server whose clock
    is ahead too.
    """
    out: dict[str, set[str]] = {}
    for file in garbage(store, older_than=older_than, current=current):
        out.setdefault(file.why, set()).add(file.path)
    return out


def test_only_marks_go_from_a_run_without_accidents(run: Store) -> None:
    marks = {path for path in run.list("attempt") if "score-old" not in path}
    old = {path for path in run.list("") if "score-old" in path}
    assert found(run) == {MARK: marks, SUPERSEDED: old}
    assert found(run, current=()) == {MARK: set(run.list("attempt"))}


def test_nothing_young_goes(run: Store) -> None:
    run.write("data/generate/000002-aa-bb.parquet", b"x")
    assert found(run, older_than=3600) == {}


def test_orphans_of_every_stage_are_found_and_nothing_that_a_commit_names(run: Store) -> None:
    orphans = {
        "data/generate/000000-aa-bb.parquet",
        "data/generate/000001-r1-aa-bb.parquet",
        "data/generate/000002-aa-bb.parquet",
        "data/score-new/000001-aa-bb.parquet",
    }
    for path in orphans:
        run.write(path, b"x")
    assert found(run)[ORPHAN] == orphans
    named = {c.file for s in ("generate", "score-new") for c in read_commits(run, s).values()}
    assert not named & set().union(*found(run).values())


def test_data_is_all_that_an_interrupted_deletion_left(run: Store) -> None:
    """Commits and marks of a superseded scoring went first, then the deletion was stopped."""
    for top in ("commit", "attempt"):
        for path in run.list(f"{top}/score-old"):
            run.remove(path)
    left = set(run.list("data/score-old"))
    assert len(left) == 2
    assert found(run)[SUPERSEDED] == left
    assert found(run, current=())[ORPHAN] == left


def test_a_shard_with_a_commit_that_cannot_be_read_keeps_its_files(run: Store) -> None:
    run.write("data/generate/000000-aa-bb.parquet", b"x")
    run.replace(commit_path("generate", 0), b"{")
    assert ORPHAN not in found(run)


def test_marks_of_open_shards_stay(run: Store) -> None:
    begin(run, "generate", shard(2), LOCAL)
    begin(run, "generate", shard(1, revision=2), LOCAL)
    run.write("poison/generate/000002/7-begun", b"")
    run.write("poison/generate/000001/1-begun", b"")
    marks = found(run)[MARK]
    assert "poison/generate/000001/1-begun" in marks
    assert not [path for path in marks if "000002" in path or ".r2" in path]


def test_half_written_files_go_and_locks_stay(run: Store) -> None:
    half = "data/generate/.0123456789abcdef0123456789abcdef.tmp"
    probe = ".probe-0123456789abcdef0123456789abcdef"
    for path in (half, probe, "commit/generate/.lock", "data/generate/.note"):
        run.write(path, b"x")
    assert found(run)[UNFINISHED] == {half, probe}


def test_a_scoring_that_still_grows_is_not_superseded(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = max(entry.written for entry in run.entries())
    monkeypatch.setattr(module.time, "time", lambda: now + 100)
    assert SUPERSEDED in found(run, older_than=50)
    monkeypatch.setattr(module.time, "time", lambda: now + 10)
    assert SUPERSEDED not in found(run, older_than=50)


def test_after_deletion_the_run_holds_and_the_old_scoring_is_unheard_of(run: Store) -> None:
    commit(run, "generate", 2)
    commit(run, "score-new", 2)
    run.write("data/generate/000000-aa-bb.parquet", b"x")
    before = {s: read_commits(run, s) for s in ("generate", "score-new")}
    listed = garbage(run, older_than=-60, current=["score-new"])
    order = [file.path for file in listed if file.why == SUPERSEDED]
    assert order.index("commit/score-old/000001.json") < min(
        i for i, p in enumerate(order) if p.startswith("data/")
    )
    assert sum(files for files, _ in counts(listed).values()) == len(listed)
    delete(run, listed)
    delete(run, listed)  # another gc was quicker
    assert stages(run) == ["generate", "score-new"]
    assert {s: read_commits(run, s) for s in before} == before
    for commits in before.values():
        for made in commits.values():
            assert read_committed(run, made).num_rows == 1
    assert garbage(run, older_than=-60, current=["score-new"]) == []
    assert verify(run) == []


def test_a_file_committed_while_gc_looks_is_kept(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver's data file is listed, then its commit lands, then gc reads the commits."""
    run.write("data/generate/000002-aa-bb.parquet", b"x")
    entries = Store.entries

    def then_commit(self: Store) -> Any:
        listed = entries(self)
        made = json.loads(run.read(commit_path("generate", 0)))
        made.update(shard=shard(2).to_json(), file="data/generate/000002-aa-bb.parquet")
        run.put_new(commit_path("generate", 2), json.dumps(made).encode())
        return listed

    monkeypatch.setattr(Store, "entries", then_commit)
    assert ORPHAN not in found(run)


def test_older_maps_are_superseded_as_older_scores_are(run: Store) -> None:
    for stage in ("interventions-new", "interventions-old"):
        commit(run, stage, 0)
    current = ["score-new", "interventions-new"]
    gone = found(run, current=current)[SUPERSEDED]
    assert {path.split("/")[1] for path in gone} == {"score-old", "interventions-old"}
    kept = found(run)[SUPERSEDED]  # no table of interventions: none of them is the older one
    assert {path.split("/")[1] for path in kept} == {"score-old"}
