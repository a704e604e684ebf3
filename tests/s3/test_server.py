"""The storage layer and a whole small run against a real S3 server: SeaweedFS, from PyPI, on
loopback.
"""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from storage import s3
from storage.errors import FileChanged, StorageError
from storage.uri import open_store

pytestmark = pytest.mark.s3server


def test_what_is_written_is_read(seaweed_folder: str) -> None:
    store = open_store(seaweed_folder)
    store.write("a b/c[1]+ü.bin", b"\x00one")
    store.write("empty", b"")
    assert store.read("a b/c[1]+ü.bin") == b"\x00one"
    assert store.read("empty") == b""
    assert store.list("") == ["a b/c[1]+ü.bin", "empty"]
    assert (store.exists("a b"), store.is_file("a b"), store.is_file("empty")) == (
        True,
        False,
        True,
    )
    assert store.folders("") == ["a b"]
    before = store.version("empty")
    store.replace("empty", b"no more")
    assert store.version("empty") != before
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*/none, got none"):
        store.read("none")


def test_of_many_conditional_puts_one_wins(seaweed_folder: str) -> None:
    store = open_store(seaweed_folder)
    for round_ in range(5):
        barrier = threading.Barrier(8)
        won: list[int] = []

        def run(
            i: int,
            name: str = f"commit/{round_}",
            barrier: threading.Barrier = barrier,
            won: list[int] = won,
        ) -> None:
            barrier.wait()
            if store.put_new(name, b"%d" % i * 5000):
                won.append(i)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"commit/{round_}") == b"%d" % won[0] * 5000


def test_more_keys_than_one_page_lists(seaweed_folder: str) -> None:
    store = open_store(seaweed_folder)
    names = [f"many/{i:05d}" for i in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, b"1"), names))
    assert store.list("many") == names
    assert store.list("") == names
    assert store.folders("") == ["many"]


def test_parquet_by_ranges_and_a_file_that_changes(seaweed_folder: str) -> None:
    out = io.BytesIO()
    pq.write_table(
        pa.table({"x": range(200_000)}),
        out,
        compression="none",
        use_dictionary=False,
        row_group_size=50_000,
    )
    store = open_store(seaweed_folder)
    store.write("x.parquet", out.getvalue())
    with store.parquet("x.parquet") as file:
        assert file.read_row_group(2, use_threads=False)["x"].to_pylist() == list(
            range(100_000, 150_000)
        )
        store.replace("x.parquet", b"PAR1 and something else")
        with pytest.raises(FileChanged, match=r"changed while it was read"):
            file.read_row_group(3, use_threads=False)


def test_pandas_and_s3fs_see_the_same_objects(seaweed_folder: str) -> None:
    import pandas as pd
    import s3fs

    store, theirs = open_store(seaweed_folder), s3fs.S3FileSystem(skip_instance_cache=True)
    out = io.BytesIO()
    pq.write_table(pa.table({"x": range(1000)}), out)
    store.write("d/x.parquet", out.getvalue())
    assert pd.read_parquet(store.url("d/x.parquet"))["x"].tolist() == list(range(1000))
    assert theirs.find(seaweed_folder) == [store.url("d/x.parquet").removeprefix("s3://")]
    theirs.pipe_file(store.url("theirs"), b"theirs", mode="create")
    assert store.put_new("theirs", b"ours") is False
    assert store.put_new("ours", b"ours") is True
    with pytest.raises(OSError, match=r"[Pp]recondition|pre-conditions"):
        theirs.pipe_file(store.url("ours"), b"theirs", mode="create")
    assert (store.read("theirs"), store.read("ours")) == (b"theirs", b"ours")


def test_a_wrong_key_and_a_wrong_bucket_are_one_line(
    seaweed_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        StorageError, match=r"expected a bucket 'no-such-bucket' .*, got NoSuchBucket"
    ):
        open_store("s3://no-such-bucket/x").list("")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-key")
    with pytest.raises(
        StorageError, match=r"expected access to .*: check the credentials"
    ) as caught:
        open_store(seaweed_folder).list("")
    assert "not-the-secret-key" not in str(caught.value)
    assert s3.client() is s3.client()


def test_a_whole_run(seaweed_folder: str, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "demo-plain", "--engine", "local", "--out", f"{seaweed_folder}/runs"]
    command += ["--set", f"data.path={seaweed_folder}/data", "--set", "data.rows=0:8"]
    command += ["--set", "method.settings.max_steps=3", "--set", "engine.shard_rows=4"]
    command += ["--set", "score.cout_steps=2", "--set", "score.bootstrap=20"]
    assert (
        main(["prepare", "faces", f"{seaweed_folder}/data", "--rows", "6", "--test-rows", "2"]) == 0
    )
    assert main(command) == 0
    store = open_store(f"{seaweed_folder}/runs/demo-plain")
    commits = {name: store.version(name) for name in store.list("commit")}
    assert main(command) == 0
    assert {name: store.version(name) for name in store.list("commit")} == commits
    assert main(["verify", store.uri]) == 0
    assert store.is_file("report.html")
    assert "every invariant holds" in capsys.readouterr().out
