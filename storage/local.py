"""Writing to a disk so that a crash at any moment leaves either the whole file or none."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from pathlib import Path

from pyarrow import fs

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}


def filesystem(path: str) -> fs.FileSystem:
    """How pyarrow reads paths of this kind; `path` is one of them."""
    return fs.LocalFileSystem()


def write(path: str, data: bytes) -> None:
    """Put a file in place, whole and fsynced, over whatever was there."""
    temp = _temp(path, data)
    os.replace(temp, path)
    _sync(Path(path).parent)


def put_new(path: str, data: bytes) -> bool:
    """Put a file in place only if the name is free; False if it was taken.

    The link appears with the whole, fsynced content behind it, so no reader sees half a file (O_EXCL on the name itself
    would show one, and a kill in the middle would leave it for good). Where a file system has no hard links, the name
    is decided under a lock that dies with its holder.
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
    """Make a folder and its parents; a new name lasts only once the folder that holds it is fsynced."""
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
