"""The doctor's checks of a classifier that can only be asked: its speed, its limits, and whether it
is still the model that a run was started with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from actors.pinned.black_box import Asked, probes
from configs.schema import ModelConfig, RunConfig
from configs.strict import UserError
from counterfactory.models.wrapping.errors import BlackBoxError
from counterfactory.models.wrapping.probe import drift, probe
from pipelines.doctor.finding import Finding, ok, one_line, problem, warning
from pipelines.generate.plan import open_run
from storage.codec import sides
from storage.errors import TOLD

SLOWER = 0.8  # of the images a second of a smaller request


def describe_black_box(name: str, spec: ModelConfig) -> Finding:
    """Return what a black box is and how much it may be asked."""
    ask = spec.ask
    assert ask is not None
    where = ask.url or spec.target or spec.weights
    most = "without a limit" if ask.max_queries is None else f"at most {ask.max_queries:,} images"
    text = f"a black box ({spec.source}) at {where}, which gives {spec.given}; {most} a command"
    if ask.url:
        text += f", {ask.max_concurrency} requests at a time of {ask.batch} images"
    return ok(f"models.{name}", text)


def check_black_box(
    config: RunConfig, name: str, model: Asked, images: Tensor
) -> Iterator[Finding]:
    """Time requests of several sizes, and ask the fixed images twice; images: (n,3,H,W)."""
    where = f"models.{name}"
    width, height = sides(config.data.size)
    try:
        speeds = {size: _speed(model, images, size) for size in _sizes(model.rows)}
        first, again = (probe(model.model, height, width) for _ in range(2))
    except (BlackBoxError, UserError, *TOLD) as error:
        yield problem(where, one_line(str(error)))
        return
    shown = ", ".join(f"{size} in {1000 * size / speed:.0f} ms" for size, speed in speeds.items())
    best = max(speeds, key=lambda size: speeds[size])
    yield ok(where, f"answers requests of {shown}: {speeds[best]:.0f} images/s, one at a time")
    if speeds[max(speeds)] < SLOWER * speeds[best]:
        text = f"larger requests are slower: {speeds[max(speeds)]:.0f} images/s with {max(speeds)}"
        yield warning(where, text, f"set ask.batch: {best}")
    if changed := drift(first, again):
        yield problem(where, f"asked twice, it gives {changed}", "is it several models?")
        return
    stored: dict[str, Any] = {}
    try:
        stored = probes(open_run(config)).get(name, {})
    except (UserError, *TOLD):
        pass  # other checks report a folder that cannot be read
    told = f"version {first['version']}" if first["version"] else "no version"
    if stored and (changed := drift(stored, first)):
        yield problem(where, f"is another model than the run was started with: {changed}")
    else:
        text = "is the model that the run was started with" if stored else "gives the same twice"
        yield ok(where, f"states {told}, and {text}")


def _sizes(most: int) -> list[int]:
    """Return the sizes of requests to time, up to the largest one."""
    return sorted({1, min(8, most), most})


def _speed(model: Asked, images: Tensor, size: int) -> float:
    """Return the images a second of requests of one size, the fastest of three."""
    pixels = model.pixels(images[torch.arange(size) % len(images)])
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model.ask(pixels)
        seconds.append(time.perf_counter() - started)
    return size / max(min(seconds), 1e-9)
