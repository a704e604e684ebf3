"""The doctor's checks of the method: its settings, needs and target, and a timed call on a few
rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from actors.modality import Picture, modality_of
from actors.pinned.black_box import black_boxes
from actors.pinned.load import load_method, method_models
from actors.pinned.shape import in_shape, shape_of
from actors.rows.targets import BadTarget, choose_target
from configs.schema import RunConfig
from configs.strict import UserError, nearest
from counterfactory.methods.contract import Queries
from pipelines.doctor.classifier import in_batches
from pipelines.doctor.data import Sample
from pipelines.doctor.duration import measure, promise
from pipelines.doctor.finding import Finding, ok, one_line, problem, warning
from pipelines.generate.checks import expect_access

TRIED = 6  # rows of the timed call; more than the smallest number that networks compute


def check_method(
    config: RunConfig,
    loaded: Mapping[str, Any],
    classes: Sequence[str],
    sample: Sample | None,
    workers: int,
    loads: float,
) -> Iterator[Finding]:
    """Check settings, needs and target, then try the method on a few sampled rows.

    Reports an estimate of the whole run's time. loads: the seconds that loading the models took.
    """
    try:
        method = load_method(config.model_dump())
    except UserError as error:
        yield problem("method", str(error))
        return
    try:
        expect_access(config, method)
    except UserError as error:
        yield problem("method", str(error).removeprefix("method: "))
        return
    needs = method_models(method)
    missing = [name for name in needs if name not in config.models]
    if getattr(method, "needs_masks", False) and config.data.mask is None:
        text = (
            f"expected the column of segmentation masks, which {config.method.target} needs, got"
            " none"
        )
        yield problem("data.mask", text, "name it, or choose another method")
        return
    for name in missing:
        text = f"{config.method.target} needs models.{name}, got {', '.join(config.models)}"
        yield problem("method", text, f"add models.{name}")
    wrong = list(_target(config, classes)) if classes else []
    yield from wrong
    if (
        missing
        or wrong
        or sample is None
        or not sample.records
        or any(name not in loaded for name in needs)
    ):
        return
    queries, reasons = _queries(config, loaded["classifier"], sample, TRIED)
    if queries is None:
        yield warning(
            "method", f"none of {len(reasons)} rows could be tried: {one_line(reasons[0])}"
        )
        return
    device = next((p.device for p in loaded["classifier"].parameters()), torch.device("cpu"))
    plain, shape = config.model_dump(), shape_of(config.engine, device)
    used = in_shape({name: loaded[name] for name in needs}, plain["models"], shape)
    call = partial(_call, config, method, used)
    try:
        started = time.perf_counter()
        answers = call(queries)
        flipped = int(answers.flipped.sum())
        seconds = time.perf_counter() - started
    except Exception as error:
        yield problem(
            "method", f"fails on {len(queries)} sampled rows: {type(error).__name__}: {error}"
        )
        return
    given, rest = divmod(len(answers.counterfactual), len(queries))
    if rest or not given:
        got = f"gives {len(answers.counterfactual)} answers to {len(queries)} rows"
        yield problem("method", got, "it must give each row as many")
        return
    what = (
        "sampled rows"
        if given == 1
        else f"answers, {given} to each of {len(queries)} sampled rows,"
    )
    tried = f"{flipped} of {len(answers.counterfactual)} {what} flipped in {seconds:.1f} s"
    why = next((reason for reason in answers.reasons if reason), None)
    stuck = warning("method", f"{tried}: {why}", "more steps, another rate, another method?")
    yield ok("method", tried) if flipped else stuck
    if black_boxes(config):
        mean = float(answers.forward.float().mean()) * given + 1 + given
        text = f"up to {mean:.0f} queries a row, {mean * sample.rows:,.0f} for {sample.rows:,} rows"
        yield ok("method", f"{text}, before scores and interventions")
    if len(queries) > 1:
        yield from _stands_alone(call, queries, answers, given)
    try:
        costs = measure(
            config,
            loaded,
            loads,
            lambda rows: _queries(config, loaded["classifier"], sample, rows)[0],
            call,
            (queries, answers, seconds),
        )
    except Exception as error:  # such as a batch larger than the memory, or a foreign network
        yield warning(
            "time",
            f"not estimated: {type(error).__name__}: {error}",
            "try run --limit 5 and time it",
        )
        return
    promised = promise(config, sample.rows, given, workers, costs)
    text = f"about {promised.whole} for {sample.rows:,} rows on {_workers(workers)}: {promised}"
    yield ok("time", f"{text}; {costs.row:.2f} s a row to generate")


def _stands_alone(
    call: Callable[[Any], Any], queries: Any, answers: Any, given: int
) -> Iterator[Finding]:
    """Check that the first row's answers are the same bytes without the other rows."""
    try:
        alone = call(queries.chosen(torch.zeros_like(queries.source[:1])))
    except Exception as error:  # a foreign method may take no single row
        got = one_line(f"{type(error).__name__}: {error}")
        yield problem(
            "method",
            f"fails on a row alone: {got}",
            "a worker calls it so for the last row of a shard, and after another row failed",
        )
        return
    if not torch.equal(alone.counterfactual, answers.counterfactual[:given]):
        yield warning(
            "engine.shape",
            "a row's answer depends on the rows beside it: the networks round differently for"
            " other numbers of rows",
            "set engine.shape=16, or another number",
        )


def _call(config: RunConfig, method: Any, models: Mapping[str, Any], queries: Queries) -> Any:
    answers = method(queries, **models)
    if not config.method.core:
        return answers
    return modality_of(config.data).with_cores(answers, queries, models["classifier"])


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _target(config: RunConfig, classes: Sequence[str]) -> Iterator[Finding]:
    target = config.target
    if target.rule == "opposite" and len(classes) != 2:
        yield problem(
            "target",
            f"expected 2 classes for the rule opposite, got {len(classes)}",
            "use runner-up, a name or a column",
        )
    if target.name is not None and target.name not in classes:
        yield problem(
            "target", f"expected a class, got {target.name!r}", nearest(target.name, classes)
        )


def _queries(
    config: RunConfig, classifier: Any, sample: Sample, most: int
) -> tuple[Queries | None, list[str]]:
    """Return queries for the first rows that have a target, as a worker makes them."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    carried, mask, rule = sample.records[:most], config.data.mask, config.target
    probabilities = in_batches(classifier, sample.tensor()[:most]).softmax(1)
    targets, reasons = {}, []
    for i, row in enumerate(probabilities):
        try:
            targets[i] = choose_target(rule, row, carried[i], classifier.classes)
        except BadTarget as reason:
            reasons.append(str(reason))
    if not targets:
        return None, reasons
    rows, wanted = list(targets), torch.tensor(list(targets.values()), device=device)
    contents = [Picture(sample.images[i], carried[i][mask] if mask else None) for i in rows]
    asked = modality_of(config.data).queries(
        contents,
        source=probabilities.argmax(1)[rows].to(device),
        target=wanted,
        seed=torch.arange(len(rows), device=device),
    )
    return asked, reasons
