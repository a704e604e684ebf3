"""S3 behind a bad line: a server that drops, delays, cuts and refuses requests to another."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Server(ThreadingHTTPServer):
    """Says nothing of clients that were killed, and so hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Line:
    """A proxy in front of an S3 server; each request meets a fault with some probability."""

    FAULTS = ("drop", "delay", "truncate", "500", "503", "lost")

    def __init__(self, upstream: str, rng: random.Random, rate: float) -> None:
        self.upstream, self.rng, self.rate = upstream, rng, rate
        self.met: Counter[str] = Counter()
        self.away = False  # whether every connection is closed
        self.commits = 0
        self.lock = threading.Lock()
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                line.handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def draw(self, request: BaseHTTPRequestHandler) -> str:
        with self.lock:
            if self.away:
                self.met["away"] += 1
                return "drop"
            fault = self.rng.choice(self.FAULTS) if self.rng.random() < self.rate else "none"
            self.met[fault] += 1
            self.commits += request.command == "PUT" and "/commit/" in request.path
            return fault

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self.draw(request)
        if fault == "drop":
            self.hang_up(request, reset=True)
            return
        if fault == "delay":
            time.sleep(1.0)
        if fault == "503":
            self.answer(request, 503, b"<Error><Code>SlowDown</Code></Error>", {})
            return
        status, headers, data = self.ask(request, body)
        if fault == "lost":
            self.hang_up(request)
        elif fault == "500":  # after the deed
            self.answer(request, 500, b"<Error><Code>InternalError</Code></Error>", {})
        else:
            self.answer(request, status, data, headers, cut=fault == "truncate")

    def ask(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=60)
        try:
            connection.request(request.command, request.path, body, dict(request.headers.items()))
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        *,
        cut: bool = False,
    ) -> None:
        kept = {k: v for k, v in headers.items() if k.lower() not in ("transfer-encoding",)}
        if not any(name.lower() == "content-length" for name in kept):
            kept["Content-Length"] = str(len(data))
        request.send_response_only(status)
        for name, value in kept.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.hang_up(request)

    def hang_up(self, request: BaseHTTPRequestHandler, *, reset: bool = False) -> None:
        request.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.connection.close()
        else:
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)


class Bucket:
    """A moto server with one bucket, in this process."""

    def __init__(self) -> None:
        import logging

        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="chaos",
            aws_secret_access_key="chaos",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="chaos")

    def fetch(self, prefix: str, folder: Path) -> None:
        """Copy what lies below a prefix into a folder."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="chaos", Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", ()):
                path = folder / entry["Key"][len(prefix) :].lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                got = self.client.get_object(Bucket="chaos", Key=entry["Key"])
                path.write_bytes(got["Body"].read())
