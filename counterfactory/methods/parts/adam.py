"""Adam with moments for each row, so that rows may leave a batch without touching the others'
steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # as torch has them


@dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1; m, v: the moments of all rows, shaped like what is moved
    (B,...).
    """

    m: Tensor
    v: Tensor

    @classmethod
    def of(cls, moved: Tensor) -> Adam:
        return cls(torch.zeros_like(moved), torch.zeros_like(moved))

    def step(self, rows: Tensor, grad: Tensor, count: int, square: Tensor | None = None) -> Tensor:
        """The steps (n,...) of some rows, to be scaled by the learning rate.

        rows: (n,) their places in the batch; grad: (n,...) their count-th gradient, from 1; square:
        what the second moment is of, default the gradient's square.
        """
        m = BETA1 * self.m[rows] + (1 - BETA1) * grad
        v = BETA2 * self.v[rows] + (1 - BETA2) * (grad.square() if square is None else square)
        self.m[rows], self.v[rows] = m, v
        return m / (1 - BETA1**count) / ((v / (1 - BETA2**count)).sqrt() + EPS)


def row_square(grad: Tensor) -> Tensor:
    """Each row's mean squared gradient, in the shape of grad (n,...): steps with it as the second
    moment follow the gradient's direction.
    """
    within = tuple(range(1, grad.ndim))
    return grad.square().mean(within, keepdim=True).expand_as(grad)
