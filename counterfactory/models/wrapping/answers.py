"""Answers of a black box by the content of the image, kept in memory and, where a folder is given,
on disk, so that a row that is done again is not asked again.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

KEY = 16  # bytes
DAY = 86400.0  # seconds


class Answers:
    """The newest answers (K,) float32, at most `most`, by a key of KEY bytes.

    folder: where every process appends its answers to files of its own; a damaged record is
    skipped. A process keeps two files of at most most/2 records. A folder that cannot be written
    keeps nothing.
    """

    def __init__(self, classes: int, most: int, folder: Path | None = None) -> None:
        self.classes, self.most, self.folder = classes, most, folder
        self.rows: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self.found = 0  # answers that were known
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._files: list[Path] = []
        self._written = 0
        if folder is not None:
            self._load(folder)

    def known(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the answers that are known, by key."""
        with self._lock:
            found = {}
            for key in keys:
                row = self.rows.get(key)
                if row is not None:
                    self.rows.move_to_end(key)
                    found[key] = row
                    self.found += 1
            return found

    def keep(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep the answers (n,K) of keys."""
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                self._put(key, row)
            if self.folder is not None:
                with suppress(OSError):  # a full disk costs a second answer, no run
                    self._append(self.folder, keys, rows)

    def _put(self, key: bytes, row: np.ndarray) -> None:
        self.rows[key] = row
        self.rows.move_to_end(key)
        while len(self.rows) > self.most:
            self.rows.popitem(last=False)

    def _append(self, folder: Path, keys: Sequence[bytes], rows: np.ndarray) -> None:
        if self._file is None or self._written >= max(1, self.most // 2):
            if self._file is not None:
                self._file.close()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.rows"
            self._file, self._written = path.open("ab"), 0
            self._files.append(path)
            for old in self._files[:-2]:
                old.unlink(missing_ok=True)
            del self._files[:-2]
        for key, row in zip(keys, rows, strict=True):
            self._file.write(_record(key, row))
        self._file.flush()
        self._written += len(keys)

    def _load(self, folder: Path) -> None:
        """Read the newest files up to `most` records, and delete older ones that nobody has
        written for a day.
        """
        files = []
        with suppress(OSError):
            files = sorted(folder.glob("*.rows"), key=lambda file: -file.stat().st_mtime)
        size, left, chosen = KEY + 4 * self.classes + 4, self.most, []
        for file in files:
            with suppress(OSError):
                if left > 0:
                    data = file.read_bytes()
                    chosen.append(data)
                    left -= len(data) // size
                elif file.stat().st_mtime < time.time() - DAY:
                    file.unlink()
        for data in reversed(chosen):  # the newest last
            for at in range(0, len(data) - size + 1, size):
                record = data[at : at + size]
                row = np.frombuffer(record[KEY:-4], dtype="<f4")
                if _record(record[:KEY], row) == record:
                    self._put(record[:KEY], row)


def _record(key: bytes, row: np.ndarray) -> bytes:
    data = key + row.astype("<f4").tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")
