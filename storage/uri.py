"""Folders on a disk or in S3 with the same few methods, and inputs wherever fsspec reaches."""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import parquet as pq

from storage import local, remote
from storage.errors import BadPath
from storage.secrets import hide, holds_secret
from storage.tables import is_damage, open_parquet, read_footer

GLOB = set("*?[")
# endings of Parquet files; pandas and others append the codec of the pages: .parquet.gzip
PARQUET = re.compile(
    r"\.(parquet|parq|pq)(\.(gzip|gz|snappy|snap|zstd|zst|brotli|br|lz4))?$", re.IGNORECASE
)
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://[^/]")


class Kind(Protocol):
    """Functions that differ between places: the modules storage.local, storage.s3
    and storage.remote.
    """

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def put_new(self, path: str, data: bytes) -> bool: ...
    def version(self, path: str) -> str: ...
    def size(self, path: str) -> int: ...
    def kind(self, path: str) -> Literal["file", "folder"] | None: ...
    def walk(self, path: str) -> Iterator[str]: ...
    def ages(self, path: str) -> Iterator[tuple[str, int, float]]: ...
    def folders(self, path: str) -> list[str]: ...
    def open_file(self, path: str) -> tuple[Any, int]: ...
    def remove(self, path: str, within: str) -> None: ...


class Entry(NamedTuple):
    """A file of a store: its path, bytes, and time of its last write, in seconds since 1970."""

    path: str
    size: int
    written: float


class Digest(NamedTuple):
    """Size and sha256 of a file's bytes."""

    bytes: int
    sha256: str


