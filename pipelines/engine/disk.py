"""Errors of a full, read-only or failing disk, as one line with what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from configs.strict import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
AGAIN = "run the same command again: what is committed stays"


@contextmanager
def disk_errors(uri: str) -> Iterator[None]:
    """Turn an error of the disk under a run in `uri` into a UserError."""
    try:
        yield
    except OSError as error:
        known = disk_error(error, uri)
        if known is None:
            raise
        raise known from None


def disk_error(error: BaseException, uri: str) -> UserError | None:
    """Return the UserError for an OSError of a run in `uri`; None where the error is not about a
    disk.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = errno.errorcode.get(error.errno, str(error.errno))
    where = (
        f" at {error.filename}"
        if error.filename and not str(error.filename).startswith(uri)
        else ""
    )
    if error.errno in FULL:
        return UserError(f"expected room in {uri}, got {name}{where}: free some and {AGAIN}")
    if error.errno in CLOSED:
        return UserError(
            f"expected {uri} to be readable and writable, got {name}{where}: open it and {AGAIN}"
        )
    if error.errno == errno.EIO:
        return UserError(
            f"expected {uri} and the input to work, got {name}{where}: look after the disk and"
            f" {AGAIN}"
        )
    return None
