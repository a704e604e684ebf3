"""The loop that ACE and CECAS share: projected gradient descent through a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch
from torch import Tensor

from counterfactory.methods.contract import Budget, ImageQueries, row_noise, stored_verdict
from counterfactory.methods.parts.diffusion import (
    Schedule,
    inpaint,
    keep_mask,
    purify,
    to_image,
    to_signal,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Classifier, Denoiser

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What an attack adds to the cross-entropy: (x' (n,3,H,W), its view through the denoiser, rows (n,)
on the CPU) to (n,), a sum over each sample and never over the batch, whose size must not weigh in.
"""


@dataclass(frozen=True, kw_only=True)
class PurifiedPGD:
    """x' -= step * sign(grad of CE(classifier(denoise(noise(x'))), target) + term), in [0,1].

    levels: K, the denoiser calls that x' is noised for and denoised by, with new noise in every
    iteration. step: in 8-bit levels. stop: None for a fixed number of iterations, else the
    p(target) at which a row is done, on the stored x' and also on its last view (the stored image
    alone often passes early through noise, which refinement removes again). through: number of the
    K calls that the gradient passes through; None: all. mask_after: number of iterations after
    which pixels that hardly changed (keep_mask of gamma, kernel) are set back to the query's and
    stay fixed; None: never. checkpoint: see purify. precision: of the denoiser.
    """

    levels: int
    iterations: int
    step: float
    stop: float | None = None
    through: int | None = None
    mask_after: int | None = None
    gamma: float = 0.15
    kernel: int = 15
    checkpoint: bool = False
    precision: str = "float32"

    @classmethod
    def of(cls, method: Any) -> PurifiedPGD:
        """Return an attack with the settings of a method that have the same names."""
        return cls(**{setting.name: getattr(method, setting.name) for setting in fields(cls)})

    def cost(self) -> dict[str, int]:
        """Return the evaluations of one iteration, without those of the term."""
        through = self.levels if self.through is None else min(self.through, self.levels)
        return {"forward": self.levels + 1 + through * self.checkpoint, "backward": through + 1}

    def __call__(
        self,
        queries: ImageQueries,
        *,
        schedule: Schedule,
        generators: list[torch.Generator],
        budget: Budget,
        classifier: Classifier,
        denoiser: Denoiser,
        term: Term,
    ) -> Attacked:
        """Attack every row, and return the result. The host waits for the device only where `stop`
        needs to know which rows are done.
        """
        x, target, everything = queries.images, queries.target, torch.arange(len(queries))
        # Rows under attack; on the CPU, so that no list of rows is fetched from the device.
        rows = everything
        x_pre, best, best_p = x.clone(), x.clone(), x.new_full((len(x),), -1.0)
        alive, turned = x.new_ones(len(x), dtype=torch.bool), x.new_zeros(len(x), dtype=torch.bool)
        # p(target) in the view; before the first view only the stored image counts.
        seen = x.new_ones(len(x))
        free = x.new_ones((len(x), 1, *x.shape[2:]), dtype=torch.bool)  # pixels that may move
        steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)

        for iteration in range(self.iterations + 1):
            if self.stop is not None:
                at = rows.to(x.device)
                flips, p = stored_verdict(classifier, x_pre[at], target[at])
                budget.spend(rows, forward=1)
                better = p > best_p[at]
                best[at] = torch.where(better[:, None, None, None], x_pre[at], best[at])
                best_p[at] = torch.where(better, p, best_p[at])
                rows = rows[(~(flips & (p > self.stop) & (seen[at] > self.stop)) & alive[at]).cpu()]
            if iteration == self.iterations or not len(rows):
                break
            at = rows.to(x.device)

            noise = row_noise(
                [generators[row] for row in rows.tolist()], (self.levels, *x.shape[1:]), x.device
            )
            x_a = x_pre[at].requires_grad_()
            with torch.autocast(
                x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                signal = purify(
                    denoiser,
                    schedule,
                    to_signal(x_a),
                    noise,
                    through=self.through,
                    checkpointed=self.checkpoint,
                )
            view = to_image(signal.float())
            log_p = classifier(view).log_softmax(1)
            log_p_target = log_p.gather(1, target[at, None])[:, 0]
            (grad,) = torch.autograd.grad((term(x_a, view, rows) - log_p_target).sum(), x_a)
            budget.spend(rows, **self.cost())

            # A row whose gradient is not finite does not move any more; this check fetches no value
            # from the device.
            alive[at] &= grad.isfinite().flatten(1).all(1)
            moved = (x_a.detach() - self.step / 255 * grad.sign()).clamp(0, 1)
            moved = torch.where(free[at], moved, x[at])
            x_pre[at] = torch.where(alive[at, None, None, None], moved, x_pre[at])
            if iteration + 1 == self.mask_after:
                keep = keep_mask(x, x_pre, gamma=self.gamma, kernel=self.kernel)
                free, x_pre = ~keep, torch.where(keep, x, x_pre)
            turned[at] = log_p.detach().argmax(1) == target[at]
            seen[at] = log_p_target.detach().exp()
            steps[at] += alive[at]

        return Attacked(
            x_pre if self.stop is None else best, steps.cpu(), alive.cpu(), turned.cpu()
        )


@dataclass(frozen=True)
class Attacked:
    """The result of an attack.

    images: (n,3,H,W) in [0,1], the last x', or with `stop` the x' of highest stored p(target).
    steps: (n,) int64, steps taken. sound: (n,) bool, whether all gradients were finite. turned:
    (n,) bool, whether the last view had the target's class.
    """

    images: Tensor
    steps: Tensor
    sound: Tensor
    turned: Tensor

    def reasons(self, *, refined: bool) -> list[str]:
        """Return per row the reason of a failure, for rows that will turn out to have failed."""
        return [
            "non-finite gradient"
            if not sound
            else "flip lost in refinement"
            if turned and refined
            else "not converged"
            for sound, turned in zip(self.sound.tolist(), self.turned.tolist(), strict=True)
        ]


def refine(
    queries: ImageQueries,
    pre: Tensor,
    keep: Tensor,
    *,
    schedule: Schedule,
    generators: list[torch.Generator],
    levels: int,
    draws: int,
    unrefined: bool,
    budget: Budget,
    classifier: Classifier,
    denoiser: Denoiser,
) -> tuple[Tensor, Tensor]:
    """Return the pre-explanation inpainted, with the query's pixels where `keep`: image (B,3,H,W)
    and mask (B,1,H,W).

    Where refinement undoes the flip, it is tried again with new noise, at most `draws` times in
    total (the papers: once). Where no try flips, the best try is the answer, or with `unrefined`
    the better of pre-explanation and tries (beyond the papers). pre: (B,3,H,W) in [0,1]. keep:
    (B,1,H,W) bool. The mask is 1 where the answer was allowed to change.
    """
    x, target, rows = queries.images, queries.target, torch.arange(len(queries))
    best, mask = pre.clone(), torch.ones_like(x[:, :1])
    flipped, best_p = stored_verdict(classifier, pre, target)
    budget.spend(rows, forward=1)
    if not unrefined:  # the answer is the query, not flipped, where no try can be judged
        best = x.clone()
        flipped, best_p = torch.zeros_like(flipped), torch.full_like(best_p, -1.0)
    for _ in range(draws):
        at = rows.to(x.device)
        noise = row_noise(
            [generators[row] for row in rows.tolist()], (2 * levels, *x.shape[1:]), x.device
        )
        with torch.no_grad():
            tried = inpaint(
                denoiser, schedule, to_signal(x[at]), to_signal(pre[at]), keep[at], noise
            )
        tried = torch.where(keep[at], x[at], to_image(tried))  # exactly equal there
        flips, p = stored_verdict(classifier, tried, target[at])
        budget.spend(rows, forward=levels + 1)
        better = flips | (~flipped[at] & (p > best_p[at]))
        where = at[better]
        best[where], best_p[where], mask[where] = (
            tried[better],
            p[better],
            (~keep[where]).to(x.dtype),
        )
        flipped[where] |= flips[better]
        rows = rows[~flips.cpu()]
        if not len(rows):
            break
    return best, mask


def l1(x_pre: Tensor, x: Tensor) -> Tensor:
    """Return the sum of absolute changes in each sample; (n,)."""
    return (x_pre - x).flatten(1).abs().sum(1)


def check_attack(method: Any, **more: Any) -> None:
    """Check the settings of a method that attacks through a denoiser; ValueError names the first
    invalid setting.
    """
    most = method.levels if isinstance(method.levels, int) else inf
    check_settings(
        method,
        respaced=(1, inf),
        levels=(1, method.respaced),
        iterations=(1, inf),
        step=(0, 255),
        stop=(0, 1),
        through=(0, most),
        mask_after=(1, inf),
        gamma=(0, 1),
        kernel=(1, inf),
        draws=(1, inf),
        precision=("float32", "bfloat16"),
        **more,
    )
    if method.kernel % 2 == 0:
        raise ValueError(f"expected kernel odd, got {method.kernel}")
