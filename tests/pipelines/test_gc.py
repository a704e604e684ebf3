"""`counterfactory gc`: says what could go, deletes it when told to, and leaves a run that still
holds.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.gc import age
from storage.attempts import LOCAL, begin
from storage.records import Shard
from storage.verify import verify

DAYS = 3 * 86400


@pytest.fixture
def left(make_run: Callable[..., Any]) -> Any:
    """A run with an orphan, a mark and a half-written file, all three days old, and a
    young orphan."""
    made = make_run()
    store = made.store
    begin(store, "generate", Shard(0, "f", "f", "v", start=0, rows=1, offset=0), LOCAL)
    for name in ("data/generate/000000-aa-bb.parquet", "data/generate/000001-aa-bb.parquet"):
        store.write(name, b"x" * 2_000_000)
    store.write("data/generate/.0123456789abcdef0123456789abcdef.tmp", b"half")
    for entry in store.entries():
        if "000001-aa" not in entry.path:
            os.utime(f"{store.uri}/{entry.path}", (entry.written - DAYS, entry.written - DAYS))
    return store


def test_gc_says_what_could_go_and_does_it_when_told_to(
    left: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left.entries()
    assert main(["gc", left.uri]) == 0
    told = capsys.readouterr().out
    assert "1 x data file that no commit names, 2.0 MB" in told
    assert "data/generate/000000-aa-bb.parquet" in told
    assert "000001-aa" not in told
    assert "3 files, older than 24h; nothing was deleted: --delete does it" in told
    assert left.entries() == before
    assert main(["gc", left.uri, "--delete"]) == 0
    assert "3 files, deleted" in capsys.readouterr().out
    assert len(left.entries()) == len(before) - 3
    assert verify(left) == []
    assert main(["gc", left.uri, "--delete"]) == 0
    assert "nothing to delete that is older than 24h" in capsys.readouterr().out
    (young,) = (entry for entry in left.entries() if "000001-aa" in entry.path)
    os.utime(f"{left.uri}/{young.path}", (young.written - 4000, young.written - 4000))
    assert main(["gc", left.uri, "--delete", "--older-than", "1h"]) == 0
    assert "000001-aa" in capsys.readouterr().out
    assert verify(left) == []


def test_gc_deletes_nothing_that_a_driver_may_be_about_to_commit(
    left: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left.entries()
    for text in ("0s", "59m"):
        assert main(["gc", left.uri, "--delete", "--older-than", text]) == 2
        told = capsys.readouterr().err
        assert f"--older-than: expected 1h or more with --delete, got '{text}'" in told
        assert told.count("\n") == 1
    assert left.entries() == before
    assert main(["gc", left.uri, "--older-than", "0s"]) == 0, "to look is allowed"
    assert "000001-aa" in capsys.readouterr().out


def test_gc_refuses_what_is_no_run_and_no_age(
    left: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", str(tmp_path)]) == 2
    assert "plan.json" in capsys.readouterr().err
    assert main(["gc", left.uri, "--older-than", "soon"]) == 2
    assert (
        "--older-than: expected an age like 30m, 24h or 7d, got 'soon'" in capsys.readouterr().err
    )


def test_ages() -> None:
    assert [age(text) for text in ("90s", "30m", "24h", "7d")] == [90, 1800, 86400, 604800]
