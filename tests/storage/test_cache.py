"""The cache of model folders: fetched once by many workers, and nothing half is left by one that
was killed.
"""

import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from storage import cache
from storage.cache import cached, folder_digest
from storage.uri import Store, open_store

FILES = {"config.json": b"{}", "unet/model.safetensors": b"w" * 3_000_000}


@pytest.fixture
def hub(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model folder on a disk or in S3, and an empty cache."""
    monkeypatch.setenv(cache.HOME, str(tmp_path / "cache"))
    store = open_store(f"{folder}/hub")
    for name, content in FILES.items():
        store.write(name, content)
    return store


def fetch(uri: str, ready: Any, count: Any) -> None:
    """A worker that counts its fetches, each of which takes a while."""
    copy = Store.copy

    def slow(self: Store, path: str, out: Any) -> None:
        with count.get_lock():
            count.value += 1
        time.sleep(0.2)
        copy(self, path, out)

    Store.copy = slow  # type: ignore[method-assign]  # in a process of its own
    ready.wait(20)
    cached(uri)


def test_many_workers_fetch_once(hub: Store, tmp_path: Path) -> None:
    own = multiprocessing.get_context("fork")
    ready, count = own.Barrier(4), own.Value("i", 0)
    workers = [own.Process(target=fetch, args=(hub.uri, ready, count)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert count.value == len(FILES), "files fetched by all workers together"
    there = cached(hub.uri)
    assert {
        path.relative_to(there).as_posix(): path.read_bytes() for path in there.rglob("*.*")
    } == FILES
    assert folder_digest(there) == there.name


def test_what_a_killed_fetch_left_is_cleared_and_what_another_fetches_stays(
    hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody is left to tidy up
        patch.setattr(Store, "copy", killed)
        with pytest.raises(Killed):
            cached(hub.uri)
    folders = tmp_path / "cache" / "folders"
    (mine,) = folders.glob(".*.tmp")
    gone, live = folders / f".{'a' * 64}-1.tmp", folders / f".{'b' * 64}-1.tmp"
    for half in (gone, live):
        half.mkdir()
    with cache._alone("b" * 64):  # its holder has this lock while it fetches
        live.mkdir(exist_ok=True)
        there = cached(hub.uri)
    assert not mine.exists()
    assert not gone.exists()
    assert sorted(folders.iterdir()) == sorted([there, live])


def test_a_file_system_without_locks_is_done_without(
    hub: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(
        cache, "fcntl", type("NoLocks", (), {"flock": staticmethod(flock), "LOCK_EX": 2})
    )
    assert cached(hub.uri).is_dir()
