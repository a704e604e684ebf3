"""The doctor's estimate of time: the duration of the whole command, from measured times of its
parts.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from actors.score import available, causal_columns, networks, query_column, view
from configs.schema import RunConfig
from counterfactory.interventions import experiment
from counterfactory.interventions.switches import Cells, all_coalitions, draw_switches
from counterfactory.methods.contract import Answers, ImageAnswers, ImageQueries, Queries
from counterfactory.metrics.catalogue import function, measured
from counterfactory.metrics.flops import tflops
from counterfactory.metrics.pairs import Pairs
from storage.codec import decode, encode

LONG = 30.0  # seconds; a longer call is not tried after the first call
CORE = 6  # mixtures that the search for a core takes
BATCH = 16  # rows of a call where engine.batch is auto
# Measured on two cores; seconds.
RAY, OTHER = 5.0, 1.0  # to start a local Ray; to close a run: table, report
ROW = 0.002  # the driver's time for an answer: sums, prompts, augmentation set, report


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a run.

    imports: import of Python and torch. loads: loading the models. row, score: the method and the
    metrics, for a row and all of its answers. pictures: decoding and encoding a row's images.
    count: one row whose floating-point operations are counted. mixtures: a row's interventions.
    """

    imports: float
    loads: float
    row: float
    score: float = 0.0
    pictures: float = 0.0
    count: float = 0.0
    mixtures: float = 0.0


@dataclass(frozen=True)
class Promise:
    """Seconds of a whole `run`, by part."""

    start: float
    generate: float
    interventions: float
    score: float
    rest: float

    def __str__(self) -> str:
        parts = (
            ("start", self.start),
            ("generate", self.generate),
            ("interventions", self.interventions),
            ("score", self.score),
            ("report and the rest", self.rest),
        )
        return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in parts)

    @property
    def whole(self) -> str:
        """Return the sum as text."""
        parts = (self.start, self.generate, self.interventions, self.score, self.rest)
        return format_duration(sum(parts))


def promise(config: RunConfig, rows: int, answers: int, workers: int, costs: Costs) -> Promise:
    """Return the time of a whole run of `rows` rows with `answers` answers to each.

    A worker computes whole shards, so workers are idle at the end, and a run of one shard uses one
    worker. Each stage with workers loads its models again. On Ray each worker also imports torch.
    """
    engine = config.engine
    shards = math.ceil(rows / engine.shard_rows)
    turns = math.ceil(shards / workers) * min(engine.shard_rows, rows)
    mixes = config.interventions.enabled
    stages = 2 + mixes + ("attribution" in config.models)
    on_ray = engine.kind == "ray"
    each_start = costs.loads + (costs.imports if on_ray else 0.0)
    local = on_ray and not (engine.address or os.environ.get("RAY_ADDRESS"))
    counted = min(config.score.flops_rows, rows) * costs.count
    return Promise(
        start=costs.imports + stages * each_start + (RAY if local else 0.0),
        generate=turns * (costs.row + costs.pictures),
        interventions=turns * (costs.mixtures + costs.pictures) if mixes else 0.0,
        score=turns * (costs.score + costs.pictures) + counted,
        rest=OTHER + ROW * rows * answers,
    )


def measure(
    config: RunConfig,
    loaded: Mapping[str, Any],
    loads: float,
    ask: Callable[[int], Queries | None],
    call: Callable[[Queries], Answers],
    first: tuple[Queries, Answers, float],
) -> Costs:
    """Measure the parts of a run on this machine.

    ask: returns queries for the first n sampled rows. call: the method. first: a call that was
    made, and its seconds, which include all that happens only in a first call. A batch of the run's
    size is timed where it takes at most LONG. The count of a row's operations is timed under the
    same condition.
    """
    queries, answers, seconds = first
    each = seconds / len(queries)
    batch = config.engine.batch if isinstance(config.engine.batch, int) else BATCH
    if each * batch <= LONG and (more := ask(batch)) is not None:
        started = time.perf_counter()
        answers = call(more)
        int(answers.flipped.sum())  # waits for a GPU
        queries, each = more, (time.perf_counter() - started) / len(more)
    # one row alone takes as long as a few on a GPU, and little more than its share on a CPU
    count = seconds if queries.source.is_cuda else 1.5 * each
    if config.score.flops_rows and seconds <= LONG and (one := ask(1)) is not None:
        made: list[Answers] = []
        started = time.perf_counter()
        tflops(lambda: made.append(call(one)))
        spent = time.perf_counter() - started
        # rows differ in their number of model evaluations, and this row is not the mean
        count = spent * _evaluations(answers) / _evaluations(made[0])
    scoring = pictures = mixtures = 0.0
    if isinstance(queries, ImageQueries) and isinstance(answers, ImageAnswers):
        scoring = _score_seconds(config, loaded, queries, answers) / len(queries)
        mixtures = _mixture_seconds(config, loaded, queries, answers) / len(queries)
        pictures = _picture_seconds(answers) / len(queries)
    return Costs(import_seconds(), loads, each, scoring, pictures, count, mixtures)


