"""The last error handling at the command line: unexpected errors, and a closed output pipe."""

from __future__ import annotations

import os
import select
import sys
import tempfile
import traceback

from storage.secrets import hide


def reader_left() -> bool:
    """Return whether the reader of our output has closed it, as `| head` does. Then sends further
    output to the null device.
    """
    out, poll = sys.stdout.fileno(), select.poll()
    poll.register(out, 0)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return left


def describe_fault(error: Exception) -> str:
    """Return the line for an unexpected error, and write its traceback to a temporary file."""
    text = "".join(traceback.format_exception(error))
    got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="counterfactory-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(hide(text))
    except OSError:
        return f"a fault of counterfactory's own, please report it: {got}\n{text}"
    return (
        f"a fault of counterfactory's own, {got}: what is committed stays. Please report it with"
        f" {file.name}, which has the traceback"
    )
