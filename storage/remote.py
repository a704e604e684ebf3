"""Folders that fsspec reaches (https://, hf://, gs://, abfs://, ...): inputs, which are only read.

A path is a whole URL. The scheme's package reads credentials from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, Literal, NoReturn, TypeVar

from storage.errors import BadPath, NoAnswer, StorageError
from storage.s3_file import RangeFile
from storage.s3_retry import Patience

BUFFER = 8 << 20  # bytes per request when Parquet columns are streamed
STAMPS = ("ETag", "etag", "blob_id")  # content keys: HTTP and clouds, Azure, Hugging Face
# Errors that a package raises on an address or a setting; another try fails in the same way.
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError)

T = TypeVar("T")


def read(path: str) -> bytes:
    """Read a file's bytes; FileNotFoundError where there is none."""
    return bytes(_ask(path, lambda: _fs(path).cat_file(path)))


def version(path: str) -> str:
    """Return a text that changes with a file's content: its etag, or a checksum of its listing."""
    info = _info(path)
    stamp = next((info[name] for name in STAMPS if info.get(name)), None)
    return str(stamp or f"{_ask(path, lambda: _fs(path).checksum(path)):x}").strip('"')


def size(path: str) -> int:
    """Return a file's size in bytes."""
    found = _info(path).get("size")
    if found is None:
        raise StorageError(f"expected a server that names the size of {path}, got none")
    return int(found)


def kind(path: str) -> Literal["file", "folder"] | None:
    """Return what is at a path; a page of HTML is a web server's list of a folder."""
    try:
        info = _info(path)
    except FileNotFoundError:
        return None
    page = info.get("mimetype") == "text/html"
    return "folder" if info["type"] == "directory" or page else "file"


def walk(path: str) -> Iterator[str]:
    """Yield the files below a folder, relative to it, at any depth."""
    try:
        found = _ask(path, lambda: _fs(path).find(path))
    except FileNotFoundError:
        return
    base = f"{str(_fs(path)._strip_protocol(path)).rstrip('/')}/"
    yield from (name.removeprefix(base) for name in found if name.startswith(base))


def open_file(path: str) -> tuple[RangeFile, int]:
    """Open a seekable file that fetches what is read; also returns the bytes to fetch at a time."""

    def fetch(start: int, stop: int) -> bytes:
        data = bytes(_ask(path, lambda: _fs(path).cat_file(path, start=start, end=stop)))
        if len(data) != stop - start:
            raise StorageError(
                f"expected {stop - start} bytes from {start} of {path}, got {len(data)}: the"
                " server must answer byte ranges"
            )
        return data

    return RangeFile(fetch, size(path)), BUFFER


def write(path: str, data: bytes) -> NoReturn:
    _refuse(path)


def put_new(path: str, data: bytes) -> NoReturn:
    _refuse(path)


def remove(path: str, within: str) -> NoReturn:
    _refuse(path)


def ages(path: str) -> NoReturn:
    _refuse(path)


def folders(path: str) -> NoReturn:
    _refuse(path)


def _info(path: str) -> dict[str, Any]:
    return dict(_ask(path, lambda: _fs(path).info(path)))


def _refuse(path: str) -> NoReturn:
    raise BadPath(f"expected a folder on a disk or in s3:// for what is written, got {path}")


def _fs(path: str) -> Any:
    return _file_system("/".join(path.split("/")[:3]), os.getpid())


@lru_cache(maxsize=8)
def _file_system(origin: str, process: int) -> Any:
    """Return fsspec's file system of scheme://host, without a cache of listings.

    Each process has its own, because its thread does not survive a fork. BadPath where the scheme
    or its package is missing.
    """
    from fsspec.registry import get_filesystem_class, known_implementations

    scheme = origin.partition("://")[0]
    try:
        file_system = get_filesystem_class(scheme)
        # such as the account of an Azure address
        options = file_system._get_kwargs_from_urls(origin)
        return file_system(use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        package = known_implementations[scheme]["class"].partition(".")[0]
        if package == "fsspec":  # its own class, which needs another package
            package = getattr(error.__cause__, "name", None) or package
        raise BadPath(
            f"expected the package that reads {scheme}://, got none: pip install {package}"
        ) from None
    except (ConnectionError, TimeoutError):
        raise  # it connects immediately, and `_ask` tries again
    except Exception as error:
        raise BadPath(
            f"expected s3://, https://, hf://, gs://, abfs:// or another scheme of fsspec, got"
            f" {scheme}:// ({type(error).__name__})"
        ) from None


def _ask(url: str, request: Callable[[], T]) -> T:
    """Make a request, and repeat it where the network or the server fails, as long as S3 requests.

    FileNotFoundError where there is nothing; StorageError where another try cannot help; NoAnswer
    where all tries failed. The packages' own messages are not shown, because they may hold a
    signature.
    """
    patience = Patience(url.partition("://")[0], url)
    for tries in count(1):
        try:
            return request()
        except BadPath:
            raise
        except Exception as error:
            cause, status = _cause(error)
            got = str(status or type(cause).__name__)
            denied = isinstance(cause, PermissionError) or "Credential" in type(cause).__name__
            if denied or status in (401, 403):
                raise StorageError(
                    f"expected access to {url}, got {got}: check the address and the credentials"
                ) from None
            if status in (404, 410) or isinstance(cause, FileNotFoundError):
                raise FileNotFoundError(f"expected a file at {url}, got none") from None
            refused = status is not None and status < 500 and status not in (408, 429)
            if refused or isinstance(cause, (*MISTAKES, IsADirectoryError)):
                raise StorageError(f"expected {url} to be readable, got {got}") from None
            if patience.is_over(got):
                raise NoAnswer(
                    f"expected an answer for {url}, got {got} {tries} times: check the address and"
                    " the network; what is committed stays, the same command goes on"
                ) from None
        patience.wait(tries)
    raise AssertionError("the last try returns or raises")


def _cause(error: Exception) -> tuple[BaseException, int | None]:
    """Return the cause of an error and its HTTP status.

    fsspec's HTTP raises "not found" for every failure.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or isinstance(cause, MISTAKES):
        cause = error
    for holder in (cause, getattr(cause, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int) and status >= 400:
                return cause, status
    return cause, None
