"""COUT: how early the decision changes when the pixels that changed most are copied into the
original first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs

COARSE = 10  # every tenth point is always computed, also where a tolerance skips points


@torch.inference_mode()
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
    tolerance: float = 0.0,
) -> Tensor:
    """Return COUT per row, float64 (B,) in [-1,1]: the area under p(target) minus the area under
    p(source).

    The areas are by the trapezoid rule over the share of pixels copied from the counterfactual into
    the original, from 0 to 1 in equal steps. Pixels are copied in the order of their change, summed
    over channels, largest first; ties are by position. An unchanged pair has p(target) - p(source).
    Khorram and Fuxin, "Cycle-Consistent Counterfactuals by Latent Transformations", CVPR 2022.

    classifier: images to scores (B,K), whose softmax is the probability. original, counterfactual:
    (B,3,H,W) in [0,1] on the 8-bit grid; ValueError where their shapes differ. source, target: (B,)
    int64. batch: images per call of the classifier, across rows. reference: compute the figure as
    public code does (khorrams/c3lt, also in ACE). Its steps are floor(pixels / steps) pixels, and
    the last step goes over the end, so the range of integration is 1.02 for 256 x 256 pixels.
    tolerance: where two computed points of the curve differ by no more than this, the points
    between them are interpolated; every tenth point is always computed. At 0 all points are
    computed. The error is at most the tolerance where the curve only rises or only falls between
    each two tenth points.
    """
    if original.shape != counterfactual.shape or original.ndim != 4:
        raise ValueError(
            f"expected images of one shape (B,3,H,W), got {tuple(original.shape)} and"
            f" {tuple(counterfactual.shape)}"
        )
    rows, pixels = len(original), original.shape[2] * original.shape[3]
    moved, share = schedule(pixels, steps, reference)
    if rows == 0:
        return torch.zeros(0, dtype=torch.float64)
    rank, changed = change_order(original, counterfactual)
    # After a row's last changed pixel is copied its composites stay the same, so that image is
    # classified only once.
    before = torch.cat([torch.tensor([-1]), moved[:-1]])
    last = (before[None, :] < changed[:, None]).sum(1).clamp(min=1) - 1
    curve = torch.zeros((rows, len(moved)), dtype=torch.float64)  # p(target) - p(source)
    wanted = _first(last, len(moved), dense=tolerance == 0)
    done = torch.arange(len(moved))[None, :] > last[:, None]
    while wanted.any():
        row, step = wanted.nonzero(as_tuple=True)
        for at in range(0, len(row), batch):
            r, s = row[at : at + batch], step[at : at + batch]
            there = r.to(original.device)
            mask = (rank[r] < moved[s, None]).view(-1, 1, *original.shape[2:]).to(original.device)
            p = (
                classifier(torch.where(mask, counterfactual[there], original[there]))
                .double()
                .softmax(1)
                .cpu()
            )
            curve[r, s] = (
                p.gather(1, target.cpu()[r, None])[:, 0] - p.gather(1, source.cpu()[r, None])[:, 0]
            )
        done |= wanted
        wanted = _between(curve, done, last, tolerance)
    places = torch.minimum(torch.arange(len(moved))[None, :], last[:, None])
    return torch.trapezoid(curve.gather(1, places), share)


def _first(last: Tensor, points: int, *, dense: bool) -> Tensor:
    """Return the points of the curve to compute first, (B,S) bool: all up to each row's last point
    where dense, else only every tenth and the last.
    """
    at = torch.arange(points)[None, :]
    chosen = at <= last[:, None]
    return chosen if dense else chosen & ((at % COARSE == 0) | (at == last[:, None]))


def _between(curve: Tensor, done: Tensor, last: Tensor, tolerance: float) -> Tensor:
    """Return the points to compute next, (B,S) bool: the middle of each gap between computed points
    whose values differ by more than the tolerance. Interpolates the points of the other gaps, in
    place."""
    wanted = torch.zeros_like(done)
    for row in (~done).any(1).nonzero()[:, 0].tolist():
        known = done[row, : int(last[row]) + 1].nonzero()[:, 0].tolist()
        values = curve[row].tolist()
        for a, b in pairwise(known):
            if b - a == 1:
                continue
            if abs(values[b] - values[a]) > tolerance:
                wanted[row, (a + b) // 2] = True
            else:
                share = torch.arange(1, b - a, dtype=torch.float64) / (b - a)
                curve[row, a + 1 : b] = values[a] + (values[b] - values[a]) * share
                done[row, a + 1 : b] = True
    return wanted


def schedule(pixels: int, steps: int, reference: bool) -> tuple[Tensor, Tensor]:
    """Return the number of pixels copied at each point of the curve, (S,) int64, and its place on
    the axis as a share of pixels, (S,) float64.

    ValueError where there is no pixel or no step.
    """
    if pixels < 1 or steps < 1:
        raise ValueError(f"expected at least 1 pixel and 1 step, got {pixels} and {steps}")
    if reference:
        step = max(1, pixels // steps)
        at = torch.arange(0, pixels + step, step)
        return at.clamp(max=pixels), at.double() / pixels
    at = (torch.arange(steps + 1, dtype=torch.float64) * pixels / steps).round().long()
    return at, at.double() / pixels


def change_order(original: Tensor, counterfactual: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's place in the order of copying, (B, pixels) int64, and the number of
    pixels that differ, (B,) int64.
    """
    levels = (counterfactual - original).mul(255).round().abs().sum(1).flatten(1).long().cpu()
    order = levels.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return rank, (levels > 0).sum(1)


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """Return the column cout of a batch."""
    settings = pairs.settings
    return {
        "cout": cout(
            pairs.networks["classifier"],
            pairs.original,
            pairs.counterfactual,
            pairs.source,
            pairs.target,
            steps=settings["cout_steps"],
            batch=pairs.size,
            reference=settings["cout"] == "reference",
            tolerance=settings["cout_tolerance"],
        )
    }
