"""verify: silent on a good run, and one line for each damage that was planted."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.check import NAMED
from storage.commit import commit_path, commit_shard, read_commits
from storage.names import hashes, keys, pack
from storage.records import Plan, Shard
from storage.run import write_plan
from storage.seal import read_sealed, sealed
from storage.tables import footer_digest
from storage.uri import Store
from storage.verify import verify

ROWS, SHARDS = 4, 3


def table(ids: list[str], k: int = 0) -> pa.Table:
    return pa.table(
        {
            "id": ids,
            "cf_id": [f"cf-{name}-{k}" for name in ids],
            "k": pa.array([k] * len(ids), pa.int32()),
        }
    )


def shard(index: int) -> Shard:
    place = {"start": index * ROWS, "rows": ROWS, "offset": index * ROWS}
    return Shard(index, "/in.parquet", "in.parquet", "1-1", **place)


def names(index: int) -> list[str]:
    return [f"row-{index}-{i}" for i in range(ROWS)]


@pytest.fixture
def run(store: Store) -> Store:
    """A run of 3 shards of 4 rows, the second of which has a quarantined row; generated, and
    scored.
    """
    shards = [shard(i) for i in range(SHARDS)]
    write_plan(store, Plan({}, shards, ROWS * SHARDS))
    for index in range(SHARDS):
        bad = [{"id": f"row-{index}-3", "reason": "no image: null"}] if index == 1 else []
        good = names(index)[: ROWS - len(bad)]
        said: dict[str, Any] = {"seconds": 1.0, "extra": {}}
        commit_shard(
            store, "generate", shards[index], table(good), rows_in=ROWS, quarantined=bad, **said
        )
        commit_shard(
            store, "score-1a", shards[index], table(good), rows_in=len(good), quarantined=[], **said
        )
    return store


def edit(store: Store, index: int, stage: str = "generate", **fields: Any) -> None:
    """Rewrite some fields of a commit."""
    path = commit_path(stage, index)
    store.replace(path, sealed({**read_sealed(store, path), **fields}))


def swap(store: Store, index: int, new: pa.Table, stage: str = "generate") -> None:
    """Put another table in the place of a committed one, its digest and rows right."""
    out = io.BytesIO()
    pq.write_table(new, out)
    data = out.getvalue()
    made = read_commits(store, stage)[index]
    store.replace(made.file, data)
    edit(
        store,
        index,
        stage,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        rows=new.num_rows,
        ids=pack(hashes(keys(new)[0])),
        footer=footer_digest(data),
    )


def drop(store: Store, path: str) -> None:
    if store.uri.startswith("s3://"):
        import boto3

        bucket, _, key = store.url(path).removeprefix("s3://").partition("/")
        boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    else:
        import os

        os.unlink(store.url(path))


def flip(store: Store, place: int) -> None:
    file = read_commits(store, "generate")[1].file
    data = bytearray(store.read(file))
    data[place] ^= 1
    store.replace(file, bytes(data))


def test_a_good_run_has_nothing_to_say(run: Store) -> None:
    assert verify(run) == []


def test_orphans_and_attempts_are_no_damage(run: Store) -> None:
    run.write("data/generate/000001-aaaaaaaaaaaa-bbbbbbbbbbbb.parquet", b"half")
    run.write("commit/generate/.1f.tmp", b"half")
    run.write("attempt/generate/000001/1f", b"")
    assert verify(run) == []


DAMAGE: dict[str, tuple[Callable[[Store], Any], list[str]]] = {
    "a flipped bit in the data": (
        lambda run: flip(run, 40),
        ["generate: shard 1: data/generate/000001-", "sha256"],
    ),
    "a flipped bit in the footer": (
        lambda run: flip(run, -20),
        ["generate: shard 1: data/generate/000001-", "sha256"],
    ),
    "a truncated file": (
        lambda run: run.replace(read_commits(run, "generate")[1].file, b"PAR1"),
        ["generate: shard 1: data/generate/000001-", "got 4 with"],
    ),
    "a lost data file": (
        lambda run: drop(run, read_commits(run, "generate")[2].file),
        ["generate: shard 2: expected a file at", "got none"],
    ),
    "a lost commit": (
        lambda run: drop(run, commit_path("score-1a", 0)),
        ["score-1a: 1 of 3 shards have no commit"],
    ),
    "a damaged commit": (
        lambda run: run.replace(commit_path("score-1a", 2), b'{"sta'),
        ["score-1a: shard 2: ", "expected the commit of this shard, got 5 bytes"],
    ),
    "a commit of no shard": (
        lambda run: commit_shard(
            run, "score-1a", shard(9), table([]), rows_in=0, quarantined=[], seconds=0.0, extra={}
        ),
        ["score-1a: shard 9: expected a shard of the plan"],
    ),
    "a commit of other rows": (
        lambda run: edit(run, 0, "score-1a", shard={**shard(0).to_json(), "start": 99}),
        ["score-1a: shard 0: expected the commit of rows 0+4 of /in.parquet", "got one of 99+4"],
    ),
    "rows in that do not add up": (
        lambda run: edit(run, 1, quarantined=[]),
        ["generate: shard 1: expected rows_in = rows_out + quarantined, got 4 = 3 + 0"],
    ),
    "fewer rows in than planned": (
        lambda run: edit(run, 1, rows_in=3, quarantined=[]),
        ["generate: shard 1: expected 4 rows in, got 3"],
    ),
    "fewer rows scored than generated": (
        lambda run: (
            swap(run, 1, table(names(1)[:2]), "score-1a"),
            edit(run, 1, "score-1a", rows_in=2, rows_out=2),
        ),
        ["score-1a: shard 1: expected 3 rows in, got 2"],
    ),
    "more rows than committed": (
        lambda run: edit(run, 0, "score-1a", rows=5),
        ["score-1a: shard 0: expected 5 rows in its file, got 4"],
    ),
    "an id twice in a shard": (
        lambda run: swap(run, 0, table(["row-0-0", "row-0-1", "row-0-2", "row-0-2"]), "score-1a"),
        [
            'score-1a: expected each id and k once, got ["row-0-2", 0] 2 times, in shards [0]',
            "cf-row-0-2-0 2 times",
        ],
    ),
    "an id in two shards": (
        lambda run: swap(run, 0, table([*names(0)[:3], "row-2-1"]), "score-1a"),
        [
            'score-1a: expected each id and k once, got ["row-2-1", 0] 2 times, in shards [0, 2]',
            "cf-row-2-1-0 2 times",
        ],
    ),
    "a cf_id twice": (
        lambda run: swap(
            run, 0, table(names(0)).set_column(1, "cf_id", [["a", "b", "b", "c"]]), "score-1a"
        ),
        ["score-1a: expected each cf_id once, got b 2 times, in shards [0]"],
    ),
    "ids that are not there": (
        lambda run: swap(
            run, 0, pa.table({"id": ["row-0-0"] * 4, "cf_id": list("abcd"), "k": range(4)})
        ),
        ["generate: shard 0: expected 4 rows answered in its file, got 1"],
    ),
}


ON_S3 = ("a flipped bit in the data", "a lost data file", "a lost commit", "an id in two shards")


@pytest.mark.parametrize(
    ("what", "folder"),
    [(what, "disk") for what in DAMAGE] + [(what, "s3") for what in ON_S3],
    indirect=["folder"],
)
def test_planted_damage_is_found_and_named(run: Store, what: str) -> None:
    damage, parts = DAMAGE[what]
    damage(run)
    lines = verify(run)
    text = "\n".join(lines)
    assert all(part in text for part in parts), text
    assert len(lines) <= 2  # that damage, and nothing else


def test_a_plan_with_a_hole_is_found(store: Store) -> None:
    shards = [shard(0), replace(shard(2), index=1)]
    write_plan(store, Plan({}, shards, 12))
    assert verify(store) == [
        "plan: expected shard 1 at row 4, got shard 1 at 8",
        "plan: expected 12 rows over all shards, got 8",
        "generate: 2 of 2 shards have no commit",
    ]


def test_an_unfinished_stage_is_counted(run: Store) -> None:
    for index in (0, 2):
        drop(run, commit_path("generate", index))
    assert verify(run) == [
        "generate: 2 of 3 shards have no commit",
        "score-1a: shard 0: expected a commit of generate before this one, got none",
        "score-1a: shard 2: expected a commit of generate before this one, got none",
    ]


def test_a_stage_that_was_only_begun_is_unfinished(run: Store) -> None:
    run.write("attempt/score-2b/000000/1f", b"")
    assert verify(run) == ["score-2b: 3 of 3 shards have no commit"]


def test_several_counterfactuals_of_a_row_are_no_doubles(store: Store) -> None:
    write_plan(store, Plan({}, [shard(0)], ROWS))
    both = pa.concat_tables([table(names(0), k) for k in (0, 1)])
    said: dict[str, Any] = {"quarantined": [], "seconds": 0.0, "extra": {}}
    commit_shard(store, "generate", shard(0), both, rows_in=ROWS, rows_out=ROWS, **said)
    commit_shard(store, "score-1a", shard(0), both, rows_in=2 * ROWS, **said)
    assert verify(store) == []


def test_a_row_set_aside_for_bearing_anothers_id_is_no_double(store: Store) -> None:
    write_plan(store, Plan({}, [shard(0)], ROWS))
    bad = [{"id": "row-0-0", "reason": "its id stands twice in the data"}]
    said: dict[str, Any] = {"rows_in": ROWS, "quarantined": bad, "seconds": 0.0, "extra": {}}
    commit_shard(store, "generate", shard(0), table(names(0)[:3]), **said)
    assert verify(store) == []


def test_tables_without_ids_are_counted_and_hashed(store: Store) -> None:
    write_plan(store, Plan({}, [shard(0)], ROWS))
    said: dict[str, Any] = {"rows_in": ROWS, "quarantined": [], "seconds": 0.0, "extra": {}}
    commit_shard(store, "generate", shard(0), pa.table({"x": range(ROWS)}), **said)
    assert verify(store) == []
    edit(store, 0, rows=3)
    assert verify(store) == [
        "generate: shard 0: expected as many answers to each of 4 rows, got 3 answers",
        "generate: shard 0: expected 3 rows in its file, got 4",
    ]


def test_many_doubles_are_named_up_to_a_limit(store: Store) -> None:
    count = NAMED + 5
    shards = [replace(shard(i), start=i * count, rows=count, offset=i * count) for i in range(2)]
    write_plan(store, Plan({}, shards, 2 * count))
    for part in shards:
        same = table([f"row-{i:02d}" for i in range(count)])
        commit_shard(
            store, "generate", part, same, rows_in=count, quarantined=[], seconds=0.0, extra={}
        )
    lines = verify(store)
    assert len(lines) == 2 * (NAMED + 1)
    assert (
        lines[0]
        == 'generate: expected each id and k once, got ["row-00", 0] 2 times, in shards [0, 1]'
    )
    assert lines.count("generate: and 5 more doubled") == 2
