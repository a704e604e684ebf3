"""Writing to S3 and what speaks its language: a path is bucket/key, endpoint and credentials are the environment's."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pyarrow import fs

ATTEMPTS = 8  # per request, with jittered backoff, on 5xx, SlowDown and time-outs


def filesystem(path: str) -> fs.FileSystem:
    """How pyarrow reads paths of this kind; `path` is one of them, its bucket tells the region."""
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = _endpoint()
    if endpoint is None:
        region = region or fs.resolve_s3_region(path.partition("/")[0])
        return fs.S3FileSystem(region=region, retry_strategy=retries)
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    region = region or "us-east-1"
    return fs.S3FileSystem(endpoint_override=host, scheme=scheme or "https", region=region, retry_strategy=retries)


def write(path: str, data: bytes) -> None:
    """Put an object, over whatever was there; objects appear whole or not at all."""
    bucket, _, key = path.partition("/")
    _checked(path, lambda: client().put_object(Bucket=bucket, Key=key, Body=data))


def put_new(path: str, data: bytes) -> bool:
    """Put an object only if the key is free; False if it was taken.

    False may also mean that our own first try arrived and only its reply was lost: read what stands and compare.
    """
    bucket, _, key = path.partition("/")

    def put() -> None:
        client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")

    for _ in range(ATTEMPTS):
        status = _checked(path, put, allow=(409, 412))
        if status != 409:  # 409: another conditional PUT was under way, and may yet fail
            return status == 200
    raise OSError(f"s3://{path}: expected a conditional PUT to be decided, got {ATTEMPTS} conflicts")


def version(path: str) -> str:
    """An object's etag, which changes when its content does."""
    bucket, _, key = path.partition("/")
    found: dict[str, Any] = {}
    _checked(path, lambda: found.update(client().head_object(Bucket=bucket, Key=key)) or found)
    return str(found["ETag"]).strip('"')


def client() -> Any:
    """The boto3 client for the endpoint and key that the environment names now."""
    return _client(_endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"))


@lru_cache(maxsize=4)
def _client(endpoint: str | None, key: str | None) -> Any:
    import boto3  # heavy, and not needed for runs on disk
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": ATTEMPTS})  # jittered backoff on 5xx and time-outs
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _checked(path: str, request: Callable[[], object], allow: tuple[int, ...] = ()) -> int:
    """Run a request; its HTTP status. 404 and 403 become Python's own errors, in one line."""
    from botocore.exceptions import ClientError

    try:
        request()
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = error.response.get("Error", {}).get("Code", "")
        if status in allow:
            return status
        if status == 404:
            raise FileNotFoundError(f"expected an object or bucket at s3://{path}, got {code}") from None
        if status == 403:
            raise PermissionError(f"expected access to s3://{path}, got {code}: check credentials and policy") from None
        raise OSError(f"expected S3 to answer for s3://{path}, got {status} {code}") from None
    return 200
