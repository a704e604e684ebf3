"""Stores: the same verbs on a disk and in S3, whole files only, and the first writer wins."""

import errno
import io
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import local
from storage.uri import Store, data_files, open_store, split_url


def parquet(rows: int = 3) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": range(rows)}), out)
    return out.getvalue()


def race(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of `count` threads that all start at once."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(i: int) -> None:
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b/x.bin", b"\x00one")
    store.write("a/empty", b"")
    assert store.read("a/b/x.bin") == b"\x00one"
    assert store.read("a/empty") == b""
    assert store.exists("a/b/x.bin")
    assert store.exists("a")
    assert store.is_file("a/empty")
    assert not store.is_file("a")
    assert not store.exists("a/b/y.bin")


def test_replace_leaves_the_newer_file_alone(store: Store) -> None:
    store.replace("table.json", b"old")
    before = store.version("table.json")
    store.replace("table.json", b"newer")
    assert store.read("table.json") == b"newer"
    assert store.version("table.json") != before
    assert store.list("") == ["table.json"]


def test_the_first_writer_wins_and_the_second_changes_nothing(store: Store) -> None:
    assert store.put_new("commit/000000.json", b"first") is True
    version = store.version("commit/000000.json")
    assert store.put_new("commit/000000.json", b"second") is False
    assert store.read("commit/000000.json") == b"first"
    assert store.version("commit/000000.json") == version
    assert store.list("") == ["commit/000000.json"]


def test_list_is_sorted_deep_and_relative(store: Store) -> None:
    for path in ("data/b/2", "data/b/10", "data/a", "database", "data/b/.half.tmp"):
        store.write(path, b"x")
    assert store.list("data") == ["data/a", "data/b/10", "data/b/2"]
    assert store.list("") == ["data/a", "data/b/10", "data/b/2", "database"]
    assert store.list("nothing") == []
    assert store.folders("data") == ["b"]
    assert store.folders("nothing") == []


@pytest.mark.parametrize("ask", [Store.read, Store.version, Store.parquet])
def test_a_missing_file_is_named(store: Store, ask: Callable[[Store, str], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="got n") as caught:
        ask(store, "data/none.parquet")
    assert store.url("data/none.parquet") in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1", b"not parquet " * 50, parquet()[:-9], parquet()[:-8] + b"\xff\xff\xff\x7fPAR1"],
)
def test_what_is_no_parquet_is_refused_by_name(store: Store, data: bytes) -> None:
    store.write("x.parquet", data)
    with pytest.raises(
        ValueError, match=f"expected a Parquet file .*x.parquet, got {len(data)} bytes"
    ):
        store.parquet("x.parquet")


def test_a_broken_footer_is_refused_by_name(store: Store) -> None:
    data = bytearray(parquet())
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xee" * length
    store.write("x.parquet", bytes(data))
    with pytest.raises(ValueError, match="expected a Parquet file"):
        store.parquet("x.parquet")


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/./b", "a\0b", "a\\..\\b"]
)
def test_no_path_leaves_the_folder(store: Store, path: str) -> None:
    for verb in (store.read, store.exists, store.version, store.url, store.parquet):
        with pytest.raises(ValueError, match="expected a relative path inside the folder"):
            verb(path)
    with pytest.raises(ValueError, match="expected a relative path inside the folder"):
        store.put_new(path, b"x")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3://", "", "a\0b"])
def test_other_kinds_of_folder_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        open_store(uri)


def test_local_names_are_what_people_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("runs/x").uri == str(tmp_path / "runs" / "x")
    assert open_store(f"file://{tmp_path}/a%20b").uri == str(tmp_path / "a b")
    assert open_store(tmp_path).url("p/q") == f"{tmp_path}/p/q"


def test_a_store_travels_as_its_name_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    store.write("x", b"1")
    sent = pickle.dumps(store)
    assert b"testing" not in sent
    assert pickle.loads(sent).read("x") == b"1"


def test_a_url_leads_back_to_its_file(store: Store) -> None:
    store.write("a b/c[1].parquet", b"x")
    again, name = split_url(store.url("a b/c[1].parquet"))
    assert name == "c[1].parquet"
    assert again.read(name) == b"x"


