"""A seekable file over byte ranges, for readers that need one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

READ_AHEAD = 64 << 10  # the parts of a footer are read one by one, a few bytes apart


class RangeFile(io.RawIOBase):
    """A file read through `fetch(start, stop)`, which returns exactly these bytes or raises.

    Holds the last piece that was fetched.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._at = fetch, size, 0
        self._start, self._piece = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        """Read the next `count` bytes, fewer only at the end of the file."""
        stop = self._size if count is None or count < 0 else min(self._at + count, self._size)
        if stop <= self._at:
            return b""
        if not self._start <= self._at <= stop <= self._start + len(self._piece):
            end = min(max(stop, self._at + READ_AHEAD), self._size)
            self._start, self._piece = self._at, self._fetch(self._at, end)
        data = self._piece[self._at - self._start : stop - self._start]
        self._at = stop
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
