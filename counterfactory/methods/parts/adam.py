"""Adam with separate moments for each row, so that a row can leave a batch without an effect on the
other rows' steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch's defaults


@dataclass
class Adam:
    """Adam's state (Kingma & Ba 2015, algorithm 1); m, v: the moments of all rows, shaped like the
    moved tensor (B,...).
    """

    m: Tensor
    v: Tensor

    @classmethod
    def of(cls, moved: Tensor) -> Adam:
        return cls(torch.zeros_like(moved), torch.zeros_like(moved))

    def step(self, rows: Tensor, grad: Tensor, count: int, square: Tensor | None = None) -> Tensor:
        """Update the moments of some rows, and return their steps (n,...), before the learning
        rate.

        rows: (n,) their places in the batch. grad: (n,...) their count-th gradient, counted from 1.
        square: the values that the second moment averages, by default the gradient's square.
        """
        m = BETA1 * self.m[rows] + (1 - BETA1) * grad
        v = BETA2 * self.v[rows] + (1 - BETA2) * (grad.square() if square is None else square)
        self.m[rows], self.v[rows] = m, v
        return m / (1 - BETA1**count) / ((v / (1 - BETA2**count)).sqrt() + EPS)


def row_square(grad: Tensor) -> Tensor:
    """Return each row's mean squared gradient, in the shape of grad (n,...). As the second moment,
    it makes steps follow the gradient's direction.
    """
    within = tuple(range(1, grad.ndim))
    return grad.square().mean(within, keepdim=True).expand_as(grad)
