"""Folders on a disk or in S3, behind the same few verbs; inputs may lie wherever fsspec reaches."""

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
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://[^/]")


class Kind(Protocol):
    """What differs between places: the modules storage.local, storage.s3 and storage.remote."""

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
    """A file of a store: its path, bytes, and when it was last written, in seconds since 1970."""

    path: str
    size: int
    written: float


class Digest(NamedTuple):
    """What a file's bytes are known by."""

    bytes: int
    sha256: str


class Store:
    """A folder: local path, file://..., s3://bucket/prefix, or another URL that is only read; paths
    given to it are relative and cannot leave it.

    replaced: what this object wrote by `replace`, by path: the manifest's digests come from here.
    """

    def __init__(self, uri: str) -> None:
        self._kind, self._root, self.uri = _split(uri)
        self.replaced: dict[str, Digest] = {}

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        # to another process goes the name only, no client and no credentials
        return Store, (self.uri,)

    def read(self, path: str) -> bytes:
        """A file's bytes; FileNotFoundError if there is none."""
        try:
            return self._kind.read(self._at(path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            got = "a folder" if isinstance(error, IsADirectoryError) else "none"
            raise FileNotFoundError(f"expected a file at {self.url(path)}, got {got}") from None

    def copy(self, path: str, out: BinaryIO) -> None:
        """Write a file's bytes into an open one, some MB at a time; FileNotFoundError,
        FileChanged."""
        source, size = self._kind.open_file(self._at(path))
        with open(source, "rb") if isinstance(source, str) else source as file:
            shutil.copyfileobj(file, out, size)

    def write(self, path: str, data: bytes) -> None:
        """Write a file under a name that nobody else uses; whole or not at all, on the disk when
        this returns.
        """
        self._kind.write(self._at(path), data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file if its name is free: the first writer wins. False: it was there already, and
        stays.
        """
        return self._kind.put_new(self._at(path), data)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file over an older one, atomically: a reader sees the old one or the new one."""
        self._kind.write(self._at(path), data)
        self.replaced[path] = digest_of(data)

    def exists(self, path: str) -> bool:
        """Is there a file or folder of this name."""
        return self._kind.kind(self._at(path)) is not None

    def is_file(self, path: str) -> bool:
        """Is there a file of this name."""
        return self._kind.kind(self._at(path)) == "file"

    def list(self, prefix: str) -> list[str]:
        """Files under a folder ("" for all), however deep, sorted, relative to the store; no hidden
        (half) ones.
        """
        return sorted(self._walk(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each file that `list` names."""
        base = f"{prefix}/" if prefix else ""
        found = self._kind.ages(self._at(prefix) if prefix else self._root)
        return dict(sorted((base + path, size) for path, size, _ in found if not _hidden(path)))

    def entries(self) -> builtins.list[Entry]:
        """Every file, however deep, hidden ones too, sorted."""
        return sorted(Entry(*found) for found in self._kind.ages(self._root))

    def remove(self, path: str) -> None:
        """Delete a file; that it is gone already is no error.

        Only `gc` does so, and the look at a cluster's nodes with its own probe: nothing that holds
        results is deleted.
        """
        self._kind.remove(self._at(path), self._root)

    def expect_inside(self) -> None:
        """BadPath where a folder in this one, or in one of those, is a link that leads out of it:
        a run's files are its own.
        """
        for path in local.links_out(self._root) if self._kind is local else ():
            raise BadPath(
                f"expected a folder of the run at {self.url(path)}, got a link to elsewhere: put"
                " the folder itself there"
            )

    def folders(self, prefix: str) -> builtins.list[str]:
        """Names of the folders right under a folder ("" for the store), sorted; [] if none."""
        return sorted(self._kind.folders(self._at(prefix) if prefix else self._root))

    def version(self, path: str) -> str:
        """What changes when the file's content does: size and mtime in ns on a disk, the etag in
        S3.
        """
        try:
            return self._kind.version(self._at(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"expected a file at {self.url(path)}, got none") from None

    def parquet(
        self, path: str, *, streamed: bool = False, footer: str | None = None
    ) -> pq.ParquetFile:
        """Open a Parquet file: only its footer is read. Close it (`with`). ValueError names a file
        that is none.

        streamed: of what is read afterwards no more is held than a page of each column, else all of
        it at once. footer: the digest that its footer must have. Pages are verified by their
        checksums, where they have any, when they are read.
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
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if not is_damage(error):
                raise  # a disk or a server that failed, not the file's fault
            size, what = self._kind.size(at), "no Parquet" if footer is None else "others"
            raise ValueError(
                f"expected a Parquet file at {self.url(path)}, got {size} bytes of {what}"
            ) from None

    def url(self, path: str) -> str:
        """The file's full name, which `split_url` takes apart again."""
        return f"{self.uri.rstrip('/')}/{_inside(path)}"

    def _walk(self, prefix: str) -> Iterator[str]:
        base = f"{prefix}/" if prefix else ""
        for path in self._kind.walk(self._at(prefix) if prefix else self._root):
            if not _hidden(path):
                yield base + path

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{_inside(path)}"


def digest_of(data: bytes) -> Digest:
    """The digest of a file's bytes."""
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def open_store(uri: str | os.PathLike[str]) -> Store:
    """A store for a folder that can be written and need not exist yet; BadPath for other places."""
    store = Store(os.fspath(uri))
    if _is_remote(store.uri):
        raise BadPath(
            f"expected a local path, file:// or s3://, got {hide(store.uri)!r}: other addresses are"
            " read as data.path only"
        )
    return store


def split_url(url: str) -> tuple[Store, str]:
    """The store of a file's folder, as `open_store` gives it, and the file's name."""
    folder, _, name = open_store(url).uri.rpartition("/")
    return open_store(folder or "/"), name


def input_file(url: str) -> tuple[Store, str]:
    """As `split_url`, of a file that is only read and may be an input of any scheme."""
    folder, _, name = _split(url)[2].rpartition("/")
    return Store(folder or "/"), name


def data_files(path: str) -> list[tuple[Store, str]]:
    """Parquet files of a file, a folder (recursively) or a glob (`**` spans folders), in name
    order.

    Names that begin with . or _ are left out. FileNotFoundError names what was looked for.
    """
    store = Store(path)
    folder, name = input_file(store.uri)
    if name and folder.is_file(name):
        return [(folder, name)]
    found = _names(store, ["**", "*.parquet"])
    if not found and GLOB & set(path):
        parts = store.uri.split("/")
        first = next(i for i, part in enumerate(parts) if GLOB & set(part))
        store = Store("/".join(parts[:first]) or "/")
        found = _names(store, parts[first:])
    if not found:
        raise FileNotFoundError(f"expected Parquet files at {path}, got none")
    return [(store, name) for name in found]


def _names(store: Store, pattern: list[str]) -> list[str]:
    names = ((name, name.split("/")) for name in store.list(""))
    return [
        name
        for name, parts in names
        if _matches(parts, pattern) and not any(p[0] in "._" for p in parts)
    ]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _split(uri: str) -> tuple[Kind, str, str]:
    """(what kind, root as pyarrow wants it, the uri in full)."""
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
        # abfs://container@account is no name and password; a query may hold a key
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
    """A relative path that stays in its folder; BadPath otherwise."""
    if (
        not path
        or "\\" in path
        or "\0" in path
        or any(part in ("", ".", "..") for part in path.split("/"))
    ):
        raise BadPath(f"expected a relative path inside the folder, got {path!r}")
    return path
