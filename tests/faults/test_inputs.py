"""A model or an input file is not what it was: the run refuses, says what changed, and goes on once
it is put back.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Job, write_rows  # type: ignore[import-not-found]
from crash import At, wait_until_stopped
from safetensors.torch import save_file


@pytest.fixture
def half(job: Job) -> Job:
    """A run of which two shards are committed."""
    assert job.run(At("put_new", "commit/generate/", nth=2, when="after"))[0] == -signal.SIGKILL
    return job


def refuse(job: Job, *words: str) -> None:
    """The command stops with exit code 2 and one line that has these words, and changes nothing."""
    before = {
        name: job.store.read(name) for name in job.store.list("") if not name.startswith("attempt/")
    }
    code, said = job.run()
    assert code == 2, said
    assert said.count("\n") == 1
    for word in words:
        assert word in said, said
    assert {name: job.store.read(name) for name in before} == before
    assert job.store.list("commit") == [name for name in before if name.startswith("commit/")]


def test_model_changed_between_two_resumes(half: Job) -> None:
    model = half.folder / "model.safetensors"
    kept = model.read_bytes()
    save_file({"slope": torch.tensor([21.0])}, str(model))
    refuse(
        half,
        "models.classifier: expected the weights the run was planned with",
        "nothing was changed",
    )
    model.write_bytes(kept)
    half.finish()


def test_input_changed_between_two_resumes(half: Job) -> None:
    file = half.data / "b.parquet"
    kept = shutil.copy2(file, half.folder / "kept")
    write_rows(file, 40, 8)
    refuse(half, str(file), "changed since the run was planned", "nothing was changed")
    shutil.copy2(kept, file)  # with its time, as `cp -p`
    half.finish()


def test_input_removed_between_two_resumes(half: Job) -> None:
    file = half.data / "b.parquet"
    os.rename(file, half.folder / "kept")
    refuse(half, str(file), "no such file", "nothing was changed")
    os.rename(half.folder / "kept", file)
    half.finish()


def test_all_input_removed_between_two_resumes(half: Job) -> None:
    os.rename(half.data, half.folder / "kept")
    refuse(half, "data.path: expected Parquet files at", str(half.data))
    os.rename(half.folder / "kept", half.data)
    half.finish()


def test_input_changed_while_the_run_goes_on(job: Job, tmp_path: Path) -> None:
    """The driver is held in the first shard; meanwhile the second file changes, and later its shard
    says so.
    """
    child = job.start(At("answer", nth=1, what="stop"))
    wait_until_stopped(child.pid)
    file = job.data / "b.parquet"
    kept = shutil.copy2(file, tmp_path / "kept")
    write_rows(file, 40, 8)
    os.kill(child.pid, signal.SIGCONT)
    child.join(120)
    assert child.exitcode == 2, job.said
    assert f"data.path: {file} changed since it was planned" in job.said
    assert "Traceback" not in job.said
    assert len(job.commits()) == 4
    shutil.copy2(kept, file)
    job.finish()
