"""COUT: how early the decision moves when a change is put into the image, its strongest pixels first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metrics.estimate import Measure

MEASURES = (Measure("cout", "cout", "mean", "correct", "higher"),)


@torch.no_grad()
def cout(
    classifier: Callable[[Tensor], Tensor],
    original: Tensor,
    counterfactual: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    steps: int = 50,
    batch: int = 256,
    reference: bool = False,
) -> Tensor:
    """COUT per row, float64 (B,) within [-1,1]: area under p(target) minus that under p(source), trapezoid rule over
    the share of pixels moved from the counterfactual into the original, [0,1] in equal steps.

    classifier: images to scores (B,K) whose softmax is the probability; images: (B,3,H,W) in [0,1] on the 8-bit grid;
    source, target: (B,) int64. Pixels go by the channels' summed change, ties by position. An unchanged pair scores
    p(target) - p(source). batch: images per call of the classifier, across rows. reference: the figure that public code
    gives (khorrams/c3lt, kept in ACE): steps of floor(pixels / steps), the last one running over the end, so that it
    integrates to 1.02 on 256 x 256 pixels. Khorram and Fuxin, "Cycle-Consistent Counterfactuals by Latent
    Transformations", CVPR 2022.
    """
    if original.shape != counterfactual.shape or original.ndim != 4:
        raise ValueError(
            f"expected images of one shape (B,3,H,W), got {tuple(original.shape)} and {tuple(counterfactual.shape)}"
        )
    rows, pixels = len(original), original.shape[2] * original.shape[3]
    moved, share = schedule(pixels, steps, reference)
    if rows == 0:
        return torch.zeros(0, dtype=torch.float64)
    rank, changed = change_order(original, counterfactual)
    # Once a row's last changed pixel has moved its composites stay the same: they are classified once.
    before = torch.cat([torch.tensor([-1]), moved[:-1]])
    wanted = before[None, :] < changed[:, None].clamp(min=0)
    wanted[:, 0] = True
    row, step = wanted.nonzero(as_tuple=True)
    gap = torch.empty(len(row), dtype=torch.float64)  # p(target) - p(source)
    for at in range(0, len(row), batch):
        r, m = row[at : at + batch], moved[step[at : at + batch]]
        r_there = r.to(original.device)
        mask = (rank[r] < m[:, None]).view(-1, 1, *original.shape[2:]).to(original.device)
        composites = torch.where(mask, counterfactual[r_there], original[r_there])
        p = classifier(composites).double().softmax(1).cpu()
        gap[at : at + batch] = p.gather(1, target.cpu()[r, None])[:, 0] - p.gather(1, source.cpu()[r, None])[:, 0]
    last = wanted.sum(1)
    start = last.cumsum(0) - last
    curve = gap[start[:, None] + torch.minimum(torch.arange(len(moved))[None, :], last[:, None] - 1)]
    return torch.trapezoid(curve, share)


def schedule(pixels: int, steps: int, reference: bool) -> tuple[Tensor, Tensor]:
    """Pixels moved at each point of the curve, (S,) int64, and the share of pixels it stands at, (S,) float64."""
    if pixels < 1 or steps < 1:
        raise ValueError(f"expected at least 1 pixel and 1 step, got {pixels} and {steps}")
    if reference:
        step = max(1, pixels // steps)
        at = torch.arange(0, pixels + step, step)
        return at.clamp(max=pixels), at.double() / pixels
    at = (torch.arange(steps + 1, dtype=torch.float64) * pixels / steps).round().long()
    return at, at.double() / pixels


def change_order(original: Tensor, counterfactual: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's place in the order of moving, (B, pixels) int64, and how many pixels differ at all, (B,) int64."""
    levels = (counterfactual - original).mul(255).round().abs().sum(1).flatten(1).long().cpu()
    order = levels.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return rank, (levels > 0).sum(1)
