"""The ascent that latent and pixel methods share: which rows are still at it, and the best try of
each.
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
    """Gradient steps towards each row's target. A method's loop, with what it moves in `z`:

        for step in ascent.iterations(max_steps):
            z_n = z[ascent.active].requires_grad_()
            x_n = image(ascent.active, z_n)
            log_p = ascent.judge(x_n, z_n)
            (grad,) = ascent.gradients(loss of log_p, x_n and z_n, z_n)
            z[ascent.active] -= lr * grad

    A row leaves `active` when its stored image passes the threshold, or its gradient is not finite.

    moved: what the method moves, (B,...) each, as it begins; threshold: probability that a row's
    target must pass; predicted: whether an image must have its target before it is looked at as
    stored; keep_last: whether a row keeps its last try that has its target, not the first that
    passes; everyone: whether rows that have their target already take part; calls: networks that a
    pass goes through; precision: of the classifier while the gradient is sought.

    best: `moved` at each row's best try, (B,...) each; images: x' there; known: (B,) bool, where
    those images have been made; passed: (B,) bool; steps: (B,) int64; reasons: why each ends.
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
        """Count the steps from 1, and one more, in which the last step's image is judged."""
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
        """log p(target) (n,) of the active rows' images x_n; better tries are kept, with moved_n.

        remake: makes the images of some rows that the verdict is on, where x_n lies beside them.
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
        # Rounding inside the ascent would blow float noise up to 8-bit levels: only the verdict
        # sees stored images.
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
        """Gradients of a loss (n,), each row's own, by moved_n: of the rows that go on, which alone
        are active from here on.
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
        """Each row's best try, or other images (B,3,H,W) in its place, stored and judged; kept: see
        settle.
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
