"""--limit, --shards and --retry-quarantined: a part now, the rest later, and the same run as in one
go.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.answer import Answerer
from configs.schema import load_run
from configs.strict import UserError
from pipelines.cli import main
from pipelines.engine.part import Part, parse
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from pipelines.report.show import show
from pipelines.run import run
from storage.commit import iterate_commits, read_committed, revisions, totals
from storage.gc import garbage
from storage.run import read_plan
from storage.uri import Store, open_store
from storage.verify import verify

STEPS = "method.settings.max_steps=2"


def settings(faces: Path, out: Path | str, *more: str) -> list[str]:
    return [
        f"data.path={faces}",
        f"out={out}",
        "engine.kind=local",
        STEPS,
        "engine.shard_rows=8",
        *more,
    ]


def rows(store: Store, stage: str = "generate") -> dict[str, tuple[str, bool]]:
    found = {}
    for commit in iterate_commits(store, stage):
        for row in read_committed(store, commit, ["id", "cf_id", "flipped"]).to_pylist():
            assert row["id"] not in found
            found[row["id"]] = row["cf_id"], row["flipped"]
    return found


def quarantined(store: Store) -> dict[str, str]:
    return {
        row["id"]: row["reason"]
        for c in iterate_commits(store, "generate")
        for row in c.quarantined
    }


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = load_run("demo-plain", settings(faces, tmp_path_factory.mktemp("whole")))
    generate(open_run(config), config)
    return open_run(config)


def test_a_limit_takes_whole_shards_and_a_later_call_goes_on(
    faces: Path, tmp_path: Path, whole: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "demo-plain", *(x for s in settings(faces, tmp_path) for x in ("--set", s))]
    store = open_store(tmp_path / "demo-plain")
    assert main([*command, "--limit", "20"]) == 0
    told = capsys.readouterr()
    assert "generate: 16/16 rows, 2 of 3 shards" in told.err
    assert "16 counterfactuals from 16 rows; 2 of 3 shards" in told.out
    assert "2 of 3 shards" in show(store)
    assert json.loads(store.read("score/table.json"))["rows"] == 16
    assert main([*command, "--limit", "20"]) == 0
    assert "generate: 8/8 rows, 3 of 3 shards" in capsys.readouterr().err
    assert rows(store) == rows(whole)
    assert read_plan(store).fingerprint == read_plan(whole).fingerprint
    assert read_plan(store).shards == read_plan(whole).shards
    assert json.loads(store.read("score/table.json"))["rows"] == 24
    assert verify(store) == []


def test_a_limit_below_a_shards_rows_is_a_first_try_and_the_run_goes_on_from_there(
    faces: Path, tmp_path: Path, whole: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "demo-plain", *(x for s in settings(faces, tmp_path) for x in ("--set", s))]
    store = open_store(tmp_path / "demo-plain")
    assert main([*command, "--limit", "3"]) == 0
    assert [shard.rows for shard in read_plan(store).shards] == [3, 3, 2, 8, 8]
    assert [shard.offset for shard in read_plan(store).shards] == [0, 3, 6, 8, 16]
    assert len(rows(store)) == 3
    assert json.loads(store.read("score/table.json"))["rows"] == 3
    assert store.exists("report.html")
    assert "3 counterfactuals from 3 rows; 1 of 5 shards" in capsys.readouterr().out
    assert main([*command, "--limit", "5"]) == 0
    assert len(rows(store)) == 8
    capsys.readouterr()
    assert main([*command, "--limit", "5"]) == 0  # of a shard of 8 that stands in the plan
    assert "--limit 5: the next shard has 8 rows, all are worked on" in capsys.readouterr().err
    assert len(rows(store)) == 16
    assert main(command) == 0
    assert rows(store) == rows(whole)
    assert read_plan(store).fingerprint == read_plan(whole).fingerprint
    assert verify(store) == []


def test_two_machines_share_a_run_by_shards(
    faces: Path, tmp_path: Path, whole: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "demo-plain", *(x for s in settings(faces, tmp_path) for x in ("--set", s))]
    assert main([*command, "--shards", "2:9"]) == 0
    told = capsys.readouterr()
    assert "1 of 3 shards" in told.err
    assert "report: left for a call without --shards" in told.out
    store = open_store(tmp_path / "demo-plain")
    assert list(revisions(store, "generate")) == [2]
    assert main([*command, "--shards", "0:2"]) == 0
    assert rows(store) == rows(whole)
    assert verify(store) == []
    assert not store.exists("report.html")
    assert main([*command, "--shards", "3:4"]) == 2
    assert "--shards: expected some of the run's shards, 0:3, got 3:4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "shards"), [(0, None), (None, "3"), (None, "2:2"), (None, "a:b")]
)
def test_a_part_that_is_none_is_refused(limit: int | None, shards: str | None) -> None:
    with pytest.raises(UserError, match="expected"):
        parse(limit, shards, False)


class Poison:
    """Rows on which the worker raises, for as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: set[str]) -> None:
        self.names, self.text, plain = names, "planted", Answerer.__call__

        def call(answerer: Any, batch: Any) -> Any:
            if self.names & {row.id for row in batch}:
                raise RuntimeError(self.text)
            return plain(answerer, batch)

        monkeypatch.setattr(Answerer, "__call__", call)


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_quarantined_rows_that_succeed_join_the_run_and_only_their_shards_are_scored_again(
    faces: Path,
    tmp_path: Path,
    whole: Store,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    request: Any,
) -> None:
    out = request.getfixturevalue("s3_folder") if kind == "s3" else str(tmp_path)
    name, other = list(rows(whole))[3], list(rows(whole))[5]
    poison = Poison(monkeypatch, {name, other})
    config = load_run("demo-plain", settings(faces, out))
    store = run(config, stages=("generate", "score"))
    assert set(quarantined(store)) == {name, other}
    before = {path: store.read(path) for path in store.list("commit")}
    assert all(
        reason == "the method failed: RuntimeError: planted"
        for reason in quarantined(store).values()
    )

    answered = rows(store)
    # nothing has changed: a revision all the same, tried by itself
    generate(store, config, Part(retry=True))
    assert revisions(store, "generate") == {0: 1, 1: 0, 2: 0}
    assert rows(store) == answered

    poison.names, poison.text = {other}, "planted anew"
    run(config, stages=("generate",), store=store, part=Part(retry=True))
    assert revisions(store, "generate") == {0: 2, 1: 0, 2: 0}
    assert quarantined(store) == {other: "the method failed: RuntimeError: planted anew"}
    scored = next(path.split("/")[1] for path in before if "score-" in path)
    assert list(revisions(store, scored)) == [1, 2]
    assert any("1 of 3 shards have no commit" in line for line in verify(store))
    run(config, stages=("score",), store=store)
    assert revisions(store, scored) == {0: 2, 1: 0, 2: 0}
    assert {path: store.read(path) for path in before} == before
    assert len(store.list("commit")) == len(before) + 3
    assert verify(store) == []
    assert set(rows(store, scored)) == set(rows(whole)) - {other}

    poison.names = set()
    run(config, stages=("generate", "score"), store=store, part=Part(retry=True))
    assert revisions(store, "generate") == revisions(store, scored) == {0: 3, 1: 0, 2: 0}
    assert rows(store) == rows(whole)
    assert quarantined(store) == {}
    sums, expected = (
        totals(iterate_commits(store, "generate")),
        totals(iterate_commits(whole, "generate")),
    )
    assert {k: sums[k] for k in ("rows_in", "rows_out", "flipped", "forward", "backward")} == {
        k: expected[k] for k in ("rows_in", "rows_out", "flipped", "forward", "backward")
    }
    assert verify(store) == []
    assert "quarantined 0" in show(store)
    named = {file.path for file in garbage(store, older_than=-60, current=[scored])}
    assert not [path for path in named if path.startswith(("data/", "commit/"))]


