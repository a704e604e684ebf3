"""Folders in S3 and compatible stores, with endpoint and credentials from the environment.

A path is bucket/key. All requests use one boto3 client, so that small objects and Parquet have the
same retry policy and the same errors. (pyarrow's own S3 file system also retries, but raises a
plain OSError for 403 and "not found" for a bucket that does not exist, and searches for credentials
in its own way. s3fs sends PUT, GET and DELETE through aiohttp, which repeats each once by itself
when the connection drops. The number of tries is then wrong, and a commit that arrived at the first
try finds its own object.)
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

from storage.errors import FileChanged, StorageError
from storage.s3_file import RangeFile
from storage.s3_retry import Refused, ask, is_passing, no_access, no_answer

CONNECT_SECONDS, READ_SECONDS = 10, 60  # seconds without a byte before a request is tried again
BUFFER = 8 << 20  # bytes per request when Parquet columns are streamed: round trips are slow


class NotFromS3(ConnectionError):  # noqa: N818 (it describes the reply)
    """A reply that no S3 sends, such as a captive portal's page: a network problem,
    which may pass.
    """


def read(path: str) -> bytes:
    """Read an object's bytes; FileNotFoundError where there is none."""
    bucket, key = _parts(path)

    def get() -> bytes:
        return _body(_reply(lambda: client().get_object(Bucket=bucket, Key=key), "ETag"))

    return bytes(ask(path, get, _explain).value)


def write(path: str, data: bytes) -> None:
    """Write an object, over any older one; objects appear whole or not at all."""
    bucket, key = _parts(path)

    def put() -> Any:
        return _reply(
            lambda: client().put_object(Bucket=bucket, Key=key, Body=data), "ETag", made=True
        )

    ask(path, put, _explain)


def put_new(path: str, data: bytes) -> bool:
    """Write an object only if the key is free; returns False where another writer took it.

    A try whose reply was lost may have arrived, and the next try then finds the key taken. The
    writer's mark, which is stored with the object, shows whether it is this writer's, for any
    content.
    """
    bucket, key = _parts(path)
    mark = uuid.uuid4().hex

    def put() -> Any:
        settings = {"IfNoneMatch": "*", "Metadata": {"writer": mark}}
        return _reply(
            lambda: client().put_object(Bucket=bucket, Key=key, Body=data, **settings),
            "ETag",
            made=True,
        )

    # 409: another conditional PUT is in progress
    answer = ask(path, put, _explain, allow=(412,), again=(409,))
    if answer.status != 412:
        return True
    return answer.lost > 0 and _head(path).get("Metadata", {}).get("writer") == mark


def version(path: str) -> str:
    """Return an object's etag, which changes with its content."""
    return str(_head(path)["ETag"]).strip('"')


def size(path: str) -> int:
    """Return an object's size in bytes."""
    return int(_head(path)["ContentLength"])


def kind(path: str) -> Literal["file", "folder"] | None:
    """Return what is at a path: an object, keys below it, or nothing."""
    if "/" in path:
        try:
            _head(path)
            return "file"
        except FileNotFoundError:
            pass
    bucket, key = _parts(path)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def first() -> Any:
        return _listing(Bucket=bucket, Prefix=prefix, MaxKeys=1)

    return "folder" if ask(path, first, _explain).value.get("KeyCount") else None


def walk(path: str) -> Iterator[str]:
    """Yield the keys below a path, relative to it, at any depth; skips markers of empty folders."""
    prefix, pages = _pages(path)
    for page in pages:
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry["Key"][len(prefix) :]


def ages(path: str) -> Iterator[tuple[str, int, float]]:
    """Yield every key below a path, relative to it, with its size and its last write.

    The time is in seconds since 1970.
    """
    prefix, pages = _pages(path)
    for page in pages:
        for entry in page.get("Contents", ()):
            yield entry["Key"][len(prefix) :], entry["Size"], entry["LastModified"].timestamp()


def folders(path: str) -> list[str]:
    """Return the names of the key prefixes directly under a path, which serve as folders."""
    prefix, pages = _pages(path, Delimiter="/")
    return [
        entry["Prefix"][len(prefix) : -1]
        for page in pages
        for entry in page.get("CommonPrefixes", ())
    ]


def open_file(path: str) -> tuple[RangeFile, int]:
    """Open a seekable file that fetches what is read from the object as it is now.

    Also returns the bytes to fetch at a time.
    """
    bucket, key = _parts(path)
    head = _head(path)

    def fetch(start: int, stop: int) -> bytes:
        def get() -> bytes:
            span = f"bytes={start}-{stop - 1}"
            part = {"Range": span, "IfMatch": head["ETag"]}
            return _body(
                _reply(lambda: client().get_object(Bucket=bucket, Key=key, **part), "ETag"),
                stop - start,
            )

        return bytes(ask(path, get, _explain).value)

    return RangeFile(fetch, int(head["ContentLength"])), BUFFER