def _evaluations(answers: Answers) -> float:
    """Return the mean number of model evaluations, forward and backward, for an answer."""
    return max(float((answers.forward + answers.backward).double().mean()), 1.0)


def _score_seconds(
    config: RunConfig, loaded: Mapping[str, Any], queries: ImageQueries, answers: ImageAnswers
) -> float:
    """Return the seconds for the figures of a batch's answers, computed as in the score worker.

    Returns 0 where a model that they need was not loaded.
    """
    plain = config.model_dump()
    specs, settings, looks = plain["models"], plain["score"], networks(plain["models"])
    names = [name for name in ("classifier", "oracle", "second") if name in specs]
    if any(name not in loaded for name in (*names, *looks.values())):
        return 0.0
    given = len(answers.counterfactual) // len(queries)
    asked = queries.repeated(given)
    attributes = loaded["oracle"].attributes if "oracle" in loaded else ()
    started = time.perf_counter()
    with torch.inference_mode():
        pairs = Pairs(
            asked.images,
            answers.counterfactual,
            asked.source.cpu(),
            asked.target.cpu(),
            ids=[str(row) for row in range(len(queries)) for _ in range(given)],
            networks={name: loaded[name] for name in names}
            | {figure: view(figure, name, loaded[name]) for figure, name in looks.items()},
            settings=settings,
            causal=causal_columns(attributes, settings["causal"]),
            query=query_column(attributes, settings),
            size=settings["batch"],
        )
        for metric in measured(available(specs, settings)):
            if metric.function:
                function(metric.function)(pairs)
    return time.perf_counter() - started


def _mixture_seconds(
    config: RunConfig, loaded: Mapping[str, Any], queries: ImageQueries, answers: ImageAnswers
) -> float:
    """Return the seconds for the interventions on a batch's answers; 0 where the oracle was not
    loaded.
    """
    settings = config.interventions
    if not settings.enabled or ("oracle" in config.models and "oracle" not in loaded):
        return 0.0
    asked = queries.repeated(len(answers.counterfactual) // len(queries))
    parts = Cells(asked.images, answers.counterfactual, settings.grid)
    started = time.perf_counter()
    # the two ends, and a core's search, which asks the classifier alone
    mixtures = settings.mixtures + 2 + (len(all_coalitions(3)) if settings.kinds else 0) + CORE
    on = draw_switches(asked.seed, mixtures, parts.count)
    experiment.Answers(
        loaded["classifier"], asked.target, loaded.get("oracle"), settings.batch
    ).each(parts, on)
    return time.perf_counter() - started


def _picture_seconds(answers: ImageAnswers) -> float:
    """Return the seconds for encoding and decoding a batch's images and as many originals."""
    pixels = (answers.counterfactual.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    started = time.perf_counter()
    for image in pixels:
        decode(encode(image), size=(width, height), crop=None, max_pixels=height * width)
    return 2 * (time.perf_counter() - started)


@cache
def import_seconds() -> float:
    """Return the seconds for starting Python with a worker's imports, in a separate process."""
    started = time.perf_counter()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    subprocess.run(
        [sys.executable, "-c", "import actors.generate"],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        capture_output=True,
    )
    return time.perf_counter() - started


def format_duration(seconds: float) -> str:
    """Return seconds as text: `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if unit != "min" else f"{seconds / size:.0f} min"
    return f"{seconds:.0f} s"
