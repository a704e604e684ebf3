"""A container's quota and a process's mask count, not the machine's CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.doctor import machine as doctor_machine
from pipelines.engine import cpus as module
from pipelines.engine import runner as stage
from pipelines.engine.cpus import cpus


@pytest.mark.parametrize(
    ("quota", "mask", "count"),
    [
        ("max 100000", 8, 8),
        ("200000 100000", 8, 2),
        ("150000 100000", 8, 2),
        ("10000 100000", 8, 1),
        ("900000 100000", 3, 3),
        ("", 8, 8),
        (None, 8, 8),
    ],
)
def test_cpus_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, mask: int, count: int
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mask)), raising=False)
    assert cpus() == count


def test_a_run_and_the_doctor_count_alike() -> None:
    assert stage.cpus is doctor_machine.cpus is cpus
