"""The log of verdicts: nothing is lost, two writers do not meet, and damage is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import BadRecord
from storage.uri import Store, open_store
from storage.verdicts import (
    FILE_RECORDS,
    STANDING,
    Verdict,
    VerdictLog,
    in_order,
    now_after,
    read_files,
    read_verdicts,
    verdict_lines,
)

WRITER = """
import sys
from storage.uri import open_store
from storage.verdicts import Verdict, VerdictLog, now_after
log, last = VerdictLog(open_store(sys.argv[1])), ""
for i in range(100000):
    last = now_after(last)
    log.add(Verdict(f"row-{i}", "ann", "valid", at=last))
    print(i, flush=True)
"""


def say(log: VerdictLog, *verdicts: Verdict) -> None:
    last = ""
    for one in verdicts:
        last = now_after(last)
        log.add(replace(one, at=last))


def given(store: Store) -> list[tuple[str, str, str, str | None]]:
    rows = read_verdicts(store).to_pylist()
    return sorted((r["cf_id"], r["reviewer"], r["verdict"], r["note"]) for r in rows)


def test_the_last_verdict_of_each_reviewer_stands(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert read_verdicts(store).num_rows == 0
    a = Verdict("a", "ann", "valid")
    say(
        VerdictLog(store),
        a,
        replace(a, reviewer="bob", verdict="spurious", note="hair <b>"),
        replace(a, verdict="unrealistic"),
        Verdict("b", "ann", "valid"),
        Verdict("b", "ann", None, undo=True),
    )
    assert given(store) == [
        ("a", "ann", "unrealistic", None),
        ("a", "bob", "spurious", "hair <b>"),
    ]
    assert read_verdicts(store).schema == STANDING


def test_two_writers_at_once_keep_their_verdicts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    logs = [VerdictLog(open_store(tmp_path)) for _ in range(2)]
    for i in range(FILE_RECORDS + 5):
        for log, name in zip(logs, ("ann", "bob"), strict=True):
            log.add(Verdict(f"row-{i}", name, "valid", at=now_after("")))
    assert len(given(store)) == 2 * (FILE_RECORDS + 5)
    assert len(store.list("review")) == 4
    assert list(verdict_lines(store)) == []


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == FILE_RECORDS + 20:
                break
        writer.send_signal(signal.SIGKILL)
        said = FILE_RECORDS + 20 + len(writer.stdout.read().split())
    rows = {row[0] for row in given(open_store(tmp_path))}
    assert {f"row-{i}" for i in range(said + 1)} <= rows
    assert len(rows) <= said + 2
    assert list(verdict_lines(open_store(tmp_path))) == []


def test_a_failed_write_leaves_the_log_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    log = VerdictLog(store)
    say(log, Verdict("a", "ann", "valid"))

    def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "replace", full)
        with pytest.raises(OSError, match="No space"):
            say(log, Verdict("b", "ann", "valid"))
    say(log, Verdict("c", "ann", "valid"))
    assert [row[0] for row in given(store)] == ["a", "c"]


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    first, second = VerdictLog(store), VerdictLog(store)
    say(first, Verdict("a", "ann", "valid"))
    say(second, Verdict("b", "ann", "valid"))
    known = read_files(store, {})
    say(second, Verdict("c", "ann", "valid"))
    read: list[str] = []
    plain = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path: read.append(path) or plain(self, path))
    assert [one.cf_id for one in in_order(read_files(store, known))] == ["a", "b", "c"]
    assert read == [second.path]


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = VerdictLog(store)
    for i in range(FILE_RECORDS + 1):
        log.add(Verdict(f"row-{i}", "ann", "valid", at=now_after("")))
    first, second = store.list("review")
    data = store.read(second)
    store.write(second, data.replace(b"valid", b"vilid"))
    (line,) = verdict_lines(store)
    assert "expected the bytes that were sealed" in line
    with pytest.raises(BadRecord, match="sealed"):
        read_verdicts(store)
    store.write(second, data)
    store.remove(first)
    assert list(verdict_lines(store)) == [
        f"{first}: expected {FILE_RECORDS} verdicts before a further file, got none"
    ]
    store.write(first, data)  # another file's bytes, with their seal
    assert len(list(verdict_lines(store))) == 1
    other = VerdictLog(store)
    store.write(other.path, data)
    assert any("another's" in line for line in verdict_lines(store))


def test_times_never_run_backwards() -> None:
    ahead = "2999-01-01T00:00:00.000000+00:00"
    assert now_after(ahead) == "2999-01-01T00:00:00.000001+00:00"
    assert len(now_after("")) == len(ahead)
    assert now_after("") < ahead


def test_a_bucket_holds_verdicts_too(s3_folder: str) -> None:
    store = open_store(s3_folder)
    say(VerdictLog(store), Verdict("a", "ann", "valid"), Verdict("a", "ann", "spurious"))
    say(VerdictLog(open_store(s3_folder)), Verdict("b", "bob", "valid"))
    assert [row[:3] for row in given(store)] == [("a", "ann", "spurious"), ("b", "bob", "valid")]
    assert list(verdict_lines(store)) == []
