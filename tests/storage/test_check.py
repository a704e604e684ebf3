"""What a stage's end notices by its commits alone, and what it reads for that."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.check import NAMED, check_stage
from storage.commit import commit_path, commit_shard, read_commits
from storage.names import doubled, hashes, keys, pack, unpack
from storage.records import Plan, Shard
from storage.run import write_plan
from storage.seal import read_sealed, sealed
from storage.uri import Store, open_store

ROWS = 4
SHARDS = [
    Shard(i, "/in.parquet", "in.parquet", "1-2", start=i * ROWS, rows=ROWS, offset=i * ROWS)
    for i in range(3)
]


def table(names: list[str]) -> pa.Table:
    return pa.table(
        {
            "id": names,
            "cf_id": [f"cf-{n}" for n in names],
            "k": [0] * len(names),
            "image": ["x"] * len(names),
        }
    )


def commit(store: Store, stage: str, index: int, names: list[str], bad: int = 0) -> None:
    quarantined = [{"id": f"bad-{i}", "reason": "broken"} for i in range(bad)]
    said: dict[str, Any] = {
        "rows_in": len(names) + bad,
        "quarantined": quarantined,
        "seconds": 0.0,
        "extra": {},
    }
    commit_shard(store, stage, SHARDS[index], table(names), **said)


def named(index: int) -> list[str]:
    return [f"row-{index}-{i}" for i in range(ROWS)]


@pytest.fixture
def run(tmp_path: Any) -> Store:
    store = open_store(tmp_path / "run")
    write_plan(store, Plan({}, SHARDS, 3 * ROWS))
    for i in range(3):
        names = named(i)[: ROWS - (i == 1)]
        commit(store, "generate", i, names, bad=int(i == 1))
        commit(store, "score-1a", i, names)
    return store


def edit(store: Store, index: int, stage: str = "generate", **fields: Any) -> None:
    path = commit_path(stage, index)
    store.replace(path, sealed({**read_sealed(store, path), **fields}))


def test_a_good_stage_has_nothing_to_say_and_opens_no_data(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "parquet", lambda self, path: pytest.fail(f"opened {path}"))
    listed: list[str] = []
    for name in ("list", "sizes"):
        real = getattr(Store, name)
        monkeypatch.setattr(
            Store, name, lambda self, path, real=real: (listed.append(path), real(self, path))[1]
        )
    assert check_stage(run, "generate") == []
    assert set(listed) == {"data/generate", "commit/generate"}
    assert check_stage(run, "score-1a") == []
    assert set(listed) == {"data/generate", "commit/generate", "data/score-1a", "commit/score-1a"}


DAMAGE: dict[str, tuple[Callable[[Store], Any], str, str]] = {
    "a lost data file": (
        lambda run: run.remove(read_commits(run, "generate")[2].file),
        "generate",
        "bytes, got none",
    ),
    "a truncated data file": (
        lambda run: run.replace(read_commits(run, "generate")[2].file, b"PAR1"),
        "generate",
        "bytes, got 4",
    ),
    "a lost commit": (
        lambda run: run.remove(commit_path("score-1a", 0)),
        "score-1a",
        "1 of 3 shards have no commit",
    ),
    "a damaged commit": (
        lambda run: run.replace(commit_path("generate", 0), b"{"),
        "generate",
        "expected the commit of this shard, got 1 bytes",
    ),
    "rows that do not add up": (
        lambda run: edit(run, 1, quarantined=[]),
        "generate",
        "shard 1: expected rows_in = rows_out + quarantined, got 4 = 3 + 0",
    ),
    "other rows than the plan's": (
        lambda run: edit(run, 1, shard={**SHARDS[1].to_json(), "start": 5}),
        "generate",
        "expected the commit of rows 4+4 of /in.parquet (1-2), got one of 5+4",
    ),
    "fewer rows than were generated": (
        lambda run: edit(run, 2, "score-1a", rows_in=3, rows_out=3),
        "score-1a",
        "shard 2: expected 4 rows in, got 3",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_that_commits_show_is_named(run: Store, what: str) -> None:
    damage, stage, words = DAMAGE[what]
    damage(run)
    lines = check_stage(run, stage)
    assert len(lines) == 1
    assert words in lines[0]


def test_open_shards_are_no_damage_where_part_of_a_stage_was_asked_for(run: Store) -> None:
    run.remove(commit_path("generate", 1))
    assert check_stage(run, "generate") == ["generate: 1 of 3 shards have no commit"]
    assert check_stage(run, "generate", whole=False) == []


@pytest.mark.parametrize("old", [False, True])
def test_an_id_in_two_shards_is_named_with_both(tmp_path: Any, old: bool) -> None:
    """old: of a run whose commits held no hashes yet."""
    store = open_store(tmp_path)
    write_plan(store, Plan({}, SHARDS, 3 * ROWS))
    for i, names in enumerate([named(0), ["row-0-1", *named(1)[1:]], named(2)]):
        commit(store, "generate", i, names)
        if old:
            made = read_sealed(store, commit_path("generate", i))
            del made["ids"]
            store.replace(commit_path("generate", i), json.dumps(made).encode())
    line = 'generate: expected each id and k once, got ["row-0-1", 0] 2 times, in shards [0, 1]'
    assert check_stage(store, "generate") == [line]


def test_many_doubles_are_named_up_to_a_limit_from_their_shards_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, count = open_store(tmp_path), NAMED + 5
    shards = [
        replace(SHARDS[0], index=i, start=i * count, rows=count, offset=i * count) for i in range(3)
    ]
    write_plan(store, Plan({}, shards, 3 * count))
    for part in shards:
        names = [f"row-{i}" if part.index else f"own-{i}" for i in range(count)]
        said: dict[str, Any] = {"rows_in": count, "quarantined": [], "seconds": 0.0, "extra": {}}
        commit_shard(store, "generate", part, table(names), **said)
    opened: list[str] = []
    parquet = Store.parquet
    monkeypatch.setattr(
        Store, "parquet", lambda self, path: (opened.append(path), parquet(self, path))[1]
    )
    lines = check_stage(store, "generate")
    assert len(lines) == NAMED + 1
    assert lines[-1] == "generate: and 5 more doubled"
    assert sorted(path.rpartition("/")[2][:6] for path in opened) == ["000001", "000002"]


def test_hashes_are_kept_through_a_commit() -> None:
    pairs, answers = keys(table(named(0)))
    values = hashes(pairs)
    assert pairs[1] == '["row-0-1", 0]'
    assert answers == [f"cf-{n}" for n in named(0)]
    np.testing.assert_array_equal(unpack(pack(values)), values)
    assert doubled([values, values[2:3]]) == {int(values[2])}
    assert doubled([values]) == doubled([]) == set()
    with pytest.raises(ValueError):  # noqa: PT011 (whatever base64 says)
        unpack("no base64!")
