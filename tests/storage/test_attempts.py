"""Which starts count as deaths, and which rows are known to kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage import attempts
from storage.attempts import (
    HUNG,
    LOCAL,
    RAISED,
    begin,
    begin_row,
    count_row_deaths,
    deadly_rows,
    end_row,
    note,
    note_hung_row,
)
from storage.cache import HOME
from storage.errors import NoAnswer
from storage.records import Shard
from storage.uri import Store, open_store

SHARD = Shard(3, "/in", "in", "1-1", start=0, rows=3, offset=9)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def test_starts_that_never_ended_in_a_living_driver_are_deaths(store: Store) -> None:
    deaths = [begin(store, "generate", SHARD, "one").deaths for _ in range(4)]
    assert deaths == [0, 1, 2, 3]


def test_of_each_driver_that_ended_one_start_is_forgiven(store: Store) -> None:
    for session in ("one", "two", "three"):
        assert begin(store, "generate", SHARD, session).deaths == 0
    assert begin(store, "generate", SHARD, "three").deaths == 1
    now = begin(store, "generate", SHARD, "four")
    assert (now.deaths, now.here) == (1, 0)


def test_a_driver_that_works_itself_dies_with_its_worker(store: Store) -> None:
    assert [begin(store, "generate", SHARD, LOCAL).deaths for _ in range(3)] == [0, 1, 2]
    assert begin(store, "generate", SHARD, "one").deaths == 3


def test_an_error_is_no_death_and_a_stop_is_told(store: Store) -> None:
    note(store, begin(store, "generate", SHARD, LOCAL), RAISED)
    now = begin(store, "generate", SHARD, LOCAL)
    assert (now.deaths, now.hung) == (0, False)
    note(store, now, HUNG)
    assert begin(store, "generate", SHARD, LOCAL).hung


def test_shards_stages_and_revisions_are_told_apart(store: Store) -> None:
    begin(store, "generate", SHARD, LOCAL)
    for stage, shard in (
        ("score", SHARD),
        ("generate", replace(SHARD, index=4)),
        ("generate", replace(SHARD, revision=1)),
    ):
        assert begin(store, stage, shard, LOCAL).deaths == 0


def test_a_row_is_blamed_when_it_was_open_at_two_deaths(store: Store) -> None:
    for session in ("one", LOCAL):
        other = 7 if session == "one" else 8
        begin_row(store, "generate", SHARD, other, session)
        assert other not in deadly_rows(store, "generate", SHARD, session)
        begin_row(store, "generate", SHARD, other, session)
        why = deadly_rows(store, "generate", SHARD, session)[other]
        assert why == "its worker died on this row"
    assert count_row_deaths(store, "generate", SHARD, "one") == 4


def test_a_row_that_was_ended_is_not_blamed(store: Store) -> None:
    for _ in range(5):
        end_row(store, begin_row(store, "generate", SHARD, 8, LOCAL))
    begin_row(store, "generate", SHARD, 8, LOCAL)
    assert deadly_rows(store, "generate", SHARD, LOCAL) == {}
    assert count_row_deaths(store, "generate", SHARD, LOCAL) == 1


def test_deaths_on_neighbours_add_up_to_nothing(store: Store) -> None:
    for row in range(9, 12):
        begin_row(store, "generate", SHARD, row, LOCAL)
    assert deadly_rows(store, "generate", SHARD, LOCAL) == {}


def test_a_row_that_was_open_when_its_driver_ended_is_tried_again(store: Store) -> None:
    for session in ("one", "two", "three"):
        begin_row(store, "generate", SHARD, 7, session)
    assert deadly_rows(store, "generate", SHARD, "four") == {}
    begin_row(store, "generate", SHARD, 7, "two")
    begin_row(store, "generate", SHARD, 7, "three")
    assert list(deadly_rows(store, "generate", SHARD, "four")) == [7]


def test_a_row_that_hung_is_not_begun_by_anyone(store: Store) -> None:
    begin_row(store, "generate", SHARD, 7, "one")
    note_hung_row(store, "generate", SHARD, 7)
    reason = deadly_rows(store, "generate", SHARD, "two")[7]
    assert "engine.row_seconds" in reason


@pytest.mark.parametrize("stop", [NoAnswer("away"), KeyboardInterrupt()])
def test_an_end_that_cannot_be_noted_is_no_death_on_this_machine(
    store: Store, stop: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An outage of S3, or a stop while it is waited for."""

    def fails(*_: Any) -> bool:
        raise stop

    monkeypatch.setenv(HOME, str(tmp_path / "cache"))
    for _ in range(3):
        start = begin(store, "generate", SHARD, LOCAL)
        row = begin_row(store, "generate", SHARD, 7, LOCAL)
        with monkeypatch.context() as away:
            away.setattr(Store, "put_new", fails)
            with pytest.raises(type(stop)):
                end_row(store, row)
            with pytest.raises(type(stop)):
                note(store, start, RAISED)
    assert begin(store, "generate", SHARD, LOCAL).deaths == 0
    assert deadly_rows(store, "generate", SHARD, LOCAL) == {}
    monkeypatch.setenv(HOME, str(tmp_path / "elsewhere"))  # another machine cannot know
    assert list(deadly_rows(store, "generate", SHARD, LOCAL)) == [7]


def test_a_row_whose_note_may_have_arrived_is_not_blamed(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Store.write

    def lost(*args: Any) -> None:
        real(*args)
        raise NoAnswer("the reply")

    monkeypatch.setenv(HOME, str(tmp_path / "cache"))
    monkeypatch.setattr(Store, "write", lost)
    for _ in range(3):
        with pytest.raises(NoAnswer):
            begin_row(store, "generate", SHARD, 7, LOCAL)
    assert len(store.list("poison")) == 3
    assert deadly_rows(store, "generate", SHARD, LOCAL) == {}


@pytest.mark.parametrize("session", ["", "../x", "A", "a-b", "a/b"])
def test_no_session_name_leaves_the_run_folder(store: Store, session: str) -> None:
    with pytest.raises(ValueError, match="expected a session"):
        attempts.begin(store, "generate", SHARD, session)
    assert store.list("") == []
