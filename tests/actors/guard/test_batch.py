"""Batches that do not fit in memory are halved, and every row is answered as it would be alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.guard.batch import Batch, drain_notes, gpu_fault, out_of_memory
from actors.guard.watchdog import STOPPED
from actors.rows.read import Row, Unusable
from counterfactory.models.wrapping.shape import Shape

CPU = torch.device("cpu")
CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
ECC = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
PLAIN = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"
)


def rows(count: int) -> list[Row]:
    return [Row(str(i), i, np.zeros((1, 1, 3), np.uint8), None, None, {}) for i in range(count)]


class Memory:
    """A method whose memory holds so many rows; some rows it never holds, and some it fails on."""

    def __init__(
        self, holds: int, *, error: Exception = CUDA, large: str = "", bad: str = ""
    ) -> None:
        self.holds, self.error, self.large, self.bad = holds, error, large, bad
        self.calls: list[int] = []

    def __call__(self, batch: list[Row]) -> tuple[list[str], list[Unusable]]:
        self.calls.append(len(batch))
        names = [row.id for row in batch]
        if len(batch) > self.holds or self.large in names:
            raise self.error
        if self.bad in names:
            raise ValueError("planted")
        return names, []


@pytest.mark.parametrize("error", [CUDA, PLAIN, MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_for_good_and_told_once(error: Exception) -> None:
    batch, memory = Batch(16, CPU), Memory(5, error=error)
    answers, bad = batch.guarded(memory, rows(16))
    assert (answers, bad) == ([row.id for row in rows(16)], [])
    assert memory.calls == [16, 8, 4, 4, 8, 4, 4]
    assert batch.size == 4
    assert batch.notes == ["out of memory with 16 rows at a time: goes on with 4"]
    batch.guarded(memory, rows(4))
    assert drain_notes(batch.notes) == ["out of memory with 16 rows at a time: goes on with 4"]
    assert batch.notes == []


def test_a_row_that_does_not_fit_alone_is_set_aside_and_makes_no_batch_smaller() -> None:
    batch = Batch(8, CPU)
    answers, bad = batch.guarded(Memory(8, large="3"), rows(8))
    assert answers == [str(i) for i in range(8) if i != 3]
    assert [(row.id, row.reason) for row in bad] == [
        (
            "3",
            (
                "it does not fit in memory alone: OutOfMemoryError: CUDA out of memory. Tried to"
                " allocate 2.00 GiB"
            ),
        )
    ]
    assert (batch.size, batch.notes) == (8, [])


@pytest.mark.parametrize("fits", [1, 0])
def test_a_row_whose_copies_do_not_fit_is_tried_without_them(fits: int) -> None:
    """A network that pads its calls needs the memory of several rows, for one row too."""
    shape = Shape(8, exact=True)
    batch = Batch(8, CPU, shape)

    def call(batch: list[Row]) -> tuple[list[str], list[Unusable]]:
        if shape.rows > fits:
            raise CUDA
        return [row.id for row in batch], []

    answers, bad = batch.guarded(call, rows(1))
    assert answers == ["0"][:fits]
    assert (len(bad), shape.rows) == ((0, 1) if fits else (1, 8))
    told = ["out of memory with 8 rows at a time: networks go on with 1"]
    assert batch.notes == (told if fits else [])


def test_a_row_that_raises_is_set_aside_alone_and_keeps_the_size() -> None:
    batch, memory = Batch(4, CPU), Memory(4, bad="2")
    answers, bad = batch.guarded(memory, rows(4))
    assert answers == ["0", "1", "3"]
    assert [(row.id, row.reason) for row in bad] == [
        ("2", "the method failed: ValueError: planted")
    ]
    assert memory.calls == [4, 1, 1, 1, 1]
    assert batch.size == 4


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        *(
            (error, True)
            for error in (
                CUDA,
                PLAIN,
                MemoryError(),
                torch.AcceleratorError("CUDA error: out of memory"),
            )
        ),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        *((error, False) for error in (ECC, RuntimeError("shape"), ValueError("memory"))),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) == is_memory


@pytest.mark.parametrize(
    "error",
    [
        ECC,
        torch.AcceleratorError("device-side assert"),
        RuntimeError("CUDA error: CUBLAS_STATUS_MAPPING_ERROR"),
    ],
)
def test_a_fault_of_the_gpu_ends_the_process_and_sets_no_row_aside(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []

    def end(code: int) -> None:
        ends.append(code)
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", end)
    memory = Memory(0, error=error)
    with pytest.raises(SystemExit):
        Batch(4, CPU).guarded(memory, rows(4))
    assert (ends, memory.calls) == ([STOPPED], [4])
    said = capfd.readouterr().err
    assert said.startswith(
        f"counterfactory: the GPU failed, and this process with it: {type(error).__name__}: "
    )


def test_a_rows_own_error_is_no_fault_of_the_gpu() -> None:
    assert not any(
        gpu_fault(error) for error in (CUDA, PLAIN, ValueError("CUDA error"), RuntimeError("shape"))
    )


def gpu(monkeypatch: pytest.MonkeyPatch, total: int, memory: Memory) -> torch.device:
    """A GPU of `total` units, of which each row of a batch takes one."""
    peak: Any = lambda device: max(size for size in memory.calls if size <= memory.holds)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - peak(device), total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", peak)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return SimpleNamespace(type="cuda")  # type: ignore[return-value]


def test_auto_doubles_on_a_gpu_while_twice_the_memory_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory(100)
    batch = Batch("auto", gpu(monkeypatch, 100, memory))
    sizes = []
    for _ in range(5):
        sizes.append(batch.size)
        batch.guarded(memory, rows(batch.size))
    assert sizes == [16, 32, 64, 64, 64]


def test_auto_does_not_grow_on_part_of_a_batch_nor_after_memory_was_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory(40)
    # as if another process took the rest in between
    batch = Batch("auto", gpu(monkeypatch, 1000, memory))
    batch.guarded(memory, rows(9))
    assert batch.size == 16
    for _ in range(4):
        batch.guarded(memory, rows(batch.size))
    assert batch.size == 32
    assert batch.notes == ["out of memory with 64 rows at a time: goes on with 32"]


def test_auto_on_a_cpu_is_the_default_and_stays() -> None:
    batch = Batch("auto", CPU)
    batch.guarded(Memory(100), rows(16))
    assert batch.size == 16
