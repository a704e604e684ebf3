"""The trainers of classifiers, attribute models, autoencoders and denoisers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from configs.strict import UserError
from counterfactory.models.wrapping.load import schedule_of
from pipelines.train import holdout, losses
from pipelines.train.data import Samples, bits
from pipelines.train.trainer import (
    Loss,
    LossTrainer,
    expect_label,
    expect_labels,
    held_label,
    indices,
)


class ClassifierTrainer(LossTrainer):
    """Trainer of classifiers: cross-entropy on the label."""

    names, normalised = "classes", True

    def columns(self) -> list[str]:
        return expect_label(self.config)

    def targets(self, samples: Samples) -> Tensor:
        return indices(self.config, samples, str(self.config.data.label))

    def derived(self) -> dict[str, Any]:
        return {"outputs": len(self.config.classes)}

    def loss(self, net: nn.Module) -> Loss:
        return lambda images, labels, g: losses.classifier(net, images, labels, self.weights, g)

    def holdout(self, model: Any) -> dict[str, Any]:
        assert self.config.holdout is not None
        label, groups = held_label(self.config), self.config.holdout.columns
        samples = self.held([label, *groups])
        truth = indices(self.config, samples, label)
        return self.logged(holdout.classifier(model, samples, truth, groups, self.device))


class AttributesTrainer(LossTrainer):
    """Trainer of attribute models: binary cross-entropy on every column in `labels`."""

    names, normalised = "labels", True

    def columns(self) -> list[str]:
        return expect_labels(self.config)

    def derived(self) -> dict[str, Any]:
        return {"outputs": len(self.config.labels)}

    def loss(self, net: nn.Module) -> Loss:
        return lambda images, labels, g: losses.attributes(net, images, labels, self.weights, g)

    def holdout(self, model: Any) -> dict[str, Any]:
        samples = self.held(self.config.labels)
        truth = bits(samples, self.config.labels)
        return self.logged(holdout.attributes(model, samples, truth, self.device))


class AutoencoderTrainer(LossTrainer):
    """Trainer of autoencoders. With objective.attributes, a linear head must also predict the
    columns in `labels` from the latents.
    """

    def derived(self) -> dict[str, Any]:
        told = {"attributes": len(self.config.labels)}
        return self.side() | (told if self.config.objective.get("attributes") else {})

    def loss(self, net: nn.Module) -> Loss:
        expect_attributes(self)
        return lambda images, labels, g: losses.autoencoder(net, images, labels, self.weights, g)

    def holdout(self, model: Any) -> dict[str, Any]:
        return self.logged(holdout.autoencoder(model, self.held([]), self.device))


class DenoiserTrainer(LossTrainer):
    """Trainer of denoisers: the noise in a noised image."""

    sized = False

    def loss(self, net: nn.Module) -> Loss:
        bar, prediction = schedule_of(self.specification()["settings"])
        bar = bar.to(self.device)
        return lambda images, _, g: losses.denoiser(net, images, bar, prediction, self.weights, g)

    def holdout(self, model: Any) -> dict[str, Any]:
        return self.logged(holdout.denoiser(model, self.held([]), self.device))


def expect_attributes(trainer: LossTrainer) -> None:
    """Raise UserError where attributes have a weight in the loss but `labels` is empty."""
    if trainer.weights["attributes"] and not trainer.config.labels:
        raise UserError("objective.attributes: expected `labels`, the columns to learn, got none")
