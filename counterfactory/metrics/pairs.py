"""A batch of stored pairs, and the networks that metrics look at them through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass
class Pairs:
    """Originals and stored counterfactuals (B,3,H,W) in [0,1], with what is known of them.

    source, target: classes before and wanted, (B,) int64; ids: the rows' own, the same for all
    answers to a row, which are all in one batch; networks: by the names of models (classifier,
    second, oracle) and of figures that take one (lpips, s3, fs, lpr's encoder, fid's features);
    settings: those of the score stage; causal: the oracle's columns that should decide; query: its
    column that the classifier decides on; size: images that a network sees at a time.
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
        """The classifier's scores of the counterfactuals, (B,K)."""
        return self.ask("classifier", self.counterfactual)

    def ask(self, name: str, images: Tensor) -> Tensor:
        """A network's outputs for images, float32 on the CPU."""
        found: Tensor = self.networks[name](images)
        return found.float().cpu()


def finite_pairs(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors (B,...), NaN in the rows that are not finite in either: half a pair is measured
    by nothing.
    """
    good = (torch.isfinite(before) & torch.isfinite(after)).flatten(1).all(1)
    if good.all():
        return before, after
    shape = (-1, *[1] * (before.ndim - 1))
    return before.where(good.view(shape), torch.nan), after.where(good.view(shape), torch.nan)
