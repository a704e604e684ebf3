"""Folders of model files on this machine: one that lies in S3 is fetched once, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from storage import local
from storage.uri import Store, open_store

FILES = (".safetensors", ".json")  # what a model folder is read from and pinned by: no pickles
HOME = "COUNTERFACTORY_CACHE"  # names another folder than ~/.cache/counterfactory


def cached(uri: str) -> Path:
    """The local copy of a folder's model files, under the name of its digest; FileNotFoundError if it has none.

    Versions in the store tell whether a copy is the one that is there now, so that many workers on a node fetch once.
    """
    store = open_store(uri)
    names = [name for name in store.list("") if name.endswith(FILES)]
    if not names:
        raise FileNotFoundError(f"expected a folder with safetensors and json files at {store.uri}, got none")
    told = "\n".join([store.uri, *(f"{name} {store.version(name)}" for name in names)])
    note = _home() / "listings" / hashlib.sha256(told.encode()).hexdigest()
    if note.is_file() and (there := _home() / "folders" / note.read_text()).is_dir():
        return there
    there = _fetch(store, names)
    local.write(str(note), there.name.encode())
    return there


def folder_digest(folder: Path) -> str | None:
    """sha256 over names and content of a folder's model files, however deep; None where it has none."""
    files = sorted((f for f in folder.rglob("*") if f.suffix in FILES), key=lambda f: f.relative_to(folder).as_posix())
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest() if files else None


def _fetch(store: Store, names: list[str]) -> Path:
    """Fetch into a folder that nobody sees, then give it its name."""
    half = _home() / "folders" / f".{uuid.uuid4().hex}.tmp"
    try:
        for name in names:
            local.write(str(half / name), store.read(name))
        whole = half.with_name(str(folder_digest(half)))
        if not whole.is_dir():
            try:
                half.rename(whole)
            except OSError:
                if not whole.is_dir():  # else another worker was quicker
                    raise
        return whole
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _home() -> Path:
    base = os.environ.get(HOME)
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "counterfactory"
