"""S3 that fails for a while: every verb gets through, nothing is half or twice, and giving up is
one clear line.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import s3, s3_retry
from storage.commit import commit_shard, read_commits, todo
from storage.errors import NoAnswer, StorageError
from storage.records import Plan, Shard
from storage.uri import Store, data_files, open_store

PASSING = ("slow-down", "reset", "lost", "cut")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds in the place of seconds."""
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3_retry, "LONGEST_WAIT", 0.01)


@pytest.fixture
def store(proxy: Any, s3_folder: str) -> Store:
    return open_store(s3_folder)


def numbers() -> bytes:
    """A Parquet file of some 800 kB in several row groups."""
    out = io.BytesIO()
    table = pa.table(
        {"id": range(100_000), "x": np.random.default_rng(0).integers(0, 2**62, 100_000)}
    )
    pq.write_table(table, out, row_group_size=20_000, compression="none", use_dictionary=False)
    return out.getvalue()


@pytest.mark.parametrize("how", PASSING)
@pytest.mark.parametrize("times", [1, 5])
def test_reading_gets_through(proxy: Any, store: Store, how: str, times: int) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    store.write("x", data)
    proxy.fail(how, "GET", "/x", times=times)
    assert store.read("x") == data
    assert proxy.told(how) == times


@pytest.mark.parametrize("how", PASSING)
def test_reading_parquet_gets_through(proxy: Any, store: Store, how: str) -> None:
    store.write("x.parquet", numbers())
    for after in (0, 1):  # the footer, and what lies before it
        proxy.fail(how, "GET", "x.parquet", times=2, after=after)
    with store.parquet("x.parquet") as file:
        ids = file.read(use_threads=False)["id"].to_pylist()
    assert ids == list(range(100_000))
    assert proxy.told(how) == 4


@pytest.mark.parametrize("how", PASSING)
def test_listing_and_asking_get_through(proxy: Any, store: Store, how: str) -> None:
    for name in ("a/x.parquet", "b"):
        store.write(name, b"1")
    proxy.fail(how, "GET", "list-type", times=3)
    proxy.fail("slow-down" if how == "cut" else how, "HEAD", times=2)  # a HEAD has no body to cut
    assert store.list("") == ["a/x.parquet", "b"]
    assert store.is_file("b")
    assert store.folders("") == ["a"]
    assert [name for _, name in data_files(store.uri)] == ["a/x.parquet"]
    assert proxy.told(how) >= 3


@pytest.mark.parametrize("how", ["slow-down", "reset", "lost"])
def test_writing_gets_through(proxy: Any, store: Store, how: str) -> None:
    proxy.fail(how, "PUT", times=4)
    store.write("x", b"whole" * 1000)
    assert store.read("x") == b"whole" * 1000
    assert proxy.told(how) == 4


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("content", [b"ours", b""])
@pytest.mark.parametrize("how", ["lost", "internal"])
def test_a_lost_reply_is_told_from_a_lost_race(
    proxy: Any, store: Store, how: str, times: int, content: bytes
) -> None:
    proxy.fail(how, "PUT", "commit.json", times=times)
    assert store.put_new("commit.json", content) is True  # it was ours that arrived
    assert proxy.told(how) == times
    proxy.fail(how, "PUT", "commit.json", times=times)
    assert store.put_new("commit.json", content) is False  # the same bytes, but another's
    assert store.read("commit.json") == content


def test_a_shard_whose_commit_reply_was_lost_is_done_once(proxy: Any, store: Store) -> None:
    shard = Shard(0, "f", "f", "v", start=0, rows=3, offset=0)
    table = pa.table({"id": ["a", "b", "c"]})
    proxy.fail("lost", "PUT", "/commit/")
    given = commit_shard(
        store, "generate", shard, table, rows_in=3, quarantined=[], seconds=0.0, extra={}
    )
    assert read_commits(store, "generate") == {0: given}
    assert todo(Plan({}, [shard], 3), store, "generate") == []
    assert [path for path in store.list("data")] == [given.file]


def test_a_reply_that_comes_too_late_is_asked_for_again(
    proxy: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 0.3)
    proxy.fail("hold", "PUT", "x", times=2)
    proxy.fail("hold", "GET", "x", times=2)
    store.write("x", b"whole")
    assert store.put_new("x2", b"new") is True
    assert store.read("x") == b"whole"
    assert proxy.told("hold") == 4


