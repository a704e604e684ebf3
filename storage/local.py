"""Writing to a disk so that a crash at any moment leaves either the whole file or none."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}


def read(path: str) -> bytes:
    """A file's bytes; FileNotFoundError if there is none."""
    return Path(path).read_bytes()


def write(path: str, data: bytes) -> None:
    """Put a file in place, whole and fsynced, over whatever was there."""
    temp = _temp(path, data)
    os.replace(temp, path)
    _sync(Path(path).parent)


def put_new(path: str, data: bytes) -> bool:
    """Put a file in place only if the name is free; False if it was taken.

    The link appears with the whole, fsynced content behind it, so no reader sees half a file
    (O_EXCL on the name itself would show one, and a kill in the middle would leave it for good).
    Where a file system has no hard links, the name is decided under a lock that dies with its
    holder.
    """
    if os.path.lexists(path):
        return False
    temp = _temp(path, data)
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename_new(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    _sync(Path(path).parent)
    return True


def version(path: str) -> str:
    """What changes when a file's content does: its size and the nanosecond of its last change."""
    stat = os.stat(path)
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def remove(path: str, within: str) -> None:
    """Delete a file, and the folders that this empties, up to `within`, which stays."""
    Path(path).unlink(missing_ok=True)
    for folder in Path(path).parents:
        if folder == Path(within):
            break
        try:
            folder.rmdir()
        except OSError:  # it holds other files, or another has removed it
            break


def size(path: str) -> int:
    """A file's bytes."""
    return os.stat(path).st_size


def kind(path: str) -> Literal["file", "folder"] | None:
    """What is at a path."""
    return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else None


def walk(path: str) -> Iterator[str]:
    """Files below a folder, relative to it, however deep; links are followed, but into no folder
    twice.
    """
    seen: set[str] = set()
    waiting = [(path, "")]
    while waiting:
        folder, prefix = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen or not os.path.isdir(folder):
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield f"{prefix}{entry.name}"


def ages(path: str) -> Iterator[tuple[str, int, float]]:
    """Every file below a folder, as `walk`, with when it was written, in seconds since 1970; no
    link is followed.
    """
    for folder, _, names in os.walk(path):
        for name in names:
            where = Path(folder, name)
            with suppress(FileNotFoundError):  # it was there when the folder was listed
                stat = where.lstat()
                yield str(where.relative_to(path)), stat.st_size, stat.st_mtime


def folders(path: str) -> list[str]:
    """Names of the folders right under a folder; [] if none."""
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def links_out(path: str) -> Iterator[str]:
    """Folders in a folder, and in these, that are links and lead out of it, relative to it."""
    root = os.path.realpath(path)
    for folder in ("", *(f"{name}/" for name in sorted(folders(path)))):
        for name in sorted(folders(f"{path}/{folder}")):
            real = os.path.realpath(f"{path}/{folder}{name}")
            if os.path.islink(f"{path}/{folder}{name}") and not real.startswith(f"{root}/"):
                yield f"{folder}{name}"


def open_file(path: str) -> tuple[str, int]:
    """What pyarrow opens, and the bytes to read at a time."""
    os.stat(path)  # FileNotFoundError
    return path, 1 << 20


def _rename_new(temp: Path, path: str) -> bool:
    folder = Path(path).parent
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return False
        os.replace(temp, path)
    _sync(folder)
    return True


def _temp(path: str, data: bytes) -> Path:
    """A hidden, fsynced file beside `path`; hidden names are never listed."""
    folder = Path(path).parent
    _make(folder)
    temp = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    return temp


def _make(folder: Path) -> None:
    """Make a folder and its parents; a new name lasts only once the folder that holds it is
    fsynced.
    """
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
