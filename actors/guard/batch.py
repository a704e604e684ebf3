"""The number of rows in a call of the method: fixed or found by trying, and less
after out of memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from actors.guard.watchdog import stop
from actors.rows.read import Row, Unusable
from configs.strict import UserError
from counterfactory.models.wrapping.shape import Shape
from storage.errors import NoAnswer

A = TypeVar("A")
Call = Callable[[list[Row]], tuple[list[A], list[Unusable]]]
FIRST, MOST = 16, 1024  # first and largest size of `auto`
SHORT = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class Batch:
    """The size of the next batch, and the guard around a batch, which sets failing rows aside
    alone.

    size: rows; `auto` starts at FIRST and on a GPU doubles while twice the memory would fit. Out of
    memory halves it for good, and limits the networks' shape to it. A fault of the GPU ends the
    process: all later work in it would also fail, and no row caused that. notes: lines for the
    driver to show, each once.
    """

    def __init__(self, size: int | str, device: torch.device, shape: Shape | None = None) -> None:
        self.size, self.device = FIRST if size == "auto" else int(size), device
        self.shape = shape or Shape()
        self.growing = size == "auto" and device.type == "cuda"
        self.notes: list[str] = []

    def guarded(self, call: Call[A], rows: list[Row]) -> tuple[list[A], list[Unusable]]:
        """Return answers of a batch, and the rows set aside.

        A batch that does not fit in memory is split in halves; one that raises is done row by row.
        """
        before, shape = self.size, self.shape.rows
        answers, bad, alone = self._parts(call, rows)
        if alone:  # a row that does not fit alone shows nothing about the others
            self.size, self.shape.rows = before, shape
        elif self.size < before:
            self.growing = False
            self.notes.append(
                f"out of memory with {before} rows at a time: goes on with {self.size}"
            )
        elif self.shape.rows < shape:
            self.notes.append(
                f"out of memory with {shape} rows at a time: networks go on with {self.shape.rows}"
            )
        elif self.growing and len(rows) == self.size:
            self._grow()
        return answers, bad

    def _parts(self, call: Call[A], rows: list[Row]) -> tuple[list[A], list[Unusable], bool]:
        """Return answers, rows set aside, and whether one of these rows does not
        fit in memory alone.
        """
        try:
            answers, bad = call(rows)
            return answers, bad, False
        except (UserError, NoAnswer):  # not caused by a row
            raise
        except Exception as error:
            short = out_of_memory(error)
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if gpu_fault(error):
                stop(f"the GPU failed, and this process with it: {told}")
        # The error is gone here, and with it the tensors that its traceback held.
        if short:
            release(self.device)
        if short and len(rows) == 1 and self.shape.rows > 1:
            self.shape.limit(1)  # the network computed copies of the row beside it
            return self._parts(call, rows)
        if len(rows) == 1:
            reason = (
                f"it does not fit in memory alone: {told}"
                if short
                else f"the method failed: {told}"
            )
            return [], [Unusable(rows[0].id, reason)], short
        half = (len(rows) + 1) // 2 if short else 1
        if short:
            self.size = min(self.size, half)
            self.shape.limit(half)
        found: tuple[list[A], list[Unusable]] = ([], [])
        alone = False
        for at in range(0, len(rows), half):
            answers, bad, too_large = self._parts(call, rows[at : at + half])
            found[0].extend(answers)
            found[1].extend(bad)
            alone |= too_large
        return *found, alone

    def _grow(self) -> None:
        """Double the size where twice the peak memory of the last batches is free;
        else stop growing.
        """
        free, _ = torch.cuda.mem_get_info(self.device)
        mine = torch.cuda.memory_reserved(self.device)
        self.growing = (
            self.size < MOST and 2 * torch.cuda.max_memory_allocated(self.device) <= free + mine
        )
        if self.growing:
            self.size *= 2


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is torch's, or Python's, for out of memory."""
    text = str(error)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        or (
            isinstance(error, RuntimeError)
            and ("DefaultCPUAllocator" in text and "allocate memory" in text)
        )
        or (isinstance(error, RuntimeError) and any(words in text for words in SHORT))
    )


def gpu_fault(error: BaseException) -> bool:
    """Return whether an error is CUDA's for a process that can no longer compute.

    Examples are a device assert, illegal access, and ECC.
    """
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    # an old torch has no such type
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def release(device: torch.device) -> None:
    """Release the memory that a failed batch held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def drain_notes(notes: list[Any]) -> list[Any]:
    """Return the notes and empty the list, so that each is shown once."""
    taken = notes[:]
    notes.clear()
    return taken
