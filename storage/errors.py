"""Errors of storage; str() of each is one line for the user, without secrets."""

from __future__ import annotations


class StorageError(OSError):
    """A store that refuses or does not answer: no access, no such bucket, or all tries failed."""


class NoAnswer(StorageError):  # noqa: N818 (it describes the store)
    """A store that did not answer in the time allowed; the same command may succeed later."""


class BadPath(ValueError):  # noqa: N818 (it describes the path)
    """A path or URI that no store accepts."""


class FileChanged(ValueError):  # noqa: N818 (it describes the file)
    """An input file that differs from the planned one."""


class BadRecord(ValueError):  # noqa: N818 (it describes the record)
    """A file of the run itself, such as the plan, that cannot be read as its record."""


class BadCommit(BadRecord):
    """A commit object that cannot be read as a commit."""


class BadData(BadRecord):
    """A data file that differs from the one that a commit or the manifest names."""


TOLD = (StorageError, BadPath, FileChanged, BadRecord)  # errors shown without a traceback
