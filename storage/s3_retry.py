"""The only policy for repeated requests to S3: which errors, how long to wait, and
the last error.
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

# seconds from a request's first failure to its last try: one worker's error ends the whole run
GIVE_UP = 600.0
SECONDS = "COUNTERFACTORY_S3_SECONDS"  # the environment variable for other seconds
TELL = 10.0  # seconds after which the user sees why the run waits
# seconds; each wait is drawn from 0 to a bound that doubles ("full jitter")
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0
STEP = 0.5  # seconds between a wait's checks whether the process is ending
HURRIED = 5.0  # seconds left to requests when it is ending
_end = float("inf")  # when the process must end, by time.monotonic
_at_most: ContextVar[float] = ContextVar("at_most", default=float("inf"))
BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    # codes of the service that issues a role's credentials
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
    "IDPCommunicationError",
}
# A machine or pod with one of these gets its key from a service, which may be briefly absent.
ROLE = (
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)
VENDOR = Path("/sys/devices/virtual/dmi/id/sys_vendor")  # "Amazon EC2" on an instance
# a broken TLS connection; other TLS errors are about a certificate or a setting
BROKEN_OFF = ("EOF", "timed out", "Connection reset", "BAD_RECORD_MAC")


@dataclass(frozen=True)
class Answer:
    """A reply: its value (or an allowed status), and how many earlier tries may
    have taken effect.
    """

    value: Any
    status: int
    lost: int


@dataclass(frozen=True)
class Refused:
    """A reply that is an error: HTTP status, S3's code, number of tries, and
    whether to try again.
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
    """Make a request, and repeat it on failures that may pass.

    These are 5xx, throttling, time-outs, lost or refused connections, incomplete bodies, and
    failures of the service that issues a role's credentials. allow: statuses to return instead of
    raising; again: further statuses to retry. Raises the error that `explain` returns for a
    refusal; NoAnswer where no try had an answer until GIVE_UP seconds after the first failure.
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
            lost += status >= 500  # a 500, or a gateway's 502, may follow a successful request
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
    """Return the error for 403 and for missing credentials."""
    return StorageError(
        f"expected access to s3://{path}, got {code or 'AccessDenied'}: check the credentials"
        " (AWS_ACCESS_KEY_ID or AWS_PROFILE), the bucket's name, and a policy with s3:GetObject,"
        " s3:PutObject and s3:ListBucket"
    )


def no_answer(path: str, last: str, tries: int) -> NoAnswer:
    """Return the error where every try failed."""
    return NoAnswer(
        f"expected S3 to answer for s3://{path}, got {last} {tries} times in {_seconds():g} s: "
        "check AWS_ENDPOINT_URL and the network; what is committed stays, the same command goes on"
    )


def hurry(seconds: float = HURRIED) -> None:
    """Limit the wait of every request of this process to `seconds` from now: it is ending."""
    global _end
    _end = time.monotonic() + seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Limit the wait of requests in the block to `seconds`, for requests that are not essential."""
    token = _at_most.set(seconds)
    try:
        yield
    finally:
        _at_most.reset(token)


class Patience:
    """The time that a request's failures may take, from the first failure on.

    See also `hurry` and `at_most`.
    """

    def __init__(self, who: str, url: str) -> None:
        self.who, self.url, self.until, self.told = who, url, 0.0, False

    def is_over(self, last: str) -> bool:
        """Return whether the time is over; `last` is the result of the try that just failed."""
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
        """Wait before the next try; the last try is made when the time is over."""
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
    """Return whether an error may pass: of the network, the server or the credentials' service."""
    from botocore import exceptions as b
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, b.SSLError):
        return any(words in str(error) for words in BROKEN_OFF)
    if isinstance(error, RuntimeError):  # botocore's own error where that service is late
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
    """Return whether a service provides the credentials: of a pod, a container or an EC2 instance.

    botocore reports that there are no credentials where that service is busy.
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
    """Return the error for botocore's own complaints, without their text.

    The text may hold an endpoint with a password in it.
    """
    told = type(error).__name__
    return StorageError(
        f"expected a request that can be sent for s3://{path}, got {told}: check AWS_* and the name"
    )
