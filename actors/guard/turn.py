"""Turns of several threads that compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A lock for one thread at a time, which measures the time without computing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_since = time.perf_counter()

    @contextmanager
    def mine(self) -> Iterator[float]:
        """Compute alone in the block; yields the seconds for which no thread computed."""
        with self._lock:
            gap = time.perf_counter() - self._free_since
            try:
                yield gap
            finally:
                self._free_since = time.perf_counter()
