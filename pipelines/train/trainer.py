"""How a network is trained, measured and described: what a role's trainer may do its own way."""

from __future__ import annotations

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

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
say: Log = partial(print, flush=True)


class Trainer(ABC):
    """The training of one network; a role's own trainer overrides what differs.

    names: which of the config's lists names the model's outputs, None for none; normalised: whether
    the network takes images in [-1,1]; sized: whether the model's config says the images' side.
    """

    names: ClassVar[str | None] = None
    normalised: ClassVar[bool] = False
    sized: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, device: torch.device, log: Log = say) -> None:
        self.config, self.device, self.log = config, device, log

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights of the loss's terms; UserError on an unknown term."""
        return weights_of(self.config.role, self.config.objective)

    def columns(self) -> list[str]:
        """The columns that training reads beside the image, after a check of the settings."""
        return self.config.labels

    def targets(self, samples: Samples) -> Tensor:
        """Labels as the loss wants them; here bits (N,A)."""
        return bits(samples, self.config.labels)

    def derived(self) -> dict[str, Any]:
        """Settings of the network that follow from the config, where it takes them."""
        return self.side()

    def side(self) -> dict[str, int]:
        """The images' side, where they are square: a network's own size is a square's."""
        size = self.config.data.size
        return {"size": size} if isinstance(size, int) else {}

    def specification(self) -> dict[str, Any]:
        """The model config of what is being trained."""
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
        """The network's settings, with what the rows say of them: called once, before it is
        made.
        """
        return settings

    @abstractmethod
    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        """The training itself."""

    def finish(
        self, net: nn.Module, samples: Samples, spec: dict[str, Any], state: State
    ) -> tuple[dict[str, Any], State]:
        """The model config and the weights without what training alone needs."""
        return spec, state

    def held(self, columns: list[str]) -> Samples:
        """The holdout rows, with some columns."""
        assert self.config.holdout is not None
        return load(self.config.holdout, columns, self.log, held=True)

    @abstractmethod
    def holdout(self, model: Any) -> dict[str, Any]:
        """The model's figures on the holdout rows, which are logged."""

    def logged(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The figures, after a line in the log."""
        self.log(f"{self.config.name}: holdout {figures}")
        return figures


class LossTrainer(Trainer):
    """A trainer that goes down a loss by AdamW, on batches of images and labels."""

    @abstractmethod
    def loss(self, net: nn.Module) -> Loss:
        """The loss as a function of (images, labels, generator)."""

    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        """The loop: AdamW, warm-up and cosine decay, clipped gradients.

        Every tenth of the way the weights so far are written to `out`.part, so that a long training
        can be looked at and a broken one used; `out` itself is whole or as it was.
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
        order = torch.empty(0, dtype=torch.int64)
        started, total, line = time.monotonic(), 0.0, ""
        for step in range(1, config.steps + 1):
            if len(order) < config.batch:
                order = torch.cat([order, torch.randperm(len(samples), generator=generator)])
            rows, order = order[: config.batch], order[config.batch :]
            images = samples.images[rows].to(device).float() / 255
            if config.flip:
                mirrored = torch.rand(len(images), 1, 1, 1, generator=generator).to(device) < 0.5
                images = torch.where(mirrored, images.flip(3), images)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * pace(step, config.steps)
            with autocast:
                value = loss_of(
                    images.contiguous(memory_format=form),
                    labels[rows].to(device),
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


def expect_label(config: TrainConfig) -> list[str]:
    """`data.label`, the column to learn; UserError where it or the names in `classes` are
    missing.
    """
    if config.data.label is None:
        raise UserError(f"{config.name}: expected data.label, the column to learn, got none")
    if len(config.classes) < 2:
        raise UserError(
            f"{config.name}: expected at least 2 names in classes, got {config.classes}"
        )
    return [config.data.label]


def expect_labels(config: TrainConfig) -> list[str]:
    """`labels`, the columns to learn; UserError where there are none."""
    if not config.labels:
        raise UserError(f"{config.name}: expected labels, the columns to learn, got none")
    return config.labels


def indices(config: TrainConfig, samples: Samples, label: str) -> Tensor:
    """The class index (N,) that each row has in a column of labels."""
    return class_indices(samples.columns[label], config.classes, label)


def held_label(config: TrainConfig) -> str:
    """The column of the holdout rows that holds the label."""
    assert config.holdout is not None
    return config.holdout.label or config.data.label or ""


def part_of(out: Path) -> Path:
    """Where the weights of an unfinished training lie."""
    return out.with_name(f"{out.name}.part")


def pace(step: int, steps: int) -> float:
    """Part of the learning rate at a step: linear warm-up over the first 3 % (at most 200 steps),
    then cosine to 2 %."""
    warm = max(1, min(200, steps * 3 // 100))
    return min(1.0, step / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
