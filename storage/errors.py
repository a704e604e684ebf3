"""What storage says when it cannot go on; str() of each is one line for the user, and holds no
secret.
"""

from __future__ import annotations


class StorageError(OSError):
    """A store that refuses or does not answer: no access, no such bucket, tries used up."""


class NoAnswer(StorageError):  # noqa: N818 (said of the store)
    """A store that did not answer for as long as was waited for: it may later, so the same command
    is worth a try.
    """


class BadPath(ValueError):  # noqa: N818 (said of the path)
    """A path or URI that no store can take."""


class FileChanged(ValueError):  # noqa: N818 (said of the file)
    """An input file is not the one that was planned with."""


class BadRecord(ValueError):  # noqa: N818 (said of the record)
    """A file of a run's own, the plan say, that cannot be read as what it should be."""


class BadCommit(BadRecord):
    """A commit object that cannot be read as one."""


class BadData(BadRecord):
    """A data file that is not the one that a commit or the manifest names."""


TOLD = (StorageError, BadPath, FileChanged, BadRecord)  # shown as they are, without a traceback
