"""A batch of stored pairs, with the networks that metrics apply to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass
class Pairs:
    """Originals and stored counterfactuals (B,3,H,W) in [0,1], with their classes and networks.

    source, target: the classes before and the wanted classes, (B,) int64. ids: the ids of the rows;
    all answers to a row have the same id and are in one batch. networks: by the name of a model
    (classifier, second, oracle) or of a figure that takes a network (lpips, s3, fs, lpr's encoder,
    fid's features). settings: those of the score stage. causal: the oracle's columns that should
    decide. query: the oracle's column that the classifier decides on. size: images per call of a
    network.
    """

    original: Tensor
    counterfactual: Tensor
    source: Tensor
    target: Tensor
    ids: Sequence[str]
    networks: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    causal: Sequence[int] = ()
    query: int | None = None
    size: int = 64

    @cached_property
    def scores(self) -> Tensor:
        """Return the classifier's scores of the counterfactuals, (B,K)."""
        return self.ask("classifier", self.counterfactual)

    def ask(self, name: str, images: Tensor) -> Tensor:
        """Return a network's outputs for images, float32 on the CPU."""
        found: Tensor = self.networks[name](images)
        return found.float().cpu()


def finite_pairs(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors (B,...), with NaN in the rows that are not finite in one of them.

    No metric measures half a pair.
    """
    good = (torch.isfinite(before) & torch.isfinite(after)).flatten(1).all(1)
    if good.all():
        return before, after
    shape = (-1, *[1] * (before.ndim - 1))
    return before.where(good.view(shape), torch.nan), after.where(good.view(shape), torch.nan)
