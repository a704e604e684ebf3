"""The base classes of trainers: how a network is trained, measured and described. A role's trainer
overrides parts of them.
"""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.roles import ROLES
from counterfactory.models.wrapping.load import find
from counterfactory.models.wrapping.wrap import channels_last, is_ours
from pipelines.train import card
from pipelines.train.data import Samples, bits, class_indices, load
from pipelines.train.losses import weights_of

Log = Callable[[str], None]
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
State = dict[str, Tensor]
Fitted = tuple[State, str, float]
"""The weights to keep, the last log line and the seconds."""
Batches = Iterator[tuple[Tensor, Tensor]]


class Drawn(Protocol):
    """The settings that a draw of batches reads."""

    @property
    def batch(self) -> int:
        """Return the number of rows in a batch."""

    @property
    def flip(self) -> bool:
        """Return whether images are mirrored at random."""


Draw = Callable[[Drawn, Samples, Tensor, torch.Generator, torch.device], Batches]
"""The batches of a training without end: images (B,3,S,S) in [0,1] and their labels."""
say: Log = partial(print, flush=True)


class Trainer(ABC):
    """The training of one network; a role's own trainer overrides what differs.

    names: the config's list that holds the names of the model's outputs, None for no names;
    normalised: whether the network takes images in [-1,1]; sized: whether the model's config has
    the images' side.
    """

    names: ClassVar[str | None] = None
    normalised: ClassVar[bool] = False
    sized: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, device: torch.device, log: Log = say) -> None:
        self.config, self.device, self.log = config, device, log

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights of the loss's terms; UserError for an unknown term."""
        return weights_of(self.config.role, self.config.objective)

    def columns(self) -> list[str]:
        """Check the settings and return the columns that training reads besides the image."""
        return self.config.labels

    def targets(self, samples: Samples) -> Tensor:
        """Return labels in the form that the loss needs; here bits (N,A)."""
        return bits(samples, self.config.labels)

    def derived(self) -> dict[str, Any]:
        """Return settings of the network that follow from the config; those that it does not take
        are ignored.
        """
        return self.side()

    def side(self) -> dict[str, int]:
        """Return the images' side as `size` where they are square, else {}: a network's own size is
        a square's.
        """
        size = self.config.data.size
        return {"size": size} if isinstance(size, int) else {}

    def specification(self) -> dict[str, Any]:
        """Return the model config of the network in training."""
        config = self.config
        try:
            takes = inspect.signature(find(config.target)).parameters
        except ValueError as error:
            raise UserError(f"{config.name}: {error}") from None
        derived = {
            key: value
            for key, value in self.derived().items()
            if key in takes and key not in config.settings
        }
        spec: dict[str, Any] = {
            "role": ROLES[config.role].becomes or config.role,
            "source": "torch",
            "target": config.target,
            "settings": {**config.settings, **derived},
            "weights": Path(config.out).name,
        }
        if self.names:
            spec["classes"] = list(getattr(config, self.names))
        if self.normalised:
            spec |= {"mean": [0.5], "std": [0.5]}
        return spec | (self.side() if self.sized else {})

    def prepare(self, samples: Samples, labels: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the network's settings, with those that the rows determine. Called once, before
        the network is made.
        """
        return settings

    @abstractmethod
    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        """Train the network; return the weights to store, the last log line and the seconds."""

    def finish(
        self, net: nn.Module, samples: Samples, spec: dict[str, Any], state: State
    ) -> tuple[dict[str, Any], State]:
        """Return the model config and the weights without the parts that only training needs."""
        return spec, state

    def held(self, columns: list[str]) -> Samples:
        """Return the holdout rows, with these columns."""
        assert self.config.holdout is not None
        return load(self.config.holdout, columns, self.log, held=True)

    @abstractmethod
    def holdout(self, model: Any) -> dict[str, Any]:
        """Return and log the model's figures on the holdout rows."""

    def logged(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Log the figures and return them."""
        self.log(f"{self.config.name}: holdout {figures}")
        return figures


class LossTrainer(Trainer):
    """A trainer that minimises a loss by AdamW, on batches of images and labels.

    draw: makes the batches; another function may be set before `fit`.
    """

    def __init__(self, config: TrainConfig, device: torch.device, log: Log = say) -> None:
        super().__init__(config, device, log)
        self.draw: Draw = shuffled

    @abstractmethod
    def loss(self, net: nn.Module) -> Loss:
        """Return the loss as a function of (images, labels, generator)."""

    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        """Train by AdamW with warm-up, cosine decay and clipped gradients.

        After every tenth of the steps, writes the current weights to `out`.part. So they can be
        inspected during a long training, or used after a failed one. `out` itself is never
        incomplete.
        """
        config, log, device = self.config, self.log, self.device
        net.train()
        channels_last(net)
        form = torch.channels_last if is_ours(net) else torch.contiguous_format
        loss_of = self.loss(net)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        average = card.Average(net, config.ema) if config.ema else None
        generator = torch.Generator().manual_seed(config.seed)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
        batches = self.draw(config, samples, labels, generator, device)
        started, total, line = time.monotonic(), 0.0, ""
        for step in range(1, config.steps + 1):
            images, targets = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * pace(step, config.steps)
            with autocast:
                value = loss_of(
                    images.contiguous(memory_format=form),
                    targets,
                    generator,
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            if average is not None:
                average.update(net)
            total += float(value.detach())
            if step % config.log_every == 0 or step == config.steps:
                if not math.isfinite(total):
                    raise UserError(
                        f"{config.name}: expected a finite loss, got {total} by step {step}: try a"
                        " smaller lr"
                    )
                count = (step - 1) % config.log_every + 1
                speed = step / (time.monotonic() - started)
                left = (config.steps - step) / speed
                line = (
                    f"step {step}/{config.steps} loss {total / count:.5f} {speed:.2f} steps/s ETA"
                    f" {left:.0f} s"
                )
                log(f"{config.name}: {line}")
                total = 0.0
            if step % max(1, config.steps // 10) == 0 and step < config.steps:
                card.write(
                    part_of(Path(config.out)),
                    card.half(average.state if average else net.state_dict()),
                )
        state = average.state if average else net.state_dict()
        return state, line.split(" steps/s")[0].rsplit(" ", 1)[0], time.monotonic() - started


def shuffled(
    config: Drawn,
    samples: Samples,
    labels: Tensor,
    generator: torch.Generator,
    device: torch.device,
) -> Batches:
    """Yield all rows in a random order, again and again, mirrored at random with `flip`."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        if len(order) < config.batch:
            order = torch.cat([order, torch.randperm(len(samples), generator=generator)])
        rows, order = order[: config.batch], order[config.batch :]
        images = samples.images[rows].to(device).float() / 255
        if config.flip:
            images = mirrored(images, generator)
        yield images, labels[rows].to(device)


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (B,3,H,W), a random half of them mirrored left to right."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


def expect_label(config: TrainConfig) -> list[str]:
    """Return `data.label`, the column to learn, in a list; UserError where it or the names in
    `classes` are missing.
    """
    if config.data.label is None:
        raise UserError(f"{config.name}: expected data.label, the column to learn, got none")
    if len(config.classes) < 2:
        raise UserError(
            f"{config.name}: expected at least 2 names in classes, got {config.classes}"
        )
    return [config.data.label]


def expect_labels(config: TrainConfig) -> list[str]:
    """Return `labels`, the columns to learn; UserError where there are none."""
    if not config.labels:
        raise UserError(f"{config.name}: expected labels, the columns to learn, got none")
    return config.labels


def indices(config: TrainConfig, samples: Samples, label: str) -> Tensor:
    """Return the class index (N,) of each row from a column of labels."""
    return class_indices(samples.columns[label], config.classes, label)


def held_label(config: TrainConfig) -> str:
    """Return the column of the holdout rows that holds the label."""
    assert config.holdout is not None
    return config.holdout.label or config.data.label or ""


def part_of(out: Path) -> Path:
    """Return the path of the weights of an unfinished training."""
    return out.with_name(f"{out.name}.part")


def pace(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: linear warm-up over the first 3 % of the
    steps (at most 200), then cosine to 2 %.
    """
    warm = max(1, min(200, steps * 3 // 100))
    return min(1.0, step / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
