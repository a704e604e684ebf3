"""S3 as a store: what it refuses is told in one line, and nothing that is told holds a secret."""

from typing import Any

import pytest

from storage import s3, s3_retry
from storage.errors import BadPath, StorageError
from storage.s3_file import RangeFile
from storage.secrets import hide
from storage.uri import Store, data_files, open_store

SECRET = "planted-secret-value"
SIGNED = f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={SECRET}"


@pytest.mark.parametrize(
    "verb",
    [
        lambda store: store.write("x", b""),
        lambda store: store.put_new("x", b""),
        lambda store: store.exists("x"),
        lambda store: store.list(""),
        lambda store: store.folders("x"),
        lambda store: data_files(store.uri),
    ],
)
def test_a_bucket_that_is_not_there_is_named(s3_folder: str, verb: Any) -> None:
    with pytest.raises(
        StorageError, match=r"expected a bucket 'no-such-bucket' .*, got NoSuchBucket: check"
    ):
        verb(open_store("s3://no-such-bucket/folder"))


def test_missing_credentials_are_told_as_such(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    with pytest.raises(
        StorageError, match=r"expected access to s3://tests/.*no credentials: check the credentials"
    ):
        open_store(s3_folder).read("x")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_PROFILE"])
def test_settings_that_lead_nowhere_are_told_without_their_content(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(s3_retry.SECONDS, "0.1")
    monkeypatch.setenv(
        name, f"http://user:{SECRET}@127.0.0.1:1" if name == "AWS_ENDPOINT_URL" else SECRET
    )
    with pytest.raises(StorageError) as caught:
        open_store(s3_folder).read("x")
    assert SECRET not in str(caught.value)
    assert "check A" in str(caught.value) or "check AWS" in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:{SECRET}@bucket/data",
        f"s3://bucket/x.parquet{SIGNED}",
        f"https://bucket.s3.amazonaws.com/x.parquet{SIGNED}",
        f"https://user:{SECRET}@host/x",
    ],
)
def test_a_uri_with_a_secret_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(BadPath) as caught:
        open_store(uri)
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)


def test_globs_and_hive_folders_are_no_secrets() -> None:
    for uri in ("s3://bucket/year=202?/part-?.parquet", "s3://bucket/a b@c/x", "s3://bucket/sig/x"):
        assert open_store(uri).uri == uri


def test_hide_takes_out_what_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("JUDGE_API_KEY", "judge-key-planted")
    text = (
        f"a {SECRET} b judge-key-planted c"
        f" http://me:{'pass'}word@host:9000/x?X-Amz-Security-Token=abc&y=1 d"
    )
    assert hide(text) == "a *** b *** c http://***@host:9000/x?X-Amz-Security-Token=***&y=1 d"


def test_folders_and_markers_of_folders(s3_folder: str) -> None:
    store = open_store(s3_folder)
    bucket, _, key = s3_folder.removeprefix("s3://").partition("/")
    s3.client().put_object(Bucket=bucket, Key=f"{key}/made-in-a-console/", Body=b"")
    store.write("made-in-a-console/x", b"1")
    store.write("x.parquet", b"1")
    assert store.list("") == ["made-in-a-console/x", "x.parquet"]
    assert store.folders("") == ["made-in-a-console"]
    assert not store.is_file("made-in-a-console")
    assert not store.exists("x")  # the beginning of a name is no name


def test_a_range_file_reads_as_a_file_does() -> None:
    data = bytes(range(256)) * 1000
    asked: list[int] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return data[start:stop]

    file = RangeFile(fetch, len(data))
    file.seek(-8, 2)
    assert file.read() == data[-8:]
    file.seek(100_000)
    assert b"".join(file.read(10) for _ in range(1000)) == data[100_000:110_000]
    assert (file.tell(), file.read(0), len(asked)) == (110_000, b"", 2)
    file.seek(255_990)
    assert file.read(1000) == data[255_990:]
    assert file.read(1) == b""


def test_a_file_that_changes_while_it_is_read_is_noticed(store_of_numbers: Store) -> None:
    store = store_of_numbers
    with store.parquet("x.parquet") as file:
        store.replace("x.parquet", b"other content of another length")
        with pytest.raises(ValueError, match="changed while it was read"):
            file.read(use_threads=False)


@pytest.fixture
def store_of_numbers(s3_folder: str) -> Store:
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 2**62, 50_000)
    pq.write_table(pa.table({"x": noise}), out, compression="none", use_dictionary=False)
    store = open_store(s3_folder)
    store.write("x.parquet", out.getvalue())
    return store