@pytest.mark.parametrize("how", ["slow-down", "reset", "cut"])
def test_giving_up_is_one_line_that_says_what_to_check(
    proxy: Any, store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store.write("x", b"whole")
    monkeypatch.setenv(s3_retry.SECONDS, "0.1")
    proxy.fail(how, "GET", "/x", times=9999)
    told = r"expected S3 to answer for s3://tests/.*/x, got .* (\d+) times in 0.1 s: check"
    with pytest.raises(NoAnswer, match=told) as caught:
        store.read("x")
    assert (tries := re.search(told, str(caught.value)))
    assert "\n" not in str(caught.value)
    assert proxy.url.removeprefix("http://") not in str(caught.value)
    assert proxy.told(how) == int(tries[1]) > 1


def test_an_outage_longer_than_ten_tries_is_waited_for(proxy: Any, store: Store) -> None:
    store.write("x", b"whole")
    proxy.fail("slow-down", "GET", "/x", times=40)
    assert store.read("x") == b"whole"
    assert proxy.told("slow-down") == 40


def test_a_server_that_restarts_is_waited_for(
    proxy: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x", b"whole")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # where connections are refused
    monkeypatch.setattr(
        s3_retry.Patience,
        "wait",
        lambda *_: monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url),
    )
    assert store.read("x") == b"whole"
    assert store.put_new("y", b"new") is True
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(s3_retry.SECONDS, "0")
    with pytest.raises(NoAnswer, match="got EndpointConnectionError 1 times in 0 s: check AWS_END"):
        store.read("x")


def test_the_time_to_wait_is_a_number(
    proxy: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(s3_retry.SECONDS, text)
        proxy.fail("reset", "PUT", "/x")
        with pytest.raises(
            StorageError, match=f"{s3_retry.SECONDS}: expected seconds like 600, got '{text}'"
        ):
            store.write("x", b"")
    monkeypatch.setenv(s3_retry.SECONDS, "0")
    proxy.fail("reset", "PUT", "/x")
    with pytest.raises(NoAnswer, match=" 1 times in 0 s"):
        store.write("x", b"")


@pytest.mark.parametrize(
    "verb",
    [
        lambda store: store.read("x"),
        lambda store: store.parquet("x"),
        lambda store: store.version("x"),
        lambda store: store.is_file("x"),
        lambda store: store.write("x", b""),
        lambda store: store.put_new("x", b""),
        lambda store: store.list(""),
        lambda store: data_files(store.uri),
    ],
)
def test_no_access_is_not_asked_for_twice(
    proxy: Any, store: Store, verb: Callable[[Store], Any]
) -> None:
    proxy.fail("denied", times=99)
    with pytest.raises(
        StorageError,
        match=r"expected access to s3://tests/.*, got (AccessDenied|403): check the cred",
    ):
        verb(store)
    assert proxy.told("denied") == 1


class Clock:
    """A time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def test_waits_are_drawn_and_grow_for_ten_minutes(
    proxy: Any, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.25)
    monkeypatch.setattr(s3_retry, "LONGEST_WAIT", 20.0)
    monkeypatch.setattr(s3_retry, "STEP", 20.0)  # a wait is one sleep
    proxy.fail("slow-down", times=9999)
    waits = []
    for _ in range(2):
        monkeypatch.setattr(s3_retry, "time", clock := Clock())
        with pytest.raises(NoAnswer, match=r"got 503 SlowDown .* times in 600 s"):
            store.read("x")
        assert sum(clock.waits) == pytest.approx(600)
        assert all(0 <= wait <= min(20, 0.25 * 2**i) for i, wait in enumerate(clock.waits))
        waits.append(clock.waits)
    assert waits[0] != waits[1]  # workers that failed together do not come back together
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2, "one line a request"
    assert all(
        "S3 does not answer for s3://" in line and "(503 SlowDown): asking again" in line
        for line in told
    )


def test_eight_writers_through_a_bad_line_make_one_winner(proxy: Any, store: Store) -> None:
    for how in ("lost", "slow-down", "reset"):
        proxy.fail(how, "PUT", "race", times=2)
    won: list[int] = []

    def run(i: int) -> None:
        if store.put_new("race", b"%d" % i):
            won.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("race") == b"%d" % won[0]
