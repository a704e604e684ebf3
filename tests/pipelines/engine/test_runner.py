"""How Ray is started and asked for workers, on a Ray that only answers questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import EngineConfig
from configs.strict import UserError
from pipelines.engine.runner import start_ray


class FakeRay:
    """What `start_ray` asks of Ray; starts: errors that the next calls of `init` raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int = 0) -> None:
        import ray

        self.told: list[dict[str, Any]] = []
        self.starts: list[Exception] = []
        self.downs = 0
        self.context = SimpleNamespace(execution_no_progress_timeout_s=1800.0)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", self.shutdown)
        monkeypatch.setattr(
            ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": gpus, "CPU": 4}}]
        )
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": gpus, "CPU": 4})
        monkeypatch.setattr(ray.data.DataContext, "get_current", lambda: self.context)

    def init(self, **told: Any) -> None:
        self.told.append(told)
        if self.starts:
            raise self.starts.pop(0)

    def shutdown(self) -> None:
        self.downs += 1


def test_ray_ends_no_run_whose_shards_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    start_ray(EngineConfig(workers=1))
    assert fake.context.execution_no_progress_timeout_s == -1


@pytest.mark.parametrize(
    ("there", "workers", "words"), [(0, 1, "none: set engine.gpus=0"), (2, 3, "2: set engine.w")]
)
def test_workers_whose_gpus_are_not_on_this_machine_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, there: int, workers: int, words: str
) -> None:
    FakeRay(monkeypatch, gpus=there)
    with pytest.raises(
        UserError, match=f"GPUs for {workers} workers with 1 each, got room for {words}"
    ):
        start_ray(EngineConfig(gpus=1, workers=workers))


def test_as_many_workers_as_fit_or_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, gpus=2)
    assert start_ray(EngineConfig(gpus=1)) == 2
    assert start_ray(EngineConfig(gpus=0.5, workers=3)) == 3


def test_a_cluster_with_fewer_gpus_than_asked_for_is_told_of_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeRay(monkeypatch, gpus=1)
    assert start_ray(EngineConfig(gpus=1, workers=3, address="auto")) == 3
    assert "engine.workers: 3 with 1 GPUs each, auto has room for 1 now" in capsys.readouterr().err


def test_ray_that_does_not_start_in_time_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeRay(monkeypatch)
    fake.starts = [RuntimeError("timed out")]
    assert start_ray(EngineConfig(workers=2)) == 2
    assert (len(fake.told), fake.downs) == (2, 1)
    assert fake.told[0] == fake.told[1]


def test_ray_that_does_not_start_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    fake.starts = [TimeoutError("first"), Exception("The current node\n timed out")]
    with pytest.raises(UserError) as error:
        start_ray(EngineConfig(workers=2))
    assert str(error.value).startswith(
        "engine.kind: expected Ray to start on this machine, got twice Exception: The cu"
    )
    assert len(fake.told) == 2


def test_workers_are_as_many_as_the_cpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    monkeypatch.setattr("pipelines.engine.runner.cpus", lambda: 3)
    assert start_ray(EngineConfig()) == 3
    assert fake.told[0]["num_cpus"] == 5  # two more: a pool that takes every CPU hangs
