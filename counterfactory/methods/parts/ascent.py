"""The ascent that latent and pixel methods share: it records which rows are active, and the best
try of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    passes_stored,
    settle,
)
from counterfactory.models.interfaces import Classifier


@dataclass(kw_only=True)
class Ascent:
    """Gradient steps towards each row's target. A method runs this loop, where `z` is the tensor
    that it moves:

        for step in ascent.iterations(max_steps):
            z_n = z[ascent.active].requires_grad_()
            x_n = image(ascent.active, z_n)
            log_p = ascent.judge(x_n, z_n)
            (grad,) = ascent.gradients(loss of log_p, x_n and z_n, z_n)
            z[ascent.active] -= lr * grad

    A row leaves `active` when its stored image passes the threshold, or when its gradient is not
    finite.

    moved: the initial values of the tensors that the method moves, (B,...) each. threshold:
    probability that a row's target must exceed. predicted: whether an image must have its target as
    prediction before it is rounded and judged. keep_last: whether a row stores its last try that
    has its target, instead of the first that passes. everyone: whether rows that already have their
    target take part. calls: number of networks in one pass. precision: of the classifier during the
    search.

    best: `moved` at each row's best try, (B,...) each. images: x' at the best try. known: (B,)
    bool, whether that image has been made. passed: (B,) bool. steps: (B,) int64. reasons: per row,
    why the search ended.
    """

    queries: ImageQueries
    classifier: Classifier
    budget: Budget
    threshold: float
    moved: tuple[Tensor, ...] = ()
    predicted: bool = True
    keep_last: bool = False
    everyone: bool = False
    calls: int = 2
    precision: str = "float32"

    active: Tensor = field(init=False)
    best: tuple[Tensor, ...] = field(init=False)
    images: Tensor = field(init=False)
    known: Tensor = field(init=False)
    passed: Tensor = field(init=False)
    steps: Tensor = field(init=False)
    reasons: list[str] = field(init=False)

    def __post_init__(self) -> None:
        x = self.queries.images
        there = self.queries.source == self.queries.target
        self.active = torch.arange(len(x), device=x.device)
        if not self.everyone:
            self.active = self.active[~there]
        self.best, self.images, self.known = tuple(m.clone() for m in self.moved), x.clone(), there
        self.passed = torch.zeros_like(there)
        self.steps = torch.zeros(len(x), dtype=torch.int64)
        self.reasons = ["not converged"] * len(x)
        self._best_p = x.new_full((len(x),), -1.0)
        self._going, self._last = self.active, False

    def iterations(self, most: int) -> Iterator[int]:
        """Yield the step numbers from 1 to `most`, and one more, in which the image of the last
        step is judged.
        """
        for step in range(1, most + 2):
            if not len(self.active):
                return
            self._last = step > most
            yield step

    def judge(
        self,
        x_n: Tensor,
        *moved_n: Tensor,
        remake: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return log p(target) (n,) of the active rows' images x_n, and store better tries, with
        moved_n.

        remake: makes the images of some rows that are judged, where x_n differs from them.
        """
        rows, target = self.active, self.queries.target[self.active]
        with torch.autocast(x_n.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            log_all = self.classifier(x_n).log_softmax(1)
            log_p = log_all.gather(1, target[:, None])[:, 0]
        self.budget.spend(rows, forward=self.calls)

        p, images = log_p.detach().exp(), x_n.detach().to(self.images.dtype)
        flips = (log_all.detach().argmax(1) == target) & p.isfinite()
        hoped = p.where(flips, -1.0) if self.predicted else p
        if remake is not None and len(near := (hoped > self.threshold).nonzero()[:, 0]):
            images = images.clone()
            with torch.no_grad():
                images[near] = remake(rows[near])
            self.budget.spend(rows[near], forward=1)
        # Rounding inside the ascent would amplify float noise to 8-bit levels, so that only the
        # verdict uses rounded images.
        done = passes_stored(
            self.classifier, images, target, hoped, self.threshold, rows, self.budget
        )
        kept = flips if self.keep_last else done
        better = kept | (~self.passed[rows] & (p > self._best_p[rows]))
        at = rows[better]
        self._best_p[at] = p[better]
        for best, now in zip(self.best, moved_n, strict=True):
            best[at] = now.detach()[better]
        made = better if remake is None else done
        self.images[rows[made]], self.known[rows[made]] = images[made], True
        self.passed[rows[kept]] = True
        self._going = ~done
        return log_p

    def gradients(self, loss: Tensor, *moved_n: Tensor) -> tuple[Tensor, ...]:
        """Return each row's gradients of its loss by moved_n, for the rows that continue; only
        these rows stay active. loss: (n,).
        """
        going = self._going
        if self._last or not going.any():
            self.active = self.active[:0]
            return tuple(torch.zeros_like(moved[:0]) for moved in moved_n)
        grads = torch.autograd.grad(loss.sum(), moved_n)
        self.budget.spend(self.active[going], backward=self.calls)
        finite = torch.stack([grad.isfinite().flatten(1).all(1) for grad in grads]).all(0)
        for row in self.active[going & ~finite].tolist():
            self.reasons[row] = "non-finite gradient"
        going = going & finite
        self.active = self.active[going]
        self.steps[self.active.cpu()] += 1
        return tuple(grad[going] for grad in grads)

    def answers(self, images: Tensor | None = None, **kept: Any) -> ImageAnswers:
        """Return the stored and judged answers: each row's best try, or the given images (B,3,H,W)
        instead; kept: see settle.
        """
        return settle(
            self.classifier,
            self.images if images is None else images,
            self.queries,
            self.reasons,
            self.budget,
            steps=self.steps,
            **kept,
        )
