"""How Ray is started and asked for workers, on a Ray that only answers questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import EngineConfig
from pipelines.stage import start_ray


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
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": gpus, "CPU": 4}}])
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
