"""The doctor's checks of the networks that metrics use, and of which metric uses which network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from configs.schema import RunConfig
from counterfactory.models.networks import ROLE, WANTED, figure_name, network_of
from pipelines.doctor.classifier import find_unsteady
from pipelines.doctor.finding import Finding, ok, problem, warning

TRIED = 4  # images: a large network takes a second for each
HINTS = {
    "features": "inception, or efficientnet-lite0",
    "perceptual": "lpips-alex, or stlpips",
    "simsiam": "simsiam-resnet50 with its checkpoint; faces-simsiam for drawn faces",
    "faces": "sface",
    "oracle": "a model of attributes",
    "encoder": "an autoencoder or AttGAN to read the latents with, unless the run has one",
}


def check_metrics(config: RunConfig) -> Iterator[Finding]:
    """Report the network of each figure, and the figures that are skipped because they have
    none.
    """
    models = {name: spec.model_dump() for name, spec in config.models.items()}
    through: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for metric in WANTED:
        name = network_of(metric, models)
        if name is not None:
            through.setdefault(name, []).append(figure_name(metric, models))
        else:
            missing.setdefault(WANTED[metric][0], []).append(metric)
    for name, figures in through.items():
        yield ok("metrics", f"{', '.join(figures)} through models.{name}")
    for name, metrics in missing.items():
        yield ok("metrics", f"{', '.join(metrics)} left out: no models.{name} ({HINTS[name]})")


@torch.no_grad()
def check_networks(loaded: Mapping[str, Any], images: Tensor) -> Iterator[Finding]:
    """Check feature networks, perceptual distances and face embedders on a few sampled images."""
    images = images[:TRIED]
    for name in ROLE:
        if name not in loaded:
            continue
        about, model = f"models.{name}", loaded[name]
        try:
            device = next((t.device for t in model.buffers()), torch.device("cpu"))
            first, second = images.to(device), images.flip(0).to(device)
            output = model(first, second) if name == "perceptual" else model(first)
        except Exception as error:  # a foreign network may raise anything
            yield problem(
                about, f"fails on images of {images.shape[-1]} px: {type(error).__name__}: {error}"
            )
            continue
        wants, side = getattr(model, "size", None) or 0, images.shape[-1]
        enlarged = f", images of {side} px enlarged to {wants}" if wants > side else ""
        if not bool(output.isfinite().all()):
            yield problem(about, "gives NaN or infinity on the sampled images")
        elif name == "perceptual":
            zero, far = float(model(first, first).abs().max()), float(output.mean())
            text = (
                f"distance {far:.3f} between images of the sample, {zero:.1g} from an image to"
                f" itself{enlarged}"
            )
            sound = zero < 1e-4 and (far > zero or len(images) < 2)
            yield ok(about, text) if sound else warning(about, text, "is this a distance?")
        else:
            large = float(output.abs().max()) or 1.0
            yield from find_unsteady(about, partial(_share_of, large, model), first)
            spread = float(output.float().std(0, correction=0).mean())
            text = f"{output.shape[1]} features{enlarged}"
            same = len(images) > 1 and spread == 0
            yield (
                warning(about, f"{text}, the same for every image", "weights?")
                if same
                else ok(about, text)
            )


def _share_of(large: float, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return features as shares of the largest one."""
    return model(images) / large
