"""Inputs where fsspec reaches: memory://, and a real web server on loopback that also fails."""

from __future__ import annotations

import io
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from storage import s3_retry
from storage.errors import BadPath, FileChanged, NoAnswer, StorageError
from storage.inputs import unchanged
from storage.plan import plan_shards, read_shard
from storage.records import InputFile
from storage.uri import Store, data_files, input_file, open_store, split_url
from storage.verify import verify

ROWS = 60_000


def table(seed: int = 0) -> pa.Table:
    return pa.table({"x": np.random.default_rng(seed).integers(0, 2**62, ROWS)})


def parquet(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pq.write_table(table(seed), out, row_group_size=20_000, use_dictionary=False)
    return out.getvalue()


@dataclass
class Web:
    """A folder that a web server shows, what goes wrong next, and the requests that came."""

    folder: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    ranges: bool = True


class Handler(SimpleHTTPRequestHandler):
    """Python's file server with byte ranges, which fails as `web.faults` say."""

    web: Web

    def do_GET(self) -> None:
        self.web.seen.append(self.path)
        fault = self.web.faults.pop(0) if self.web.faults else ""
        if fault.isdecimal():
            return self.send_error(int(fault))
        if fault == "reset":
            self.close_connection = True
            return self.connection.close()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        file = Path(self.translate_path(self.path))
        if not span or not self.web.ranges or not file.is_file():
            return super().do_GET()
        data = file.read_bytes()[int(span[1]) : int(span[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3_retry, "LONGEST_WAIT", 0.01)
    made = Web(tmp_path / "web")
    made.folder.mkdir()

    def handler(*args: Any) -> Handler:
        return type("OneHandler", (Handler,), {"web": made})(*args, directory=str(made.folder))

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_files_of_a_folder_and_globs_in_memory(memory: Any) -> None:
    for name in ("in/b.parquet", "in/a/z.parquet", "in/_old/x.parquet", "in/c.txt"):
        memory.pipe_file(f"/{name}", parquet())

    def names(path: str) -> list[str]:
        return [store.url(name).removeprefix("memory://") for store, name in data_files(path)]

    assert names("memory://in") == ["in/a/z.parquet", "in/b.parquet"]
    assert names("memory://in/*.parquet") == ["in/b.parquet"]
    assert names("memory://in/a/z.parquet") == ["in/a/z.parquet"]
    with pytest.raises(FileNotFoundError, match="expected Parquet files at memory://out, got none"):
        names("memory://out")


def test_shards_are_read_and_a_changed_file_is_noticed(memory: Any) -> None:
    memory.pipe_file("/in/a.parquet", parquet())
    shards, _ = plan_shards("memory://in", shard_rows=25_000, rows=None)
    parts = pa.concat_tables([read_shard(shard, ["x"]) for shard in shards])
    assert parts.equals(table())
    files = [InputFile(s.file, s.name, s.version, ROWS) for s in shards[:1]]
    assert unchanged(files, "memory://in", None)
    memory.pipe_file("/in/a.parquet", parquet(1))
    assert not unchanged(files, "memory://in", None)
    with pytest.raises(FileChanged, match=r"memory://in/a.parquet"):
        read_shard(shards[0], ["x"])


def test_a_web_servers_file_folder_and_version(web: Web) -> None:
    (web.folder / "d").mkdir()
    (web.folder / "d/x y.parquet").write_bytes(parquet())
    (web.folder / "d/note.txt").write_bytes(b"text")
    store, name = input_file(f"{web.url}/d/note.txt")
    assert (store.read(name), store.is_file(name), store.exists("none")) == (b"text", True, False)
    assert pickle.loads(pickle.dumps(store)).read(name) == b"text"
    before = store.version(name)
    assert store.version(name) == before
    (web.folder / "d/note.txt").write_bytes(b"other")
    assert store.version(name) != before
    found = [store.url(name) for store, name in data_files(f"{web.url}/d/")]
    assert found == [f"{web.url}/d/x%20y.parquet"]
    for path in (found[0], f"{web.url}/d/*.parquet"):
        (store, name) = data_files(path)[0]
        with store.parquet(name) as file:
            assert file.read(use_threads=False).equals(table())
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*/d/none, got none"):
        store.read("none")
    with pytest.raises(FileNotFoundError, match=r"expected Parquet files at .*/e, got none"):
        data_files(f"{web.url}/e")


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut"])
def test_a_web_server_that_fails_for_a_while_is_asked_again(web: Web, fault: str) -> None:
    (web.folder / "x.parquet").write_bytes(parquet())
    store, name = input_file(f"{web.url}/x.parquet")
    with store.parquet(name) as file:
        web.faults += [fault] * 3
        assert file.read(use_threads=False).equals(table())
    assert web.faults == []


def test_what_no_repetition_helps_is_one_line(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.folder / "x.parquet").write_bytes(parquet())
    store, name = input_file(f"{web.url}/x.parquet")
    web.faults += ["403"]
    with pytest.raises(StorageError, match=r"expected access to .*/x.parquet, got 403: check"):
        store.read(name)
    web.faults += ["400"]
    with pytest.raises(StorageError, match=r"expected .*/x.parquet to be readable, got 400"):
        store.read(name)
    assert len(web.seen) == 2
    web.ranges = False
    with pytest.raises(StorageError, match="the server must answer byte ranges"):
        store.parquet(name)
    monkeypatch.setenv(s3_retry.SECONDS, "0.05")
    web.faults += ["503"] * 10_000
    with pytest.raises(NoAnswer, match=r"expected an answer for .*, got 503 \d+ times: check"):
        store.read(name)
    with pytest.raises(NoAnswer, match=r"got ClientConnectorError \d+ times"):
        input_file("http://127.0.0.1:1/x.parquet")[0].version("x.parquet")


@pytest.mark.parametrize(
    ("uri", "package"),
    [("gs://bucket/x", "gcsfs"), ("abfs://box@account.dfs.core.windows.net/x", "adlfs")],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, uri: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadPath, match=rf"expected the package .*: pip install {package}$"):
        data_files(uri)


def test_a_package_of_fsspecs_own_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(BadPath, match=r"that reads sftp://, got none: pip install paramiko$"):
        data_files("sftp://host/x")


def test_other_addresses_are_one_line() -> None:
    with pytest.raises(BadPath, match=r"expected s3://, https://, .*, got nowhere:// "):
        data_files("nowhere://x/y")
    for uri in ("simplecache::https://host/x", "https://", "://x"):
        with pytest.raises(BadPath, match="expected a local path, file://, s3:// or another URL"):
            data_files(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/x.parquet?token=planted",
        "https://planted@host/x.parquet",
        "hf://name:planted@datasets/x",
        "abfs://box@account.dfs.core.windows.net/x?sig=planted",
        "abfs://box:planted@account.dfs.core.windows.net/x",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(
        BadPath, match=r"without a key or a query, got .*: credentials go into"
    ) as e:
        data_files(uri)
    assert "planted" not in str(e.value)


@pytest.mark.parametrize("uri", ["memory://out", "https://host/out", "hf://datasets/a/b"])
def test_outputs_are_refused_in_one_line(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    for opened in (open_store, split_url):
        with pytest.raises(BadPath, match=r"expected a local path, file:// or s3://, got '"):
            opened(uri)
    for verb in (lambda s: s.write("x", b""), lambda s: s.put_new("x", b""), Store.entries):
        with pytest.raises(BadPath, match=r"expected a folder on a disk or in s3:// for what is"):
            verb(Store(uri))
    assert main(["generate", "demo-plain", "--engine", "local", "--out", uri]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert f"expected a local path, file:// or s3://, got '{uri}/demo-plain'" in told


def test_a_run_over_a_web_servers_data(
    web: Web, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (web.folder / "x.parquet").write_bytes(next(faces.glob("test-*.parquet")).read_bytes())
    command = ["generate", "demo-plain", "--engine", "local", "--out", str(tmp_path / "runs")]
    for item in (
        f"data.path={web.url}/x.parquet",
        "data.rows=0:8",
        "method.settings.max_steps=2",
        "engine.shard_rows=4",
    ):
        command += ["--set", item]
    assert main(command) == 0, capsys.readouterr().err
    store = open_store(tmp_path / "runs/demo-plain")
    commits = {name: store.version(name) for name in store.list("commit")}
    assert len(commits) == 2
    assert verify(store) == []
    assert main(command) == 0
    assert {name: store.version(name) for name in store.list("commit")} == commits
    (web.folder / "x.parquet").write_bytes(next(faces.glob("train-*.parquet")).read_bytes())
    assert main(command) == 2
    assert "changed since the run was planned" in capsys.readouterr().err
