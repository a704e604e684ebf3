"""Classifiers that can only be asked, inside a run: their errors, their earlier answers, and the
count of images that all workers asked.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.models.roles import BLACK_BOXES
from counterfactory.models.wrapping.answers import Answers
from counterfactory.models.wrapping.black_box import BlackBox
from counterfactory.models.wrapping.errors import BlackBoxError, QueriesSpent, Unreachable
from storage.cache import home
from storage.errors import NoAnswer
from storage.seal import read_sealed
from storage.uri import Store

PROBES = "probe.json"  # the answers to fixed images when a run started, by model
KEPT_FOR = 30 * 86400.0  # seconds
COUNTER = "counterfactory-queries"  # the name of the counter on Ray


class Asked(nn.Module):
    """A black box with its name in a run's models, which raises the workflow's errors.

    UserError where its answers are wrong; NoAnswer, after which the same command goes on, where it
    does not answer or no more queries are allowed. most: images that one command may ask.
    """

    def __init__(self, model: BlackBox, name: str, most: int | None, kept: int) -> None:
        super().__init__()
        self.model, self.name, self.most, self.kept = model, name, most, kept
        model.take = self._take
        self.eval()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, images: Tensor) -> Tensor:
        """Return log p (B,K) of images (B,3,H,W) in [0,1]."""
        try:
            scores: Tensor = self.model(images)
            return scores
        except BlackBoxError as error:
            raise told(error, self.name) from error

    def remember(self, run: Store) -> None:
        """Use the answers that this machine knows from earlier tries of the run, and add to them.

        Without a probe of the run, only the answers of this process are used.
        """
        if not self.kept:
            return
        token = probes(run).get(self.name, {}).get("token")
        folder = home() / "answers" / str(token) if token else None
        remove_old(home() / "answers")
        self.model.answers = Answers(len(self.model.classes), self.kept, folder)

    def _take(self, images: int) -> None:
        if not counter().take(self.name, images, self.most):
            raise QueriesSpent(
                f"ask.max_queries: {self.most:,} images is the most that one command may ask: what"
                " is committed stays, and the same command goes on from here"
            )


def remove_old(folder: Path) -> None:
    """Delete the answers of runs that this machine has not added to for KEPT_FOR seconds."""
    with suppress(OSError):
        for run in folder.iterdir():
            if max(one.stat().st_mtime for one in (run, *run.iterdir())) < time.time() - KEPT_FOR:
                shutil.rmtree(run, ignore_errors=True)


def told(error: BlackBoxError, name: str) -> Exception:
    """Return the workflow's error for a black box's."""
    text = f"models.{name}: {error}"
    return NoAnswer(text) if isinstance(error, Unreachable) else UserError(text)


def remember(models: Iterable[Any], run: Store) -> None:
    """Let every black box among models use the answers of earlier tries of a run."""
    for model in models:
        if isinstance(model, Asked):
            model.remember(run)


def probes(run: Store) -> dict[str, Any]:
    """Return what the run's black boxes answered to fixed images when it started, by name."""
    return read_sealed(run, PROBES)["models"] if run.exists(PROBES) else {}


def black_boxes(config: RunConfig) -> list[str]:
    """Return the names of a run's models that can only be asked."""
    return [name for name, spec in config.models.items() if spec.source in BLACK_BOXES]


class Count:
    """The images that were asked, by the name of the model; one object for all workers."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts, self._lock = Counter(counts or {}), threading.Lock()

    def take(self, name: str, images: int, most: int | None) -> bool:
        """Count images that are about to be asked; False, counting none, where they would be more
        than `most`.
        """
        with self._lock:
            if most is not None and self.counts[name] + images > most:
                return False
            self.counts[name] += images
            return True

    def all(self) -> dict[str, int]:
        """Return the counts by name."""
        with self._lock:
            return dict(self.counts)

    def clear(self) -> None:
        """Count from 0 again, for another command."""
        with self._lock:
            self.counts.clear()


class RayCount:
    """The same count in an actor on Ray."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def take(self, name: str, images: int, most: int | None) -> bool:
        """Count images as `Count.take` does."""
        import ray

        return bool(ray.get(self.actor.take.remote(name, images, most)))

    def all(self) -> dict[str, int]:
        """Return the counts by name."""
        import ray

        found: dict[str, int] = ray.get(self.actor.all.remote())
        return found

    def clear(self) -> None:
        """Count from 0 again, for another command."""
        import ray

        ray.get(self.actor.clear.remote())


HERE = Count()  # of this process, where there is no Ray
FOUND: dict[str, RayCount] = {}  # Ray's counter by its cluster, once a worker has found it


def counter() -> Count | RayCount:
    """Return the counter of the command that this process works for."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return HERE
    cluster = ray.get_runtime_context().gcs_address
    if cluster not in FOUND:
        try:
            FOUND[cluster] = RayCount(ray.get_actor(COUNTER))
        except ValueError:  # a driver that has not started it yet
            return HERE
    return FOUND[cluster]


def begin_count() -> None:
    """Count from 0, for a new command."""
    HERE.clear()
    counter().clear()


def start_counter() -> None:
    """Start one counter for all workers on Ray, with what this driver has asked so far."""
    import ray

    if not isinstance(counter(), RayCount):
        kind = ray.remote(Count)
        actor = kind.options(name=COUNTER, num_cpus=0).remote(HERE.all())
        # it lives as long as this handle
        FOUND[ray.get_runtime_context().gcs_address] = RayCount(actor)
