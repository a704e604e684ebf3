"""Fits attribution's predictors: encodes labelled images to latents, then fits a light predictor
per column.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.pinned.load import load_models
from configs.schema import ImageData, TrainConfig
from configs.strict import UserError
from counterfactory.models.attribution import AttributionWrapper, Descriptors, sample_of
from counterfactory.models.roles import roles_of
from counterfactory.models.wrapping.load import find
from pipelines.train.data import Samples, load
from pipelines.train.holdout import batches
from pipelines.train.losses import weights_of
from pipelines.train.trainer import Fitted, Trainer, expect_labels
from storage.codec import sides

Log = Callable[[str], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Descriptors of the rows, (N,D): flags as 0 and 1, others in standard deviations from their
    mean.

    mean, std: (D,), 0 and 1 for flags.
    """

    values: Floats
    continuous: tuple[int, ...]
    mean: Floats
    std: Floats


@dataclass(frozen=True)
class Encoded:
    """Latents (N,L) and descriptors, of the rows to fit on and of the holdout rows.

    sample: latents of the known picture.
    """

    codes: Tensor
    columns: Columns
    held: Tensor
    held_columns: Columns
    sample: Tensor


def encoder_of(config: TrainConfig, device: torch.device) -> Any:
    """Return the encoder, loaded and tested before any image is read; UserError where the settings
    cannot work.
    """
    kind = find(config.target)
    if not (isinstance(kind, type) and issubclass(kind, Descriptors)):
        raise UserError(
            f"{config.name}: expected target counterfactory.models.attribution.Descriptors, got"
            f" {config.target}"
        )
    if config.holdout is None:
        raise UserError(
            f"{config.name}: expected holdout, rows to measure the predictors on, got none"
        )
    if twice := next((name for name in config.labels if config.labels.count(name) > 1), None):
        raise UserError(f"{config.name}: expected each column once in labels, got {twice} twice")
    weights_of(config.role, config.objective)
    role, fit = config.models["autoencoder"].role, roles_of("encoder")
    if role not in fit:
        raise UserError(f"models.autoencoder: expected the role {' or '.join(fit)}, got {role}")
    encoder = load_models(config.model_dump(), ["autoencoder"], device)["autoencoder"]
    for data, key in ((config.data, "data"), (config.holdout, "holdout")):
        try:
            sample_of(encoder, size_of(data), device)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{key}.size: {' '.join(str(error).split())}") from None
    return encoder


def encoded(
    config: TrainConfig, encoder: Any, samples: Samples, settings: dict[str, Any], log: Log
) -> Encoded:
    """Encode every row once; also write what the data determine of the network into `settings`.

    UserError where a column is missing, holds no numbers, or has the same value in every row.
    """
    assert config.holdout is not None  # encoder_of has checked it
    columns = columns_of(samples, config.labels, config.data.path)
    others = load(config.holdout, config.labels, log, held=True)
    held = columns_of(others, config.labels, config.holdout.path, columns)
    device = next(encoder.parameters()).device
    sample = sample_of(encoder, size_of(config.data), device).cpu().flatten(1)
    settings |= {"latent": sample.shape[1], "descriptors": len(config.labels)}
    if columns.continuous:
        settings["continuous"] = list(columns.continuous)
    return Encoded(
        codes_of(encoder, samples, device), columns, codes_of(encoder, others, device), held, sample
    )


