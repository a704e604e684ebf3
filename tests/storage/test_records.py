"""Records: the same JSON out as in, and of a damaged one the field that is wrong, in one line."""

import json
from typing import Any

import pytest

from storage.commit import commit_path, read_commits
from storage.errors import TOLD, BadCommit, BadRecord
from storage.records import Commit, Line, Plan, Receipt, Shard
from storage.run import read_plan
from storage.uri import Store

SHARD: dict[str, Any] = {
    "index": 0,
    "file": "/in/a.parquet",
    "name": "a.parquet",
    "version": "1-2",
    "start": 0,
    "rows": 3,
    "offset": 0,
}
PLAN: dict[str, Any] = {
    "fingerprint": {"data": "d"},
    "files": [{"file": "/in/a.parquet", "name": "a.parquet", "version": "1-2", "rows": 3}],
    "shards": [SHARD],
    "rows": 3,
    "config": {"name": "x"},
    "versions": {"torch": "2"},
    "models": {"classifier": "none"},
}
COMMIT: dict[str, Any] = {
    "stage": "generate",
    "shard": SHARD,
    "revision": 0,
    "file": "data/generate/000000-aa-bb.parquet",
    "sha256": "aa",
    "bytes": 10,
    "rows": 2,
    "ids": "",
    "rows_in": 3,
    "rows_out": 2,
    "quarantined": [{"id": "a", "reason": "no image"}],
    "seconds": 0.5,
    "attempt": "bb",
    "versions": {"torch": "2"},
    "extra": {"flipped": 1},
}
RECEIPT: dict[str, Any] = {
    "index": 0,
    "rows_in": 3,
    "rows_out": 2,
    "quarantined": 1,
    "answers": 4,
    "flipped": 2,
    "seconds": 1.0,
    "wait_seconds": 0.5,
    "compute_seconds": 0.5,
    "notes": [],
    "extra": {},
}


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Shard, SHARD),
        (Shard, {**SHARD, "revision": 1, "tries": 2}),
        (Plan, PLAN),
        (Plan, without(PLAN, "files")),  # of an older version, as the next one is
        (Commit, without(COMMIT, "ids")),
        (Commit, COMMIT),
        (Receipt, RECEIPT),
        (Receipt, {**RECEIPT, "notes": ["x"]}),
    ],
)
def test_json_stays_as_it_is(kind: Any, value: dict[str, Any]) -> None:
    assert json.dumps(kind.from_json(value).to_json()) == json.dumps(value)


def test_a_commit_from_before_there_were_revisions_is_the_first() -> None:
    assert Commit.from_json(without(COMMIT, "revision")).revision == 0


def test_a_field_of_a_later_version_is_left_out() -> None:
    assert Commit.from_json({**COMMIT, "later": 1}) == Commit.from_json(COMMIT)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (without(PLAN, "rows"), "rows: expected a whole number >= 0, got none"),
        ({**PLAN, "models": {"classifier": None}}, "models: expected an object of texts, got {'cl"),
        ({**PLAN, "shards": 1}, "shards: expected a list, got 1"),
        ({**PLAN, "shards": [SHARD, 1]}, "shards[1]: expected an object, got 1"),
        (
            {**PLAN, "shards": [{**SHARD, "start": -1}]},
            "shards[0]: start: expected a whole number >= 0, got -1",
        ),
        (
            {**PLAN, "files": [without(PLAN["files"][0], "version")]},
            "files[0]: version: expected a text, got none",
        ),
    ],
)
def test_a_damaged_plan_is_one_line(store: Store, plan: dict[str, Any], told: str) -> None:
    store.write("plan.json", json.dumps(plan).encode())
    with pytest.raises(BadRecord) as error:
        read_plan(store)
    assert f"plan.json: {told}" in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, TOLD)  # the command line shows it without a traceback


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        (without(COMMIT, "extra"), "extra: expected an object, got none"),
        ({**COMMIT, "rows": True}, "rows: expected a whole number >= 0, got True"),
        ({**COMMIT, "seconds": "1"}, "seconds: expected a number >= 0, got '1'"),
        ({**COMMIT, "ids": None}, "ids: expected a text, got None"),
        ({**COMMIT, "shard": {**SHARD, "rows": "3"}}, "shard: rows: expected a whole number >= 0"),
        (
            {**COMMIT, "quarantined": [{"id": "a"}]},
            "quarantined[0]: reason: expected a text, got none",
        ),
    ],
)
def test_a_damaged_commit_is_one_line(store: Store, commit: dict[str, Any], told: str) -> None:
    store.write(commit_path("generate", 0), json.dumps(commit).encode())
    with pytest.raises(BadCommit) as error:
        read_commits(store, "generate")
    assert "000000.json: expected the commit of this shard" in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tables_line_is_read_as_it_was_written_and_a_damaged_one_is_named() -> None:
    line = Line(
        metric="cout", subset="correct", n=3, value=-0.5, low=None, high=None, better="higher"
    )
    assert Line.from_json(line.to_json()) == line
    old = {"metric": "l1", "subset": "all", "n": 0, "value": None, "low": None, "high": None}
    assert Line.from_json(old).by is None
    for wrong, said in (
        ({**old, "n": "3"}, "expected a whole number >= 0, got '3'"),
        ({**old, "value": "high"}, "value: expected a number or null, got 'high'"),
        ({name: v for name, v in old.items() if name != "low"}, "low: expected a number or null"),
    ):
        with pytest.raises(BadRecord) as error:
            Line.from_json(wrong, "table.json: metrics[2]")
        assert str(error.value).startswith("table.json: metrics[2]: ")
        assert said in str(error.value)
