"""A bounded part of benchmarks/fuzz.py: mutated files are read or refused, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import BAD, KINDS, Ground, one

CASES = {"image": 150, "parquet": 40, "config": 150, "answers": 40}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, ground: Ground, tmp_path: Path) -> None:
    for number in range(CASES.get(kind, 12)):
        what, error = one(kind, number, ground, tmp_path)
        assert what not in BAD, f"{kind} {number}: {what}: {error}"