class AttributionTrainer(Trainer):
    """Predictors of columns, fitted on an encoder's latents of all rows."""

    names, sized = "labels", False
    encoder: Any
    encoded: Encoded

    def columns(self) -> list[str]:
        columns = expect_labels(self.config)
        self.encoder = encoder_of(self.config, self.device)
        return columns

    def targets(self, samples: Samples) -> Tensor:
        """Return an empty tensor (N,0): the columns need not be bits."""
        return torch.zeros(len(samples), 0)

    def prepare(self, samples: Samples, labels: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
        self.encoded = encoded(self.config, self.encoder, samples, settings, self.log)
        return settings

    def fit(self, net: Any, samples: Samples, labels: Tensor) -> Fitted:
        return fit(self.config, net, self.encoded, self.log)

    def holdout(self, model: Any) -> dict[str, Any]:
        return holdout(model, self.encoded, self.log)


def columns_of(
    samples: Samples, names: Sequence[str], path: str, fitted: Columns | None = None
) -> Columns:
    """Return the descriptors of the rows; a column is binary where it holds only 0 and 1.

    fitted: descriptors of the rows to fit on, whose kinds, mean and std apply here. UserError where
    a value is not a finite number, where a column does not vary in the rows to fit on, or where a
    binary column has other values here.
    """
    given = []
    for name in names:
        column = samples.columns[name]
        odd = next(
            (v for v in column if not isinstance(v, bool | int | float) or not math.isfinite(v)),
            None,
        )
        if odd is not None:
            raise UserError(
                f"{name}: expected a column of booleans or numbers in {path}, got the value {odd!r}"
            )
        if fitted is None and len(set(column)) < 2:
            raise UserError(
                f"{name}: expected a column that varies over the {len(column)} rows, got"
                f" {column[0]!r} in all"
            )
        given.append([float(v) for v in column])
    values = np.array(given).T
    places = tuple(d for d in range(len(names)) if not np.isin(values[:, d], (0, 1)).all())
    if fitted is None:
        mean, std = np.zeros(len(names)), np.ones(len(names))
        for d in places:
            mean[d], std[d] = values[:, d].mean(), values[:, d].std()
        fitted = Columns(values, places, mean, std)
    elif other := set(places) - set(fitted.continuous):
        raise UserError(
            f"{names[other.pop()]}: expected 0 and 1 in {path}, as in the rows to fit on, got other"
            " values"
        )
    return Columns((values - fitted.mean) / fitted.std, fitted.continuous, fitted.mean, fitted.std)


@torch.no_grad()
def codes_of(encoder: Any, samples: Samples, device: torch.device) -> Tensor:
    """Return the latents (N,L) on the CPU."""
    return torch.cat(
        [encoder.encode(images).flatten(1).float().cpu() for _, images in batches(samples, device)]
    )


def fit(
    config: TrainConfig, net: Descriptors, of: Encoded, log: Log
) -> tuple[dict[str, Tensor], str, float]:
    """Fit a logistic regression per binary column and a ridge regression per continuous one, on
    standardised latents.

    Returns the weights, the last log line and the seconds; the same rows result in the same
    weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    started, w = time.monotonic(), weights_of(config.role, config.objective)
    net.cpu().standardise(of.codes)
    net.sample.copy_(net.normal(of.sample)[0])
    z = net.normal(of.codes).double().numpy()
    steps = 0
    for place, name in enumerate(config.labels):
        values = of.columns.values[:, place]
        if place in net.continuous:
            made = Ridge(alpha=w["ridge"]).fit(z, values)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                made = LogisticRegression(C=w["c"], max_iter=config.steps).fit(z, values)
            steps = max(steps, int(made.n_iter_[0]))
            if made.n_iter_[0] >= config.steps:
                log(f"{config.name}: {name} has not converged in {config.steps} steps")
        net.weight[place] = torch.from_numpy(np.ravel(made.coef_))
        net.bias[place] = float(np.ravel(made.intercept_)[0])
    line = (
        f"{len(config.labels)} predictors on {len(z):,} latents of {z.shape[1]}, {steps} of"
        f" {config.steps} steps"
    )
    log(f"{config.name}: {line}")
    return net.state_dict(), line, time.monotonic() - started


@torch.no_grad()
def holdout(model: AttributionWrapper, of: Encoded, log: Log) -> dict[str, Any]:
    """Return and log the holdout figures of each descriptor.

    Binary: accuracy, AUC and share of positives. Continuous: R2, and the standard deviation that is
    the unit of the importances.
    """
    network: Any = model.network.cpu()
    scores = network.scores(of.held).double().numpy()
    per: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(model.descriptors):
        truth, said = of.held_columns.values[:, place], scores[:, place]
        if place in network.continuous:
            per[name] = {
                "kind": "continuous",
                "r2": r2(truth, said),
                "unit": float(f"{of.columns.std[place]:.6g}"),
            }
        else:
            right, positive = (
                round(float(((said > 0) == (truth > 0.5)).mean()), 4),
                round(float(truth.mean()), 4),
            )
            per[name] = {
                "kind": "binary",
                "accuracy": right,
                "auc": auc(truth > 0.5, said),
                "positive": positive,
            }
        log(f"  {name:24s} " + "  ".join(f"{key} {value}" for key, value in per[name].items()))
    return {"rows": len(scores), "descriptors": per}


def auc(truth: NDArray[np.bool_], said: Floats) -> float | None:
    """Return the area under the ROC curve; None where all rows are of one kind."""
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(truth, said)), 4) if 0 < truth.sum() < len(truth) else None


def r2(truth: Floats, said: Floats) -> float | None:
    """Return the share of the variance that is explained; None where there is no variance."""
    spread = float(np.square(truth - truth.mean()).mean())
    return round(1 - float(np.square(truth - said).mean()) / spread, 4) if spread > 0 else None


def size_of(data: ImageData) -> tuple[int, int]:
    """Return (height, width) of a data set's images."""
    width, height = sides(data.size)
    return height, width
