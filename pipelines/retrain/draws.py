"""The batches of the arms: which rows and counterfactuals a training sees in a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from configs.retrain import MixConfig
from pipelines.retrain.inputs import Pairs, along
from pipelines.train.data import Samples
from pipelines.train.trainer import Batches, Draw, Drawn, mirrored


def mixed(pairs: Pairs, targets: Tensor, mix: MixConfig) -> Draw:
    """Return a draw whose batches hold a share of counterfactuals: images on the lines from
    originals to counterfactuals, with the labels `targets` (N,).

    Rows and pairs are each drawn in a random order, again and again.
    """

    def draw(
        config: Drawn,
        samples: Samples,
        labels: Tensor,
        generator: torch.Generator,
        device: torch.device,
    ) -> Batches:
        few = max(1, min(config.batch - 1, round(config.batch * mix.share)))
        low, high = mix.line
        rows = endless(len(samples), config.batch - few, generator)
        others = endless(len(pairs), few, generator)
        while True:
            mine, theirs = next(rows), next(others)
            t = low + (high - low) * torch.rand(few, 1, 1, 1, generator=generator)
            images = torch.cat([samples.images[mine].float() / 255, along(pairs, theirs, t)])
            images = images.to(device)
            if config.flip:
                images = mirrored(images, generator)
            yield images, torch.cat([labels[mine], targets[theirs]]).to(device)

    return draw


def weighted(weights: Tensor) -> Draw:
    """Return a draw of rows with replacement, each as often as its weight (N,) says."""

    def draw(
        config: Drawn,
        samples: Samples,
        labels: Tensor,
        generator: torch.Generator,
        device: torch.device,
    ) -> Batches:
        sums = weights.double().cumsum(0)
        while True:
            points = torch.rand(config.batch, generator=generator, dtype=torch.float64) * sums[-1]
            rows = torch.searchsorted(sums, points, right=True).clamp(max=len(sums) - 1)
            images = samples.images[rows].to(device).float() / 255
            if config.flip:
                images = mirrored(images, generator)
            yield images, labels[rows].to(device)

    return draw


def group_weights(groups: Tensor) -> Tensor:
    """Return the weights (N,) with which all groups are drawn equally often; groups: (N,)."""
    return 1.0 / torch.bincount(groups).double()[groups]


def endless(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `size` places below `count`, in a random order, again and again."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        rows, order = order[:size], order[size:]
        yield rows