def test_a_row_with_anothers_id_stays_quarantined_when_it_is_tried_again(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.concat_tables(
        [pq.read_table(path) for path in sorted(faces.glob("*.parquet"))]
    ).slice(0, 4)
    (tmp_path / "data").mkdir()
    names = part.append_column("name", pa.array(["a", "b", "a", "c"]))
    pq.write_table(names, tmp_path / "data" / "train-0.parquet")
    config = load_run("demo-plain", settings(tmp_path / "data", tmp_path, "data.id=name"))
    store = open_run(config)
    poison = Poison(monkeypatch, {"c"})
    generate(store, config)
    assert set(quarantined(store)) == {"a", "c"}
    poison.names = set()
    generate(store, config, Part(retry=True))
    assert quarantined(store) == {"a": "its id stands twice in the data"}
    assert set(rows(store)) == {"a", "b", "c"}
    assert verify(store) == []


WORKER = """
import os, sys
from configs.schema import load_run
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run
from pipelines.engine.part import Part
from storage.uri import Store
if sys.argv[1] == "killed":
    put_new = Store.put_new
    def put(self, path, data):
        return os.kill(os.getpid(), 9) if path.endswith(".r1.json") else put_new(self, path, data)
    Store.put_new = put
config = load_run("demo-plain", sys.argv[2:])
generate(open_run(config), config, Part(retry=True))
"""


def work(mode: str, sets: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, mode, *sets],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_before_the_revisions_commit_and_two_drivers_at_once_leave_one_revision(
    faces: Path, tmp_path: Path, whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sets = list(rows(whole))[3], settings(faces, tmp_path)
    config = load_run("demo-plain", sets)
    store = open_run(config)
    with monkeypatch.context() as patch:
        Poison(patch, {name})
        generate(store, config)
    assert work("killed", sets).wait() == -9
    assert revisions(store, "generate") == {0: 0, 1: 0, 2: 0}
    assert set(quarantined(store)) == {name}
    assert len(store.list("data/generate")) == 4  # the killed one's file, which nothing names
    assert verify(store) == []
    drivers = [work("plain", sets) for _ in range(2)]
    told = [driver.communicate()[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    assert revisions(store, "generate") == {0: 1, 1: 0, 2: 0}
    assert rows(store) == rows(whole)
    assert verify(store) == []
    orphans = [
        file.path
        for file in garbage(store, older_than=-60, current=())
        if file.path.startswith("data/")
    ]
    assert len(orphans) == len(store.list("data/generate")) - 4
    assert orphans
