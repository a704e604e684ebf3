"""The one policy for asking S3 again: what is worth another try, how long to wait, and what is said
in the end.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from storage.errors import NoAnswer, StorageError
from storage.secrets import hide

# seconds from a request's first failure to its last try: one worker's error ends the run for all
GIVE_UP = 600.0
SECONDS = "COUNTERFACTORY_S3_SECONDS"  # names other seconds in the environment
TELL = 10.0  # seconds after which whoever waits is told why
# seconds; each wait is drawn from 0 to a bound that doubles ("full jitter")
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
STEP = 0.5  # seconds after which a wait looks whether the process is to end
HURRIED = 5.0  # seconds that requests have where it is
_end = float("inf")  # when the process is to end, by time.monotonic
_at_most: ContextVar[float] = ContextVar("at_most", default=float("inf"))
BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    # of the service that gives a role's credentials
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
    "IDPCommunicationError",
}
# A machine or pod with one of these gets its key from a service, which may be away for a while.
ROLE = (
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)
VENDOR = Path("/sys/devices/virtual/dmi/id/sys_vendor")  # "Amazon EC2" on an instance
# TLS broken off on the way; all else that TLS reports is a certificate or a setting
BROKEN_OFF = ("EOF", "timed out", "Connection reset", "BAD_RECORD_MAC")


@dataclass(frozen=True)
class Answer:
    """What came back: the value (or a status that was allowed), and how many earlier tries may have
    been done.
    """

    value: Any
    status: int
    lost: int


@dataclass(frozen=True)
class Refused:
    """A reply that is an error: HTTP status, S3's code, after how many tries, and whether a further
    one may help.
    """

    status: int
    code: str
    tries: int
    busy: bool


def ask(
    path: str,
    request: Callable[[], Any],
    explain: Callable[[str, Refused], Exception],
    *,
    allow: tuple[int, ...] = (),
    again: tuple[int, ...] = (),
) -> Answer:
    """Make a request, and again on 5xx, throttling, time-outs, lost or refused connections, bodies
    cut short, and where the service that gives a role's credentials does not.

    allow: statuses to give back instead of raising; again: further ones to retry. Raises what
    `explain` makes of a refusal; NoAnswer where GIVE_UP seconds after the first failure there is
    still no answer at all.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    lost, patience = 0, Patience("S3", f"s3://{path}")
    for tries in count(1):
        try:
            return Answer(request(), 200, lost)
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(error.response.get("Error", {}).get("Code", ""))[:60]
            if status in allow:
                return Answer(None, status, lost)
            busy = (
                (status >= 500 and status != 501)
                or status == 429
                or code in BUSY
                or status in again
            )
            if not busy or patience.is_over(f"{status} {code}"):
                raise explain(path, Refused(status, code, tries, busy)) from None
            lost += status >= 500  # a 500, or a gateway's 502, may have come after the deed
        except Exception as error:
            if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
                if isinstance(error, PartialCredentialsError) or not has_role():
                    raise no_access(path, "no credentials") from None
            elif isinstance(error, BotoCoreError) and not is_passing(error):
                raise _unsent(path, error) from None
            elif not is_passing(error):
                raise
            if patience.is_over(type(error).__name__):
                raise no_answer(path, type(error).__name__, tries) from None
            lost += 1
        patience.wait(tries)
    raise AssertionError("the last try returns or raises")


def no_access(path: str, code: str) -> StorageError:
    """The error for 403 and for missing credentials."""
    return StorageError(
        f"expected access to s3://{path}, got {code or 'AccessDenied'}: check the credentials"
        " (AWS_ACCESS_KEY_ID or AWS_PROFILE), the bucket's name, and a policy with s3:GetObject,"
        " s3:PutObject and s3:ListBucket"
    )


def no_answer(path: str, last: str, tries: int) -> NoAnswer:
    """The error where every try failed."""
    return NoAnswer(
        f"expected S3 to answer for s3://{path}, got {last} {tries} times in {_seconds():g} s: "
        "check AWS_ENDPOINT_URL and the network; what is committed stays, the same command goes on"
    )


def hurry(seconds: float = HURRIED) -> None:
    """Let no request of this process wait longer than so many seconds from now: it is to end."""
    global _end
    _end = time.monotonic() + seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let requests in the block wait no longer than so many seconds: what they do is no must."""
    token = _at_most.set(seconds)
    try:
        yield
    finally:
        _at_most.reset(token)


class Patience:
    """The time that a request's failures may take, from the first of them on; see also `hurry` and
    `at_most`.
    """

    def __init__(self, who: str, url: str) -> None:
        self.who, self.url, self.until, self.told = who, url, 0.0, False

    def is_over(self, last: str) -> bool:
        """Is the time up? `last` is what the try that just failed got."""
        now = time.monotonic()
        self.until = self.until or now + _seconds()
        if not self.told and now > self.until - _seconds() + TELL:
            self.told, left = True, self.until - now
            line = (
                f"{self.who} does not answer for {self.url} ({last}): asking again for up to"
                f" {max(left, 0):.0f} s more"
            )
            print(f"counterfactory: {hide(line)}", file=sys.stderr, flush=True)
        return now >= min(self.until, _end)

    def wait(self, tries: int) -> None:
        """Wait before the next try, the last of which is made when the time is up."""
        drawn = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries - 1, 30)))
        end = min(time.monotonic() + drawn, self.until)
        while (left := min(end, _end) - time.monotonic()) > 0:
            time.sleep(min(left, STEP))


def _seconds() -> float:
    told = os.environ.get(SECONDS) or str(GIVE_UP)
    try:
        seconds = float(told)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise StorageError(f"{SECONDS}: expected seconds like 600, got {told!r}")
    return min(seconds, _at_most.get())


def is_passing(error: Exception) -> bool:
    """Is this trouble of the network, of the server or of the service that gives credentials, which
    may pass?
    """
    from botocore import exceptions as b
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, b.SSLError):
        return any(words in str(error) for words in BROKEN_OFF)
    if isinstance(error, RuntimeError):  # botocore's own, of a service that lags behind
        return "refreshed credentials are still expired" in str(error)
    kinds = (
        b.HTTPClientError,
        b.ConnectionError,  # refused, no route, no name, no answer to a connect, no proxy
        b.IncompleteReadError,
        b.ResponseStreamingError,
        b.FlexibleChecksumError,
        b.CredentialRetrievalError,
        b.MetadataRetrievalError,
        ResponseParserError,  # half a reply, or another server's
    )
    return isinstance(error, (*kinds, HTTPError, ConnectionError, TimeoutError))


def has_role() -> bool:
    """Do credentials come from a service here: of a pod, a container or an EC2 instance?

    Where that service is busy, botocore reports that there are no credentials.
    """
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return any(os.environ.get(name) for name in ROLE[:-1])
    if any(os.environ.get(name) for name in ROLE):
        return True
    try:
        return "Amazon EC2" in VENDOR.read_text()
    except (OSError, ValueError):
        return False


def _unsent(path: str, error: Exception) -> StorageError:
    """botocore's own complaints without their words, which may hold an endpoint with a password in
    it.
    """
    told = type(error).__name__
    return StorageError(
        f"expected a request that can be sent for s3://{path}, got {told}: check AWS_* and the name"
    )
