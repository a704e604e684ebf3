"""Replies that are no S3's, such as the login page of a captive portal: never taken for a write
that was done, nor for an empty folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from pipelines.cli import main
from storage.errors import NoAnswer
from storage.uri import Store, open_store


class Portal(BaseHTTPRequestHandler):
    """Gives the same reply to every request."""

    reply: ClassVar[tuple[int, bytes, dict[str, str]]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, page, headers = self.reply
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(page))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815 (http.server's names)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def portal(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Portal]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("COUNTERFACTORY_S3_SECONDS", "0")
    yield Portal
    server.shutdown()
    server.server_close()


REPLIES = {
    "a page of HTML": (200, b"<!doctype html><p>Log in<br>", {"Content-Type": "text/html"}),
    "a page of XML": (200, b"<?xml version='1.0'?><html><p>Log in</p></html>", {}),
    "an empty page": (200, b"", {}),
    "no content": (204, b"", {}),
    "a redirect": (302, b"", {"Location": "http://portal.invalid/login"}),
    "a redirect to see": (303, b"", {"Location": "/login"}),
}
VERBS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("a", b"1"),
    "put_new": lambda store: store.put_new("a", b"1"),
    "list": lambda store: store.list("x"),
    "folders": lambda store: store.folders("x"),
    "entries": lambda store: store.entries(),
    "exists": lambda store: store.exists("a"),
    "version": lambda store: store.version("a"),
    "parquet": lambda store: store.parquet("a"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("page", REPLIES)
def test_a_reply_that_is_no_s3s_is_no_answer(
    portal: type[Portal], page: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portal, "reply", REPLIES[page], raising=False)
    with pytest.raises(NoAnswer, match=r"expected S3 to answer for s3://bucket/run.*, got "):
        VERBS[verb](open_store("s3://bucket/run"))


def test_a_server_that_knows_no_bucket_is_no_answer(
    portal: type[Portal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portal, "reply", (404, b"<html>not here</html>", {}), raising=False)
    for verb in ("write", "put_new", "list"):
        with pytest.raises(NoAnswer, match="got NotFromS3"):
            VERBS[verb](open_store("s3://bucket/run"))


def test_a_command_ends_with_75_and_a_line(
    portal: type[Portal],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(portal, "reply", REPLIES["a page of XML"], raising=False)
    for command in ("show", "verify", "gc"):
        assert main([command, "s3://bucket/run"]) == 75
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert "got NotFromS3 1 times" in told[0]
