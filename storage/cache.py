"""Local copies of model folders: a folder in S3 is fetched once, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import local
from storage.uri import Store, open_store

FILES = (".safetensors", ".json")  # the files that a model is read from and pinned by: no pickles
HOME = "COUNTERFACTORY_CACHE"  # names a folder to use instead of ~/.cache/counterfactory


def cached(uri: str) -> Path:
    """Return the local copy of a folder's model files, under the name of its digest.

    Versions in the store show whether a copy is current. One of many workers on a node fetches, and
    the others wait for it. FileNotFoundError where the folder has no model files.
    """
    store = open_store(uri)
    names = [name for name in store.list("") if name.endswith(FILES)]
    if not names:
        raise FileNotFoundError(
            f"expected a folder with safetensors and json files at {store.uri}, got none"
        )
    told = "\n".join([store.uri, *(f"{name} {store.version(name)}" for name in names)])
    note = home() / "listings" / hashlib.sha256(told.encode()).hexdigest()
    if there := _noted(note):
        return there
    with _alone(note.name):
        if there := _noted(note):  # another worker has fetched it in between
            return there
        there = _fetch(store, names, note.name)
        local.write(str(note), there.name.encode())
    return there


def folder_digest(folder: Path) -> str | None:
    """Return the sha256 over names and content of a folder's model files, at any depth.

    Returns None where it has none.
    """
    files = sorted(
        (f for f in folder.rglob("*") if f.suffix in FILES),
        key=lambda f: f.relative_to(folder).as_posix(),
    )
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        with open(file, "rb") as content:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest() if files else None


def _noted(note: Path) -> Path | None:
    """Return the folder that a listing's note names; None where note or folder is missing."""
    if not note.is_file():
        return None
    there = home() / "folders" / note.read_text()
    return there if there.is_dir() else None


@contextmanager
def _alone(listing: str) -> Iterator[None]:
    """Hold a listing's lock, and remove the remains of fetches that were killed.

    The lock ends with its holder. On a file system without locks, several workers may fetch at the
    same time, and nothing is removed.
    """
    (home() / "listings").mkdir(parents=True, exist_ok=True)
    with open(home() / "listings" / f".{listing}.lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for half in (home() / "folders").glob(".*.tmp"):
            other = half.name[1:].partition("-")[0]
            if other == listing or _is_free(other):
                shutil.rmtree(half, ignore_errors=True)
        yield


def _is_free(listing: str) -> bool:
    """Return whether no worker fetches this listing.

    The lock is released immediately: a fetch that begins now uses another folder.
    """
    with open(home() / "listings" / f".{listing}.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _fetch(store: Store, names: list[str], listing: str) -> Path:
    """Fetch into a hidden folder, then rename it."""
    half = home() / "folders" / f".{listing}-{uuid.uuid4().hex}.tmp"
    try:
        for name in names:
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            with open(half / name, "xb") as file:
                store.copy(name, file)
                file.flush()
                os.fsync(file.fileno())
        whole = half.with_name(str(folder_digest(half)))
        if not whole.is_dir():
            try:
                half.rename(whole)
            except OSError:
                if not whole.is_dir():  # otherwise another worker was faster
                    raise
        return whole
    finally:
        shutil.rmtree(half, ignore_errors=True)


def home() -> Path:
    base = os.environ.get(HOME)
    return (
        Path(base)
        if base
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "counterfactory"
    )
