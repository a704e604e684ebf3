"""Deep feature reweighting (Kirichenko et al. 2023): a last layer fitted again, with every group
counted alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.strict import UserError
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.weights import read_weights
from pipelines.retrain.draws import group_weights
from pipelines.retrain.inputs import Rows
from pipelines.train.card import half
from pipelines.train.holdout import batches
from pipelines.train.job import Trained

DECAY = 1e-3  # of the last layer's weights, for features of standard deviation 1


def refit_last_layer(trained: Trained, rows: Rows, device: torch.device) -> Trained:
    """Return the network with its last linear layer fitted to rows by logistic regression.

    Each row counts by its group's weight, so that all groups count alike. The paper draws balanced
    subsets instead, and takes the mean of several fits. UserError where the network does not end in
    a linear layer.
    """
    model: Any = build(trained.spec, trained.weights, device)
    layers = {k: m for k, m in model.network.named_modules() if isinstance(m, nn.Linear)}
    name, layer = next(reversed(layers.items()), ("", None))
    if layer is None or layer.out_features != len(model.classes):
        raise UserError(
            f"arm dfr: expected a network that ends in a linear layer of {len(model.classes)}"
            f" outputs, got {trained.spec['target']}"
        )
    features = inputs_of(model, layer, rows, device)
    weight, bias = fitted(features, rows.labels, group_weights(rows.groups), len(model.classes))
    state = read_weights(trained.weights)
    state |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    return replace(trained, weights=half(state))


@torch.no_grad()
def inputs_of(model: Any, layer: nn.Linear, rows: Rows, device: torch.device) -> Tensor:
    """Return the inputs (N,F) that the layer gets for the rows, float64."""
    found: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0].double().cpu())

    hook = layer.register_forward_pre_hook(keep)
    for _, images in batches(rows.samples, device):
        model(images)
    hook.remove()
    return torch.cat(found)


def fitted(
    features: Tensor, labels: Tensor, weights: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Return weight (K,F) and bias (K,) of the weighted logistic regression, by L-BFGS."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled, share = (features - mean) / std, weights / weights.sum()
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(F.linear(scaled, weight, bias), labels, reduction="none")
        value = (losses * share).sum() + DECAY * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = weight.detach() / std
    return found, bias.detach() - found @ mean
