"""One suite over two kinds of folder: a disk's and a moto server's."""

import uuid
from collections.abc import Iterator

import pytest

from storage.uri import Store, open_store


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a moto server on loopback."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request otherwise
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="tests")
    yield address
    server.stop()


@pytest.fixture
def s3_folder(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh s3:// prefix, with the environment that leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest) -> str:
    """An empty folder's uri."""
    return str(request.getfixturevalue("s3_folder" if request.param == "s3" else "tmp_path"))


@pytest.fixture
def store(folder: str) -> Store:
    return open_store(folder)