def remove(path: str, within: str) -> None:
    """Delete an object.

    Does not use pyarrow, which leaves an empty object with the name of its folder.
    """
    bucket, key = _parts(path)

    def delete() -> Any:
        return _reply(lambda: client().delete_object(Bucket=bucket, Key=key), "ResponseMetadata")

    ask(path, delete, _explain)


def client() -> Any:
    """Return the boto3 client for the endpoint and key that the environment has now."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_REGION",
    )
    now = "\0".join(os.environ.get(name, "") for name in (*names, "AWS_REGION"))
    return _client(
        _endpoint(), hashlib.sha256(now.encode()).hexdigest(), (CONNECT_SECONDS, READ_SECONDS)
    )


@lru_cache(maxsize=4)
def _client(endpoint: str | None, identity: str, seconds: tuple[float, float]) -> Any:
    import boto3  # slow to import, and not needed for runs on disk
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    # One try per request here: `ask` repeats it, with one policy for requests and for the bodies
    # that follow them.
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=seconds[0],
        read_timeout=seconds[1],
        max_pool_connections=32,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    try:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise NoCredentialsError  # so that no client without a key is stored
        region = region or session.region_name or ("us-east-1" if endpoint else None)
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        if isinstance(error, NoCredentialsError) or is_passing(error):
            raise  # `ask` decides
        raise StorageError(
            f"expected settings that lead to S3, got {type(error).__name__}: check AWS_*"
        ) from None


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _parts(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _head(path: str) -> dict[str, Any]:
    bucket, key = _parts(path)

    def head() -> Any:
        return _reply(lambda: client().head_object(Bucket=bucket, Key=key), "ETag")

    return dict(ask(path, head, _explain).value)


def _listing(**what: Any) -> dict[str, Any]:
    """Return a page of a listing."""
    return _reply(lambda: client().list_objects_v2(**what), "IsTruncated", made=True)


def _reply(request: Callable[[], Any], mark: str, *, made: bool = False) -> dict[str, Any]:
    """Return a request's reply; NotFromS3 where it lacks the marks of S3, or redirects elsewhere.

    botocore checks little: it accepts any page of XML as an empty listing, and any 200 as a
    successful PUT. made: a 404 can only concern the bucket.
    """
    from botocore.exceptions import ClientError

    try:
        reply = dict(request())
    except RecursionError:  # botocore repeats a redirected request until its stack ends
        raise NotFromS3("a redirect in circles") from None
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = error.response.get("Error", {}).get("Code")
        if status in (302, 303, 308) or (made and status == 404 and code != "NoSuchBucket"):
            raise NotFromS3(f"status {status}") from None
        raise
    if mark not in reply:
        raise NotFromS3(f"no {mark}")
    return reply


def _body(reply: dict[str, Any], length: int | None = None) -> bytes:
    """Read a reply's whole body.

    ConnectionError where fewer bytes arrive than were announced or requested.
    """
    data = bytes(reply["Body"].read())
    expected = reply["ContentLength"] if length is None else length
    if len(data) != expected:
        raise ConnectionError(f"expected {expected} bytes, got {len(data)}")
    return data


def _pages(path: str, **options: str) -> tuple[str, Iterator[dict[str, Any]]]:
    """Return the prefix of a folder's keys, and the pages of the listing, each with
    its own tries.
    """
    bucket, key = _parts(path)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def pages() -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            page = ask(
                path,
                lambda: _listing(Bucket=bucket, Prefix=prefix, **options, **more),  # noqa: B023
                _explain,
            ).value
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    return prefix, pages()


def _explain(path: str, refused: Refused) -> Exception:
    """Return the error that explains a refusal to the user, in one line.

    Of the server's text it holds only a code. It shows nothing of the request: headers and query
    hold the signature, and an endpoint may hold a password.
    """
    status, code = refused.status, refused.code
    bucket = path.partition("/")[0]
    if code == "NoSuchBucket":
        return StorageError(
            f"expected a bucket {bucket!r} for s3://{path}, got {code}: check its name and the"
            " endpoint"
        )
    if status == 404:
        return FileNotFoundError(f"expected an object at s3://{path}, got none")
    if status in (401, 403):
        return no_access(path, code)
    if status == 412:
        return FileChanged(
            f"s3://{path} changed while it was read: the run needs the file that it was planned"
            " with"
        )
    if status in (301, 307, 400) and (
        "Region" in code or "Redirect" in code or code in ("301", "400")
    ):
        return StorageError(
            f"expected s3://{path} in the region of AWS_DEFAULT_REGION, got {status} {code}"
        )
    if status == 501:
        return StorageError(
            f"expected a server with conditional PUT (If-None-Match) for s3://{path}, got {status}"
            f" {code}"
        )
    if refused.busy:
        return no_answer(path, f"{status} {code}", refused.tries)
    return StorageError(f"expected S3 to answer for s3://{path}, got {status} {code}")
