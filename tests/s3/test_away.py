"""S3 that is away, and keys that are late: waited for, then exit code 75; what no wait mends is
exit code 2 at once.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import SSLError

from pipelines.cli import main
from pipelines.engine.cluster import find_missing
from storage import s3, s3_retry
from storage.errors import StorageError
from storage.run import versions
from storage.uri import open_store

KEY = {"AccessKeyId": "testing", "SecretAccessKey": "testing", "Token": "t"}
KEY |= {"Expiration": "2999-01-01T00:00:00Z", "Code": "Success"}


def refusing(stack: ExitStack) -> str:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def nameless(stack: ExitStack) -> str:
    """A name that no DNS knows (RFC 2606)."""
    return "http://s3.counterfactory.invalid"


def silent(stack: ExitStack) -> str:
    """A server that takes connections and never answers."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def full(stack: ExitStack) -> str:
    """A server that takes no further connection: a connect is not answered."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    address = server.getsockname()
    for _ in range(4):
        one = stack.enter_context(socket.socket())
        one.setblocking(False)
        one.connect_ex(address)
    return f"http://127.0.0.1:{address[1]}"


@pytest.mark.parametrize("command", ["show", "report", "verify"])
@pytest.mark.parametrize("away", [refusing, nameless, silent, full])
def test_a_server_that_is_away_is_waited_for_and_then_exit_code_75(
    s3_folder: str,
    away: Callable[[ExitStack], str],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(s3_retry.SECONDS, "0.3")
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(s3, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(s3, "READ_SECONDS", 0.2)
    with ExitStack() as stack:
        monkeypatch.setenv("AWS_ENDPOINT_URL", away(stack))
        began = time.monotonic()
        assert main([command, f"{s3_folder}/run"]) == 75
        assert time.monotonic() - began >= 0.3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "expected S3 to answer" in lines[0]


@pytest.mark.parametrize("wrong", ["bucket", "key"])
def test_what_no_wait_mends_is_exit_code_2_at_once(
    s3_folder: str,
    proxy: Any,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(s3_retry.Patience, "wait", lambda *_: pytest.fail("it waits"))
    run = f"{s3_folder}/run"
    if wrong == "bucket":
        run = "s3://no-such-bucket/run"
    else:
        proxy.fail("denied", times=99)
    assert main(["show", run]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def keys(s3_folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A service that gives keys after as many failures as its `failures` say; no other key is
    there.
    """

    class Handler(BaseHTTPRequestHandler):
        failures, asked = 0, 0

        def do_GET(self) -> None:
            kind = type(self)
            kind.asked += 1
            if kind.failures > 0:
                kind.failures -= 1
                return self.answer(503, b"later")
            roles = self.path.endswith("/security-credentials/")
            self.answer(200, b"role" if roles else json.dumps(KEY).encode())

        def do_PUT(self) -> None:
            self.answer(200, b"token")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 0.01)
    s3._client.cache_clear()
    Handler.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield Handler
    server.shutdown()
    server.server_close()
    s3._client.cache_clear()


@pytest.mark.parametrize("name", ["AWS_CONTAINER_CREDENTIALS_FULL_URI", s3_retry.ROLE[-1]])
def test_a_service_of_keys_that_fails_for_a_while_is_waited_for(
    s3_folder: str, keys: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"{keys.url}/")
    keys.failures = 7  # botocore itself asks one to three times
    open_store(s3_folder).write("x", b"1")
    assert open_store(s3_folder).read("x") == b"1"
    assert keys.failures == 0


@pytest.mark.parametrize("name", ["AWS_CONTAINER_CREDENTIALS_FULL_URI", s3_retry.ROLE[-1]])
def test_a_service_of_keys_that_stays_away_is_exit_code_75(
    s3_folder: str, keys: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"{keys.url}/")
    monkeypatch.setenv(s3_retry.SECONDS, "0.2")
    keys.failures = 9999
    assert main(["show", f"{s3_folder}/run"]) == 75


def test_without_a_service_of_keys_a_missing_key_is_told_at_once(
    s3_folder: str, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3_retry.Patience, "wait", lambda *_: pytest.fail("it waits"))
    with pytest.raises(StorageError, match="no credentials"):
        open_store(s3_folder).read("x")
    assert keys.asked == 0


def test_an_instance_of_ec2_has_a_role(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in s3_retry.ROLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    monkeypatch.setattr(s3_retry, "VENDOR", tmp_path / "sys_vendor")
    assert not s3_retry.has_role()
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert s3_retry.has_role()


def test_a_bad_certificate_does_not_pass_and_a_torn_handshake_does() -> None:
    def error(words: str) -> SSLError:
        return SSLError(endpoint_url="https://x", error=ssl.SSLError(words))

    assert not s3_retry.is_passing(error("certificate verify failed: self-signed certificate"))
    assert not s3_retry.is_passing(error("[SSL: WRONG_VERSION_NUMBER] wrong version number"))
    assert s3_retry.is_passing(error("EOF occurred in violation of protocol"))


def test_a_node_that_meets_an_outage_lacks_nothing(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(s3_retry.SECONDS, "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    run = {"uri": f"{s3_folder}/run", "probe": ".probe-1", "mark": "m"}
    asked = {"version": versions()["counterfactory"], "run": run, "data": {}, "weights": {}}
    assert find_missing(asked) is None


def test_no_request_waits_once_the_process_is_to_end(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_retry, "_end", float("inf"))  # and so afterwards
    monkeypatch.setattr(s3_retry, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(s3_retry, "LONGEST_WAIT", 60.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    threading.Timer(0.3, s3_retry.hurry, (0.5,)).start()
    began = time.monotonic()
    with pytest.raises(StorageError, match="expected S3 to answer"):
        open_store(s3_folder).read("x")
    assert time.monotonic() - began < 20


def test_what_is_no_must_is_not_waited_for_as_long(
    s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"times in 0.2 s"), s3_retry.at_most(0.2):
        open_store(s3_folder).read("x")
