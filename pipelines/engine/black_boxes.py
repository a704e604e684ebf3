"""What the engine does around a stage whose models can only be asked: it notices another model,
and shares the server's limits among workers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from actors.pinned.black_box import (
    PROBES,
    Asked,
    black_boxes,
    counter,
    probes,
    start_counter,
    told,
)
from actors.pinned.load import load_models
from actors.sweep import SweepJob
from actors.worker import Job
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError
from counterfactory.models.roles import SERVERS
from counterfactory.models.wrapping.errors import BlackBoxError
from counterfactory.models.wrapping.probe import drift, probe
from pipelines.engine.fingerprints import settings_of
from pipelines.engine.progress import note
from storage.codec import sides
from storage.seal import sealed
from storage.uri import Store

Place = tuple[Store, RunConfig]
ASKING = ("generate", "interventions", "score")  # stages
# settings of a model that do not change it, or that a worker pins
APART = {"preset", "label", "access", "weights", "sha256"}
CPU = torch.device("cpu")


@contextmanager
def watched(kind: str, places: Sequence[Place]) -> Iterator[None]:
    """Compare every black box of some runs with its answers at the run's start, before and after
    the block.

    The first time, its answers are stored. kind: of the stage; only the stages of ASKING ask the
    classifiers. UserError where they are others; NoAnswer where there are none. Does nothing for
    runs without black boxes.
    """
    places = [(store, config) for store, config in places if black_boxes(config)]
    if not places or kind not in ASKING:
        yield
        return
    before = counter().all()
    _compare(places)
    yield
    _compare(places, ended=True)
    for name, images in sorted(counter().all().items()):
        if images > before.get(name, 0):
            note(f"models.{name}: asked {images - before.get(name, 0):,} images")


def _compare(places: Sequence[Place], ended: bool = False) -> None:
    """Probe every distinct black box once, and compare it with what each run has stored.

    ended: rows were made in between, so that a run whose model changed stays refused.
    """
    known: dict[str, dict[str, Any]] = {}
    for store, config in places:
        stored = probes(store)
        width, height = sides(config.data.size)
        for name in black_boxes(config):
            key = json.dumps([config.models[name].model_dump(), width, height], default=str)
            if key not in known:
                known[key] = _probe(config, name, height, width)
            settings = fingerprint(settings_of(config.models[name], APART))
            if stored.get(name, {}).get("settings") != settings:  # another one may judge a run
                new = {"settings": settings, "token": uuid.uuid4().hex}
                stored[name] = {**known[key], **new}
                store.replace(PROBES, sealed({"models": stored}))
            elif before := stored[name].get("drift"):
                raise UserError(
                    f"models.{name}: expected rows of one model, got {before} while the run worked:"
                    " give the run another name"
                )
            elif changed := drift(stored[name], known[key]):
                if ended:
                    stored[name]["drift"] = changed
                    store.replace(PROBES, sealed({"models": stored}))
                way = "give the run another name"
                raise UserError(
                    f"models.{name}: expected the model that the run was started with, got"
                    f" {changed}: {way if ended else f'put it back, or {way}'}"
                )


def _probe(config: RunConfig, name: str, height: int, width: int) -> dict[str, Any]:
    model: Any = load_models(config.model_dump(), [name], CPU)[name]
    assert isinstance(model, Asked)
    try:
        return probe(model.model, height, width)
    except BlackBoxError as error:
        raise told(error, name) from error


def share(config: RunConfig, job: Job, workers: int) -> tuple[RunConfig, Job, int]:
    """Return the settings and the number of workers on Ray, so that all of them together send a
    server no more requests at a time than allowed; starts the counter of their queries.
    """
    cells = job.cells if isinstance(job, SweepJob) else ()
    configs = [cell.config for cell in cells] or [config]
    if not any(black_boxes(one) for one in configs):
        return config, job, workers
    start_counter()
    fewer = min([workers, *(most for one in configs for most in _limits(one))])
    if fewer < workers:
        note(f"{fewer} of {workers} workers, because a server allows {fewer} requests at a time")
    workers = fewer
    if isinstance(job, SweepJob):
        parts = [replace(cell, config=_part(cell.config, workers)) for cell in cells]
        job = replace(job, cells=parts)
    return _part(config, workers), job, workers


def _limits(config: RunConfig) -> list[int]:
    """Return how many requests each of a run's servers allows at a time."""
    return [
        spec.ask.max_concurrency
        for spec in config.models.values()
        if spec.ask is not None and spec.source in SERVERS
    ]


def _part(config: RunConfig, workers: int) -> RunConfig:
    """Return a run's settings with the share of one of so many workers."""
    models = {}
    for name, spec in config.models.items():
        if spec.ask is not None:
            most = max(1, spec.ask.max_concurrency // workers)
            ask = spec.ask.model_copy(update={"max_concurrency": most})
            spec = spec.model_copy(update={"ask": ask})
        models[name] = spec
    return config.model_copy(update={"models": models})
