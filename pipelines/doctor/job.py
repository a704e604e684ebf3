"""`counterfactory doctor CONFIG`: reports the problems of a run before it starts; writes no
file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from actors.pinned.black_box import Asked, begin_count
from actors.pinned.load import pick_device
from configs.schema import RunConfig
from configs.strict import UserError
from pipelines.ahead import faults
from pipelines.doctor.black_box import check_black_box
from pipelines.doctor.classifier import check_classifier
from pipelines.doctor.data import Sample, check_data, check_labels, check_names
from pipelines.doctor.finding import Finding, ok, problem, warning
from pipelines.doctor.machine import check_machine, workers
from pipelines.doctor.method import check_method
from pipelines.doctor.models import check_autoencoder, check_denoiser, check_oracle, load_each
from pipelines.doctor.networks import check_metrics, check_networks
from pipelines.doctor.together import check_together, label_index
from storage.codec import sides


def doctor(config: RunConfig) -> list[Finding]:
    """Return all findings about a run's data, models, method and machine, in that order."""
    try:
        device = pick_device(config.engine.device)
        torch.zeros(1, device=device)
    except (UserError, RuntimeError, AssertionError):
        # check_machine reports a GPU that is missing
        device = torch.device("cpu")
    if device.type == "cpu":
        # the same as in a worker, so that the timed call is like a worker's
        torch.set_num_threads(config.engine.threads)
    begin_count()
    oracle = config.models.get("oracle")
    found, sample = check_data(config, oracle.classes if oracle else [])
    started = time.perf_counter()
    more, loaded = load_each(config, device)
    loads = time.perf_counter() - started
    found += more
    classifier = loaded.get("classifier")
    classes = list(
        classifier.classes if classifier is not None else config.models["classifier"].classes
    )
    if sample is not None and classes:
        if config.data.label:
            found += check_labels(sample.facts[config.data.label], classes, "label")
            found += check_names(sample.schema, config.data.label, classes, "data.label")
        if config.target.column:
            found += check_labels(sample.facts[config.target.column], classes, "target")
            found += check_names(sample.schema, config.target.column, classes, "target.column")
    if sample is not None and len(sample.images):
        found += _check_models(config, loaded, sample)
        found += check_networks(loaded, sample.tensor())
    found += check_metrics(config)
    found += check_stages(config)
    if sample is not None and classes:
        found += check_together(config, sample, classes, loaded.get("oracle"))
    found += check_method(config, loaded, classes, sample, workers(config), loads)
    size = sum(
        t.numel() * t.element_size()
        for m in loaded.values()
        for t in [*m.parameters(), *m.buffers()]
    )
    return found + list(check_machine(config, sample.rows if sample else 0, size))


def check_stages(config: RunConfig) -> list[Finding]:
    """Report settings that would end a later stage; the attribution's models are checked above."""
    wrong = faults(config, ("interventions", "score", "judge", "augment"))
    return [problem(*str(error).split(": ", 1)) for error in wrong]


def _check_models(config: RunConfig, loaded: dict[str, Any], sample: Sample) -> Iterator[Finding]:
    """Check every loaded model on the sampled images."""
    images = sample.tensor()
    predicted: dict[str, torch.Tensor | None] = {}
    for name in ("classifier", "second"):
        if name in loaded:
            labels = [
                label_index(row.get(config.data.label or ""), loaded[name].classes)
                for row in sample.records
            ]
            found, predicted[name] = check_classifier(
                f"models.{name}", loaded[name], images, labels
            )
            yield from found
            if predicted[name] is None:
                del loaded[name]  # no further check can use it
                continue
            if isinstance(loaded[name], Asked):
                yield from check_black_box(config, name, loaded[name], images)
            wants, given = loaded[name].size, max(sides(config.data.size))
            if wants and wants > 2 * given:
                text = f"images of {given} px are enlarged to {wants}"
                yield warning(
                    f"models.{name}", text, "raise data.size, or take a network for small images"
                )
    first, second = predicted.get("classifier"), predicted.get("second")
    if first is not None and second is not None:
        if tuple(loaded["second"].classes) != tuple(loaded["classifier"].classes):
            got = ", ".join(loaded["second"].classes[:5])
            yield warning(
                "models.second", f"expected the classifier's classes in its order, got {got}"
            )
        yield ok(
            "models.second",
            f"agrees with the classifier on {float((first == second).float().mean()):.0%} of the"
            " sample",
        )
    if "oracle" in loaded:
        yield from check_oracle(loaded["oracle"], images, sample.records, config)
    elif config.score.causal and "oracle" not in config.models:
        yield warning("score.causal", "no oracle to measure attributes with", "add models.oracle")
    if "autoencoder" in loaded:
        yield from check_autoencoder(loaded["autoencoder"], images, loaded.get("classifier"), first)
    if "denoiser" in loaded:
        yield from check_denoiser(loaded["denoiser"], images)


def main(config: RunConfig) -> int:
    """Print every finding and their counts; return exit code 1 where one is a problem."""
    found = doctor(config)
    for finding in found:
        print(finding)
    problems = sum(f.level == "problem" for f in found)
    warnings = sum(f.level == "warning" for f in found)
    print(
        f"{problems} problems, {warnings} warnings" if problems or warnings else "no problem found"
    )
    return 1 if problems else 0