def test_data_files_of_a_file_a_folder_and_globs(store: Store) -> None:
    for path in (
        "in/b.parquet",
        "in/a/z.parquet",
        "in/a/y.pq",
        "in/a/y.txt",
        "in/_old/x.parquet",
        "in/.x.parquet",
        "in/c.txt",
        "inn/d.parquet",
    ):
        store.write(path, b"x")

    def names(path: str) -> list[str]:
        return [
            found.url(name).removeprefix(store.uri + "/")
            for found, name in data_files(f"{store.uri}/{path}")
        ]

    assert names("in") == ["in/a/y.pq", "in/a/z.parquet", "in/b.parquet"]
    assert names("in/a/y.pq") == ["in/a/y.pq"]
    assert names("in/*.parquet") == ["in/b.parquet"]
    assert names("in*/*.parquet") == ["in/b.parquet", "inn/d.parquet"]
    assert names("**/*.parquet") == ["in/a/z.parquet", "in/b.parquet", "inn/d.parquet"]
    assert names("in/?/[yz].p*") == ["in/a/y.pq", "in/a/z.parquet"]
    for path in ("out", "in/*.csv", "in/none.parquet"):
        with pytest.raises(FileNotFoundError, match="expected Parquet files at ") as caught:
            names(path)
        assert path in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "x.PARQUET",
        "x.pq",
        "x.Parq",
        "x.parquet.gzip",
        "x.parquet.gz",
        "x.pq.snappy",
        "x.c0.parquet",
    ],
)
@pytest.mark.parametrize("folder", ["disk"], indirect=True)
def test_what_pandas_spark_and_others_call_parquet_is_found(store: Store, name: str) -> None:
    for other in ("x.parquet.crc", "x.parquet.txt", "parquet", "x.gz"):
        store.write(other, b"x")
    store.write(name, b"x")
    assert [found for _, found in data_files(store.uri)] == [name]


@pytest.mark.parametrize("folder", ["disk"], indirect=True)
def test_files_that_are_not_parquet_by_name_are_spoken_of(store: Store) -> None:
    store.write("part-0000", b"x")
    store.write("part-0001", b"x")
    with pytest.raises(FileNotFoundError, match=r"got 2 other files, such as part-0000: .*\.pq"):
        data_files(store.uri)
    assert [name for _, name in data_files(f"{store.uri}/*")] == ["part-0000", "part-0001"]


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.parquet")).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"names of files and .*, got /.*/caf\\xe9.parquet: rename"
    ):
        data_files(str(tmp_path))
    (tmp_path / os.fsdecode(b"\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"\xe9") / "x.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"got /.*/\\xe9/x.parquet: rename"):
        data_files(str(tmp_path / os.fsdecode(b"\xe9")))


def test_a_key_with_an_empty_part_is_named(s3_folder: str) -> None:
    from storage.s3 import client

    bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
    key = f"{prefix}//b.parquet" if prefix else "a//b.parquet"
    client().put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(ValueError, match=r"expected file names without //.*/?b\.parquet: rename"):
        data_files(s3_folder)


def test_a_file_with_a_glob_in_its_name_is_itself(store: Store) -> None:
    store.write("a[1].parquet", b"x")
    store.write("a1.parquet", b"x")
    assert [name for _, name in data_files(f"{store.uri}/a[1].parquet")] == ["a[1].parquet"]


def test_only_one_of_many_threads_creates_a_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for round_ in range(25):
        won = race(8, lambda i: store.put_new(f"c/{round_}", b"%d" % i * 5000))  # noqa: B023
        assert won.count(True) == 1
        assert store.read(f"c/{round_}") == b"%d" % won.index(True) * 5000
    assert len(os.listdir(tmp_path / "c")) == 25  # no leftovers


def test_without_hard_links_still_only_one_creates_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(os, "link", no_links)
    store = open_store(tmp_path)
    for round_ in range(25):
        won = race(8, lambda i: store.put_new(f"c/{round_}", b"%d" % i * 5000))  # noqa: B023
        assert won.count(True) == 1
        assert store.read(f"c/{round_}") == b"%d" % won.index(True) * 5000


@pytest.mark.parametrize("verb", [local.write, local.put_new])
def test_a_name_appears_only_over_content_that_is_on_the_disk(
    verb: Callable[[str, bytes], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def fsync(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino))
        real["fsync"](descriptor)

    def name(how: str) -> Callable[[Any, Any], None]:
        def call(source: Any, target: Any) -> None:
            assert Path(source).read_bytes() == b"whole"
            events.append(("name", os.stat(source).st_ino))
            real[how](source, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", name("link"))
    monkeypatch.setattr(os, "replace", name("replace"))
    path = tmp_path / "new" / "deep" / "x"
    verb(str(path), b"whole")
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    order = [
        events.index(("fsync", file)),
        events.index(("name", file)),
        events.index(("fsync", folder)),
    ]
    assert order == sorted(order)
    made = [
        events.index(("fsync", parent.stat().st_ino)) for parent in (tmp_path, tmp_path / "new")
    ]
    assert max(made) < order[0]  # the folders' own names are on the disk, too


def test_a_full_disk_leaves_no_name_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for verb in (local.write, local.put_new):
        with pytest.raises(OSError, match="No space left"):
            verb(str(tmp_path / "x"), b"data")
    assert os.listdir(tmp_path) == []
