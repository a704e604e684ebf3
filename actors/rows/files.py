"""Images that a row names by a path instead of holding their bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from storage.codec import BadRow
from storage.errors import BadPath
from storage.uri import input_file

FILE_BYTES = 1 << 28  # a longer file is not an image
# Errors of a path: another path may be readable. All others are the disk's, not the row's.
NO_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


def with_files(cells: Mapping[str, Any], columns: Iterable[str], file: str) -> dict[str, Any]:
    """Return a row's cells, where cells of `columns` with a path and no bytes get that file's
    bytes.

    A path is a text, or a struct's `path`. It is relative to the folder of `file`, the data file's
    URL, and then, on a disk, to the current folder. In a bucket or on a host, nothing outside of it
    is read. A cell whose file cannot be read becomes {"bytes": None, "path": ...}.
    """
    out = dict(cells)
    for name in columns:
        cell = out.get(name)
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        if isinstance(path, str) and (cell is path or bytes_of(cell) is None):
            out[name] = {"bytes": _content(path, file) if path else None, "path": path}
    return out


def expect_bytes(cell: Any, what: str) -> None:
    """Raise BadRow where a cell has a path but still no bytes."""
    if isinstance(cell, Mapping) and cell.get("bytes") is None and cell.get("path"):
        raise BadRow(
            f"no {what}: its bytes are null, and at its path is no file that can be read (paths"
            " count from the data file's folder, or else from the current one)"
        )


def bytes_of(cell: Any) -> Any:
    """Return a cell's encoded bytes, from a struct or plain."""
    return cell.get("bytes") if isinstance(cell, Mapping) else cell


def _content(path: str, file: str) -> bytes | None:
    """Return the bytes of a path's file; None where it cannot be read."""
    try:
        if "://" in file:
            return _stored(path, file)
        if path.startswith("file://"):
            path = unquote(path.removeprefix("file://"))
        for place in (os.path.join(os.path.dirname(file), path), path):
            # reading a device or a pipe might never end
            if os.path.isfile(place) and os.path.getsize(place) <= FILE_BYTES:
                with open(place, "rb") as opened:
                    return opened.read()
    except BadPath:
        return None
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in NO_FILE:
            raise
    return None


def _stored(path: str, file: str) -> bytes:
    """Return the bytes of a path in the bucket or on the host of a data file; else
    raise BadPath.
    """
    origin = "/".join(file.split("/")[:3])
    if "://" not in path:
        store, _ = input_file(file)
        return store.read(path)
    if not path.startswith(f"{origin}/"):
        raise BadPath(path)
    store, name = input_file(path)
    return store.read(name)
