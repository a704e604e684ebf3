"""The one policy for asking S3 again: what is worth another try, how long to wait, and what is said in the end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.errors import StorageError

ATTEMPTS = 10  # with waits that sum to about half a minute; whoever starts the run again goes on from there
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0  # seconds; each wait is drawn from 0 to a bound that doubles ("full jitter")
BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"}


@dataclass(frozen=True)
class Answer:
    """What came back: the value (or a status that was allowed), and how many earlier tries ended without a reply."""

    value: Any
    status: int
    lost: int


@dataclass(frozen=True)
class Refused:
    """A reply that is an error: HTTP status, S3's code, after how many tries, and whether a further one may help."""

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
    """Make a request, and again on 5xx, throttling, time-outs, lost connections and bodies cut short.

    allow: statuses to give back instead of raising; again: further ones to retry. Raises what `explain` makes of a
    refusal; StorageError where there is no answer at all.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    lost = 0
    for tries in range(1, ATTEMPTS + 1):
        try:
            return Answer(request(), 200, lost)
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(error.response.get("Error", {}).get("Code", ""))[:60]
            if status in allow:
                return Answer(None, status, lost)
            busy = (status >= 500 and status != 501) or status == 429 or code in BUSY or status in again
            if not busy or tries == ATTEMPTS:
                raise explain(path, Refused(status, code, tries, busy)) from None
            lost += status >= 500 and code not in BUSY  # a gateway's 502 or 504 does not say what the server did
        except (NoCredentialsError, PartialCredentialsError):
            raise no_access(path, "no credentials") from None
        except Exception as error:
            if isinstance(error, BotoCoreError) and not _passing(error):
                raise _unsent(path, error) from None
            if not _passing(error):
                raise
            if tries == ATTEMPTS:
                raise no_answer(path, type(error).__name__, tries) from None
            lost += 1
        time.sleep(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1))))
    raise AssertionError("the last try returns or raises")


def no_access(path: str, code: str) -> StorageError:
    """The error for 403 and for missing credentials."""
    return StorageError(
        f"expected access to s3://{path}, got {code or 'AccessDenied'}: check the credentials (AWS_ACCESS_KEY_ID or "
        "AWS_PROFILE), the bucket's name, and a policy with s3:GetObject, s3:PutObject and s3:ListBucket"
    )


def no_answer(path: str, last: str, tries: int) -> StorageError:
    """The error where every try failed."""
    return StorageError(
        f"expected S3 to answer for s3://{path}, got {last} {tries} times: check AWS_ENDPOINT_URL and the network; "
        "what is committed stays, the same command goes on"
    )


def _passing(error: Exception) -> bool:
    """Is this the network's or the server's trouble, which may pass?"""
    from botocore import exceptions as b
    from urllib3.exceptions import HTTPError

    kinds = (b.HTTPClientError, b.IncompleteReadError, b.ResponseStreamingError, b.FlexibleChecksumError)
    return isinstance(error, (*kinds, HTTPError, ConnectionError, TimeoutError)) and not isinstance(error, b.SSLError)


def _unsent(path: str, error: Exception) -> StorageError:
    """botocore's own complaints without their words, which may hold an endpoint with a password in it."""
    told = type(error).__name__
    return StorageError(f"expected a request that can be sent for s3://{path}, got {told}: check AWS_* and the name")
