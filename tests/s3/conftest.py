"""A proxy in front of the moto server that misbehaves as told, and quick retries."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Fault:
    """What goes wrong: how, to requests of which method and path, how often, and after how many that go well."""

    how: (
        str  # slow-down, denied, cut (half the body), lost (done, but no reply), hold (the reply comes too late), reset
    )
    method: str = ""
    path: str = ""
    times: int = 1
    after: int = 0


@dataclass
class Proxy:
    """A server on loopback that passes requests on; `faults` are used up in order, `seen` is what came."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def fail(self, how: str, method: str = "", path: str = "", times: int = 1, after: int = 0) -> None:
        self.faults.append(Fault(how, method, path, times, after))

    def told(self, how: str) -> int:
        """How often a fault has struck."""
        return sum(outcome == how for _, _, outcome in self.seen)

    def outcome(self, method: str, path: str) -> str:
        """The fault that strikes this request, or "ok"."""
        with self.lock:
            how = "ok"
            for fault in self.faults:
                if (not fault.method or fault.method == method) and fault.path in path and fault.times > 0:
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

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response_only(status)
        kept = {k: v for k, v in (headers or {}).items() if k.lower() not in ("transfer-encoding", "connection")}
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
        self.connection.close() if self.proxy.seen[-1][2] == "reset" else self.connection.shutdown(socket.SHUT_RDWR)

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
