"""A client of servers that answer about images: time limits, retries and no surprises."""

from __future__ import annotations

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3

from counterfactory.models.wrapping.errors import BlackBoxError, Unreachable

AGAIN = (408, 425, 429)  # and 500 or more: the same request may succeed later
SAME_REQUEST = (307, 308)  # redirects that keep method and body
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds; doubled with each failure
HOPS = 3
REFUSALS = 30  # of one request by a server that is busy (429), after which it is left
SHOWN = 200  # characters of a server's text in an error


@dataclass(frozen=True)
class Reply:
    """The body of an answer with status 200, and its headers."""

    body: bytes
    headers: Mapping[str, str]

    def json(self, where: str) -> Any:
        """Return the body as JSON; BlackBoxError, which names `where`, where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise BlackBoxError(
                f"{where}: expected JSON, got {len(self.body)} bytes of something else"
            ) from None


@dataclass
class _Failure(Exception):  # noqa: N818 (caught and repeated)
    """A try without an answer; `wait`: seconds that the server asks for; `busy`: status 429, which
    says nothing about the request.
    """

    text: str
    wait: float | None = None
    busy: bool = False


@dataclass
class Client:
    """Sends requests to the host of `url`, from any number of threads.

    timeout: seconds for one try, its answer included; retries: of a request; patience: seconds
    that a request may wait between its tries; most_bytes: of an answer; headers: of every request;
    secret: its text never gets into an error.
    """

    url: str
    timeout: float = 30.0
    retries: int = 5
    patience: float = 300.0
    most_bytes: int = 64 << 20
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: str | None = None
    connections: int = 4
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.pool = urllib3.PoolManager(maxsize=self.connections, block=False, retries=False)
        self._lock, self._held_until = threading.Lock(), -math.inf

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Return the answer to a request, which is repeated where that may help.

        Unreachable where no try had an answer, or where the server asks for a pause that patience
        does not allow; BlackBoxError where another try cannot help.
        """
        waited, tries, failed = 0.0, 0, 0
        while True:
            waited += self._wait_for_hold(url, waited)
            tries += 1
            try:
                return self._once(method, url, body, {**self.headers, **(headers or {})})
            except _Failure as failure:
                pause = backoff(tries) if failure.wait is None else failure.wait
                asks = "" if failure.wait is None else f", which asks for {failure.wait:.0f} s"
                failed += not failure.busy
                over = failed > self.retries or tries - failed > REFUSALS
                if over or waited + pause > self.patience:
                    raise Unreachable(
                        f"{url}: expected an answer, got {failure.text}{asks} ({tries}"
                        f" {'try' if tries == 1 else 'tries'}): the same command goes on later"
                    ) from None
                if failure.wait is not None:
                    with self._lock:  # for every thread
                        self._held_until = max(self._held_until, time.monotonic() + pause)
                else:
                    self.sleep(pause)
                    waited += pause

    def _wait_for_hold(self, url: str, waited: float) -> float:
        """Wait while the server has asked everyone to pause; returns the seconds."""
        with self._lock:
            pause = self._held_until - time.monotonic()
        if pause <= 0:
            return 0.0
        if waited + pause > self.patience:
            raise Unreachable(
                f"{url}: expected an answer, got a request to pause for {pause:.0f} s: the same"
                " command goes on later"
            )
        self.sleep(pause)
        with self._lock:  # a clock of a test may not move
            self._held_until = min(self._held_until, time.monotonic())
        return pause

    def _once(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send a request once, and follow redirects to the same host."""
        ends = time.monotonic() + self.timeout
        for _ in range(HOPS + 1):
            status, found, data = self._exchange(method, url, body, headers, ends)
            if not (300 <= status < 400):
                break
            url = self._next(url, status, found.get("Location", ""))
        else:
            raise BlackBoxError(f"{self.url}: expected an answer, got {HOPS + 1} redirects")
        if status == 200:
            return Reply(data, found)
        text = self._clean(data)
        said = f"status {status}{f': {text}' if text else ''}"
        if status in AGAIN or status >= 500:
            raise _Failure(said, wait_of(found), busy=status == 429)
        hint = (
            ": set ask.key to the environment variable that holds its key"
            if status in (401, 403) and self.secret is None
            else ""
        )
        raise BlackBoxError(f"{url}: expected status 200, got {said}{hint}")

    def _exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        ends: float,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of one exchange; _Failure where there is no whole one."""
        try:
            reply = self.pool.request(
                method,
                url,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(total=max(0.001, ends - time.monotonic())),
            )
            try:
                return reply.status, reply.headers, self._read(url, reply, ends)
            finally:
                reply.close()
                reply.release_conn()
        except urllib3.exceptions.NewConnectionError as error:  # also called a time-out
            raise _Failure(f"no connection ({_cause(error)})") from None
        except urllib3.exceptions.TimeoutError:
            raise _Failure(f"none in ask.timeout ({self.timeout:g} s)") from None
        except (urllib3.exceptions.LocationValueError, UnicodeError):
            raise BlackBoxError(f"ask.url: expected http://HOST/..., got {url!r}") from None
        except urllib3.exceptions.ProtocolError as error:
            raise _Failure(f"a cut answer ({_cause(error)})") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Failure(f"no connection ({_cause(error)})") from None

    def _read(self, url: str, reply: Any, ends: float) -> bytes:
        # read1 returns what is there, so that a server that sends byte by byte meets the limit
        read, parts, size = getattr(reply, "read1", reply.read), [], 0
        while chunk := read(65536):
            parts.append(chunk)
            size += len(chunk)
            if size > self.most_bytes:
                raise BlackBoxError(
                    f"{url}: expected an answer of at most {self.most_bytes:,} bytes"
                    " (ask.max_bytes), got more"
                )
            if time.monotonic() > ends:
                raise _Failure(f"only a part of one in ask.timeout ({self.timeout:g} s)")
        return b"".join(parts)

    def _next(self, url: str, status: int, location: str) -> str:
        """Return where a redirect leads; BlackBoxError where it leaves the host."""
        there = urljoin(url, location)
        if status not in SAME_REQUEST or _host(there) != _host(url):
            raise BlackBoxError(
                f"{url}: expected an answer, got a redirect (status {status}) to"
                f" {there.partition('?')[0][:SHOWN]}: nothing was sent there; set ask.url to it if"
                " it is right"
            )
        return there

    def _clean(self, data: bytes) -> str:
        text = " ".join(data.decode("utf-8", errors="replace").split())
        return (text.replace(self.secret, "***") if self.secret else text)[:SHOWN]


def backoff(failed: int) -> float:
    """Return the seconds before the next try: doubled with each failure, half of them random."""
    longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 1))
    return longest * random.uniform(0.5, 1)


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date; None where there is none."""
    told = headers.get("Retry-After")
    if told is None:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(float(seconds), 0.0) if math.isfinite(seconds) else None


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _cause(error: BaseException) -> str:
    """Return the innermost reason of an error in one short line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:SHOWN]
