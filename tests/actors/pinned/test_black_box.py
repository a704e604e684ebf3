"""The count of images that all workers asked, and the answers that a machine keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.pinned.black_box import Asked, Count, remove_old
from configs.strict import UserError
from counterfactory.models.wrapping.black_box import BlackBox
from storage.errors import NoAnswer


class Half:
    """An adapter that answers 0.5, or with what it is given."""

    rows: int | None = None

    def __init__(self, found: Any = None) -> None:
        self.found = found

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 2), 0.5) if self.found is None else np.array(self.found)

    def version(self) -> str | None:
        return None


def asked(most: int | None = None, found: Any = None) -> Asked:
    return Asked(BlackBox(Half(found), classes=["a", "b"]), "classifier", most, 0)


def test_no_more_than_the_limit_is_counted_and_a_refusal_counts_nothing() -> None:
    count = Count()
    assert count.take("a", 6, 10)
    assert not count.take("a", 5, 10)
    assert count.take("a", 4, 10)
    assert count.take("b", 99, None)
    assert count.all() == {"a": 10, "b": 99}
    count.clear()
    assert count.all() == {}


def test_errors_name_the_model_and_say_whether_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.pinned.black_box.HERE", Count())
    model = asked(most=5)
    model(torch.zeros(4, 3, 2, 2))
    with pytest.raises(NoAnswer, match=r"models.classifier: ask.max_queries: 5 images"):
        model(torch.zeros(2, 3, 2, 2))
    with pytest.raises(UserError, match=r"models.classifier: expected answers to 1 images, got 2"):
        asked(found=[[0.5, 0.5]] * 2)(torch.zeros(1, 3, 2, 2))


def test_answers_of_runs_long_ago_are_deleted(tmp_path: Path) -> None:
    for name, age in (("old", 40), ("new", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.rows").write_bytes(b"x")
        then = time.time() - age * 86400
        for path in (tmp_path / name / "1.rows", tmp_path / name):
            os.utime(path, (then, then))
    remove_old(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["new"]
    remove_old(tmp_path / "absent")


ONE_COUNTER = """
import ray
from actors.pinned.black_box import counter, start_counter

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
start_counter()
start_counter()  # the same one
before = counter().all().get("c", 0)

@ray.remote(num_cpus=0.1)
def take():
    from actors.pinned.black_box import counter
    return counter().take("c", 1, before + 3)

took = ray.get([take.remote() for _ in range(5)])
assert sorted(took) == [False, False, True, True, True], took
assert counter().all()["c"] == before + 3
counter().clear()
assert counter().all() == {}
"""


def test_workers_on_ray_have_one_counter() -> None:
    """In a process of its own: where Ray has started, tests/cluster can join no cluster."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", ONE_COUNTER], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
