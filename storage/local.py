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
    """Read a file's bytes; FileNotFoundError where there is none."""
    return Path(path).read_bytes()


def write(path: str, data: bytes) -> None:
    """Write a file, whole and fsynced, over any older one."""
    temp = _temp(path, data)
    os.replace(temp, path)
    _sync(Path(path).parent)


def put_new(path: str, data: bytes) -> bool:
    """Write a file only if the name is free; returns False where it was taken.

    The link appears with the whole, fsynced content, so no reader sees half a file. O_EXCL on the
    name itself would show one, and a kill during the write would leave it for good. On a file
    system without hard links, a lock that ends with its holder decides who has the name.
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
    """Return a text that changes with a file's content: its size and mtime in nanoseconds."""
    stat = os.stat(path)
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def remove(path: str, within: str) -> None:
    """Delete a file, and the folders that are then empty, up to `within`, which stays."""
    Path(path).unlink(missing_ok=True)
    for folder in Path(path).parents:
        if folder == Path(within):
            break
        try:
            folder.rmdir()
        except OSError:  # it holds other files, or another process has removed it
            break


def size(path: str) -> int:
    """Return a file's size in bytes."""
    return os.stat(path).st_size


def kind(path: str) -> Literal["file", "folder"] | None:
    """Return what is at a path."""
    return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else None


def walk(path: str) -> Iterator[str]:
    """Yield the files below a folder, relative to it, at any depth.

    Follows links, but enters no folder twice.
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
    """Yield every file below a folder, as `walk`, with its last write in seconds since 1970.

    Follows no link.
    """
    for folder, _, names in os.walk(path):
        for name in names:
            where = Path(folder, name)
            with suppress(FileNotFoundError):  # it was there when the folder was listed
                stat = where.lstat()
                yield str(where.relative_to(path)), stat.st_size, stat.st_mtime


def folders(path: str) -> list[str]:
    """Return the names of the folders directly under a folder; [] if none."""
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def links_out(path: str) -> Iterator[str]:
    """Yield links that lead out of a folder, relative to it, among its folders and
    their folders.
    """
    root = os.path.realpath(path)
    for folder in ("", *(f"{name}/" for name in sorted(folders(path)))):
        for name in sorted(folders(f"{path}/{folder}")):
            real = os.path.realpath(f"{path}/{folder}{name}")
            if os.path.islink(f"{path}/{folder}{name}") and not real.startswith(f"{root}/"):
                yield f"{folder}{name}"


def open_file(path: str) -> tuple[str, int]:
    """Return what pyarrow opens, and the bytes to read at a time."""
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
    """Write a hidden, fsynced file beside `path`; hidden names are never listed."""
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
    """Make a folder and its parents.

    A new name is durable only after an fsync of the folder that holds it.
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