class Store:
    """A folder: local path, file://..., s3://bucket/prefix, or another URL, which is only read.

    Paths passed to its methods are relative and cannot leave it. replaced: digests of the files
    that this object wrote by `replace`, by path; the manifest's digests come from here.
    """

    def __init__(self, uri: str) -> None:
        self._kind, self._root, self.uri = _split(uri)
        self.replaced: dict[str, Digest] = {}

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        # only the name is sent to another process, no client and no credentials
        return Store, (self.uri,)

    def read(self, path: str) -> bytes:
        """Read a file's bytes; FileNotFoundError where there is none."""
        try:
            return self._kind.read(self._at(path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            got = "a folder" if isinstance(error, IsADirectoryError) else "none"
            raise FileNotFoundError(f"expected a file at {self.url(path)}, got {got}") from None

    def copy(self, path: str, out: BinaryIO) -> None:
        """Write a file's bytes into an open file, some MB at a time;
        FileNotFoundError, FileChanged.
        """
        source, size = self._kind.open_file(self._at(path))
        with open(source, "rb") if isinstance(source, str) else source as file:
            shutil.copyfileobj(file, out, size)

    def write(self, path: str, data: bytes) -> None:
        """Write a file under a name that nobody else uses.

        It is written whole or not at all, and is on the disk when this returns.
        """
        self._kind.write(self._at(path), data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file if its name is free: the first writer wins.

        Returns False where the file was already there; it is then unchanged.
        """
        return self._kind.put_new(self._at(path), data)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file over an older one, atomically: a reader sees the old one or the new one."""
        self._kind.write(self._at(path), data)
        self.replaced[path] = digest_of(data)

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder of this name."""
        return self._kind.kind(self._at(path)) is not None

    def is_file(self, path: str) -> bool:
        """Return whether there is a file of this name."""
        return self._kind.kind(self._at(path)) == "file"

    def list(self, prefix: str) -> list[str]:
        """Return the files under a folder ("" for all), at any depth, sorted, relative to the
        store.

        Skips hidden (unfinished) files.
        """
        return sorted(self._walk(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of each file that `list` names."""
        base = f"{prefix}/" if prefix else ""
        found = self._kind.ages(self._at(prefix) if prefix else self._root)
        return dict(sorted((base + path, size) for path, size, _ in found if not _hidden(path)))

    def entries(self) -> builtins.list[Entry]:
        """Return every file, at any depth, with hidden ones, sorted."""
        return sorted(Entry(*found) for found in self._kind.ages(self._root))

    def remove(self, path: str) -> None:
        """Delete a file; it is no error where the file is already gone.

        Only `gc` uses it, and the check of a cluster's nodes for its own probe file: nothing that
        holds results is deleted.
        """
        self._kind.remove(self._at(path), self._root)

    def expect_inside(self) -> None:
        """Raise BadPath where a folder in this one, or in one of those, is a link that leads out of
        it.

        A run must own its files.
        """
        for path in local.links_out(self._root) if self._kind is local else ():
            raise BadPath(
                f"expected a folder of the run at {self.url(path)}, got a link to elsewhere: put"
                " the folder itself there"
            )

    def folders(self, prefix: str) -> builtins.list[str]:
        """Return the names of the folders directly under a folder ("" for the store), sorted; [] if
        none.
        """
        return sorted(self._kind.folders(self._at(prefix) if prefix else self._root))

    def version(self, path: str) -> str:
        """Return a text that changes with the file's content.

        It is size and mtime in ns on a disk, and the etag in S3.
        """
        try:
            return self._kind.version(self._at(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"expected a file at {self.url(path)}, got none") from None

    def parquet(
        self, path: str, *, streamed: bool = False, footer: str | None = None
    ) -> pq.ParquetFile:
        """Open a Parquet file by reading its footer only; close it (`with`).

        streamed: later reads hold at most a page of each column in memory, otherwise all of it at
        once. footer: the digest that its footer must have. Pages with checksums are verified when
        they are read. ValueError names a file that is not Parquet.
        """
        at = self._at(path)
        try:
            source, buffer = self._kind.open_file(at)
            known = None
            if footer is not None:
                with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
                    known = read_footer(file, footer)
            return open_parquet(source, metadata=known, buffer_size=buffer, pre_buffer=not streamed)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"expected a Parquet file at {self.url(path)}, got no such file"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(
                f"{self.url(path)}: expected names of columns in UTF-8, got others"
            ) from None
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise  # a disk or a server failed; the file is not at fault
            size, what = self._kind.size(at), "no Parquet" if footer is None else "others"
            raise ValueError(
                f"expected a Parquet file at {self.url(path)}, got {size} bytes of {what}"
            ) from None

    def url(self, path: str) -> str:
        """Return the file's full name, which `split_url` takes apart again."""
        return f"{self.uri.rstrip('/')}/{_inside(path)}"

    def _walk(self, prefix: str) -> Iterator[str]:
        base = f"{prefix}/" if prefix else ""
        for path in self._kind.walk(self._at(prefix) if prefix else self._root):
            if not _hidden(path):
                yield base + path

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{_inside(path)}"


def digest_of(data: bytes) -> Digest:
    """Return the digest of a file's bytes."""
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open a folder that can be written and need not exist yet; BadPath for other places."""
    store = Store(os.fspath(uri))
    if _is_remote(store.uri):
        raise BadPath(
            f"expected a local path, file:// or s3://, got {hide(store.uri)!r}: other addresses are"
            " read as data.path only"
        )
    return store


def split_url(url: str) -> tuple[Store, str]:
    """Return the store of a file's folder, as from `open_store`, and the file's name."""
    folder, _, name = open_store(url).uri.rpartition("/")
    return open_store(folder or "/"), name


def input_file(url: str) -> tuple[Store, str]:
    """Return the same as `split_url`, for a file of any scheme that is only read."""
    folder, _, name = _split(url)[2].rpartition("/")
    return Store(folder or "/"), name


def data_files(path: str) -> list[tuple[Store, str]]:
    """Return the Parquet files of a file, a folder (recursively) or a glob, in name order.

    `**` in a glob spans folders. The ending of the name decides in a folder (PARQUET), the pattern
    in a glob. Skips names that begin with . or _. FileNotFoundError names the path where nothing
    was found; ValueError names a file whose name is not UTF-8 or not possible in a path.
    """
    store = Store(path)
    folder, name = input_file(store.uri)
    if name and folder.is_file(name):
        return _usable([(folder, name)])
    visible = _visible(store)
    found = [name for name in visible if is_parquet(name)]
    if not found and GLOB & set(path):
        parts = store.uri.split("/")
        first = next(i for i, part in enumerate(parts) if GLOB & set(part))
        store = Store("/".join(parts[:first]) or "/")
        found = [name for name in _visible(store) if _matches(name.split("/"), parts[first:])]
    if not found:
        got = "none"
        if visible:
            got = (
                f"{len(visible):,} other files, such as {readable(visible[0])}: Parquet ends in"
                " .parquet, .parq or .pq (also .parquet.gzip); a glob, such as"
                f" {path.rstrip('/')}/*, takes any name"
            )
        raise FileNotFoundError(f"expected Parquet files at {path}, got {got}")
    return _usable([(store, name) for name in found])


def is_parquet(name: str) -> bool:
    """Return whether a file counts as Parquet by its ending."""
    return PARQUET.search(name) is not None


def readable(name: str) -> str:
    """Return a file's name for a message; bytes that are not UTF-8 are written as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _usable(files: list[tuple[Store, str]]) -> list[tuple[Store, str]]:
    """Return the files; ValueError names the first whose name no plan or commit could hold."""
    for store, name in files:
        try:
            store.url(name).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "expected names of files and folders in UTF-8, got"
                f" {readable(store.url(name))}: rename it"
            ) from None
        except BadPath:
            raise ValueError(
                f"expected file names without //, . and .. as parts and without \\ at {store.uri},"
                f" got {name}: rename the file"
            ) from None
    return files


def _visible(store: Store) -> list[str]:
    listed = store.list("")
    return [name for name in listed if not any(part[:1] in ("_", ".") for part in name.split("/"))]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _split(uri: str) -> tuple[Kind, str, str]:
    """Return (kind of place, root in pyarrow's form, the full uri)."""
    if uri.startswith("s3://"):
        from storage import s3

        root = uri.removeprefix("s3://").strip("/")
        if not root:
            raise BadPath(f"expected s3://bucket/prefix, got {uri!r}")
        if holds_secret(uri):
            raise BadPath(
                f"expected s3://bucket/prefix, got {hide(uri)}: credentials go into the environment"
                " (AWS_*)"
            )
        return s3, root, f"s3://{root}"
    if _is_remote(uri):
        scheme, _, rest = uri.partition("://")
        # abfs://container@account is not a name and password; a query may hold a key
        container = scheme in ("abfs", "abfss") and ":" not in rest.partition("@")[0]
        secret = holds_secret(rest if container else uri)
        if secret or (scheme in ("http", "https") and re.search(r"\?.*=", rest)):
            shown = f"{hide(uri).partition('?')[0]}{'?***' if '?' in uri else ''}"
            raise BadPath(
                f"expected {scheme}://... without a key or a query, got {shown}: credentials go"
                " into the environment"
            )
        return remote, uri.rstrip("/"), uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise BadPath(f"expected a local path, file://, s3:// or another URL, got {hide(uri)!r}")
    if not uri:
        raise BadPath("expected a path, got an empty one")
    if "\0" in uri:
        raise BadPath(f"expected a path, got {uri!r}")
    path = (
        unquote(uri.removeprefix("file://"))
        if uri.startswith("file://")
        else os.path.expanduser(uri)
    )
    root = str(Path(os.path.abspath(path)))
    return local, root, root


def _is_remote(uri: str) -> bool:
    return bool(REMOTE.match(uri)) and not uri.startswith(("file://", "s3://"))


def _hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _inside(path: str) -> str:
    """Return a relative path that stays in its folder; BadPath for any other."""
    if (
        not path
        or "\\" in path
        or "\0" in path
        or any(part in ("", ".", "..") for part in path.split("/"))
    ):
        raise BadPath(f"expected a relative path inside the folder, got {path!r}")
    return path
