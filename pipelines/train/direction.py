"""Fits the ways between classes in an autoencoder's latent space, from a classifier's answers."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.pinned.load import load_models
from configs.strict import UserError
from counterfactory.models.attribution import sample_of
from counterfactory.models.direction import Directions
from counterfactory.models.wrapping.load import find
from pipelines.train.data import Samples
from pipelines.train.holdout import batches
from pipelines.train.trainer import Fitted, Trainer
from storage.codec import sides

Floats = NDArray[np.float64]
STRENGTHS = np.logspace(0, 5, 11)  # of the ridge; the one with the least leave-one-out error
LEAST = 1e-7  # of a probability whose logarithm is fitted


class DirectionTrainer(Trainer):
    """Trainer that asks the classifier once about `steps` rows and fits linear scores of its
    classes on whitened latents.

    Where the answers are probabilities, a ridge regression of the log-probabilities; the way from
    a to b is that of the log-odds of b against a. Where they are labels (all 0 or 1), a logistic
    regression. Latents of all rows are whitened, since they cost no query. UserError where one of
    the two models is missing, or where all rows have one class.
    """

    names, sized = "classes", False
    classifier: Any
    autoencoder: Any
    latents: Tensor

    def columns(self) -> list[str]:
        config = self.config
        kind = find(config.target)
        if not (isinstance(kind, type) and issubclass(kind, Directions)):
            raise UserError(
                f"{config.name}: expected target counterfactory.models.direction.Directions, got"
                f" {config.target}"
            )
        both = load_models(config.model_dump(), ["classifier", "autoencoder"], self.device)
        self.classifier, self.autoencoder = both["classifier"], both["autoencoder"]
        if list(self.classifier.classes) != config.classes:
            raise UserError(
                f"{config.name}: expected classes as the classifier has them,"
                f" {', '.join(self.classifier.classes)}, got {', '.join(config.classes) or 'none'}"
            )
        return []

    def targets(self, samples: Samples) -> Tensor:
        return torch.zeros(len(samples), 0)

    @torch.no_grad()
    def prepare(self, samples: Samples, labels: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        self.latents = self._latents(samples)
        size = {"latent": self.latents.shape[1], "classes": len(self.config.classes)}
        return settings | size

    @torch.no_grad()
    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        assert isinstance(net, Directions)
        config, started = self.config, time.monotonic()
        net.cpu().standardise(self.latents)
        width, height = sides(config.data.size)
        net.sample.copy_(net.normal(sample_of(self.autoencoder, (height, width), self.device))[0])
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randperm(len(samples), generator=generator)[: config.steps].sort().values
        told = self._answers(samples, rows)
        answers, counts = told.argmax(1), np.bincount(told.argmax(1), minlength=told.shape[1])
        if counts.max() == len(answers):
            raise UserError(
                f"{config.name}: expected rows of at least two predicted classes, got"
                f" {config.classes[int(counts.argmax())]} for all {len(answers)}"
            )
        u = net.normal(self.latents[rows]).double().numpy()
        weight, bias = fit_labels(u, answers, told.shape[1]) if hard(told) else fit_scores(u, told)
        net.weight.copy_(torch.from_numpy(weight))
        net.bias.copy_(torch.from_numpy(bias))
        how = "labels" if hard(told) else "probabilities"
        line = f"{len(rows)} queries for {how} on latents of {u.shape[1]}"
        self.log(f"{config.name}: {line}")
        return net.state_dict(), line, time.monotonic() - started

    @torch.no_grad()
    def holdout(self, model: Any) -> dict[str, Any]:
        """Return how well the linear scores agree with the classifier on holdout rows: share of the
        same class, and R2 of the log-odds of the last class against the first.
        """
        samples = self.held([])
        rows = torch.arange(len(samples))
        told = np.log(np.clip(self._answers(samples, rows), LEAST, None))
        scores = model.network.cpu()(self._latents(samples)).double().numpy()
        wanted, found = (part[:, -1] - part[:, 0] for part in (told, scores))
        spread = float(wanted.var())
        error = float(((wanted - found) ** 2).mean())
        return self.logged(
            {
                "rows": len(rows),
                "same_class": round(float((told.argmax(1) == scores.argmax(1)).mean()), 4),
                "r2_log_odds": round(1 - error / spread, 4) if spread > 0 else None,
            }
        )

    def _latents(self, samples: Samples) -> Tensor:
        """Return the latents (N,L) on the CPU."""
        found = [self.autoencoder.encode(images) for _, images in batches(samples, self.device)]
        return torch.cat([latents.flatten(1).float().cpu() for latents in found])

    def _answers(self, samples: Samples, rows: Tensor) -> Floats:
        """Return the classifier's probabilities (n,K) of some rows."""
        parts = [
            self.classifier(samples.images[part].to(self.device).float() / 255).softmax(1).cpu()
            for part in torch.split(rows, self.config.batch)
        ]
        found: Floats = torch.cat(parts).double().numpy()
        if not np.isfinite(found).all():
            raise UserError(f"{self.config.name}: expected finite answers of the classifier")
        return found


def hard(answers: Floats) -> bool:
    """Return whether answers (N,K) are labels alone: each 0 or 1."""
    return bool((np.minimum(answers, 1 - answers) < LEAST).all())


def fit_scores(u: Floats, answers: Floats) -> tuple[Floats, Floats]:
    """Return weights (K,L) and biases (K,) of a ridge regression of log-probabilities.

    u: (N,L) whitened latents. answers: (N,K) probabilities. One strength for all classes, so that
    the difference of two classes' weights is the ridge regression of their log-odds.
    """
    from sklearn.linear_model import RidgeCV

    made = RidgeCV(alphas=STRENGTHS).fit(u, np.log(np.clip(answers, LEAST, None)))
    return np.asarray(made.coef_), np.asarray(made.intercept_)


def fit_labels(u: Floats, labels: NDArray[np.int64], classes: int) -> tuple[Floats, Floats]:
    """Return weights (K,L) and biases (K,) of a logistic regression of labels (N,) int64.

    A class without a row has the weights 0, and a bias below all others.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = LogisticRegression(C=1 / math.sqrt(u.shape[1]), max_iter=1000).fit(u, labels)
    weight, bias = np.zeros((classes, u.shape[1])), np.full(classes, -1e3)
    if len(made.classes_) == 2:  # one row of coefficients, of the second class
        low, high = made.classes_
        weight[low], weight[high] = -made.coef_[0] / 2, made.coef_[0] / 2
        bias[low], bias[high] = -made.intercept_[0] / 2, made.intercept_[0] / 2
    else:
        weight[made.classes_], bias[made.classes_] = made.coef_, made.intercept_
    return weight, bias
