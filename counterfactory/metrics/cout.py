"""COUT: how early the decision moves when a change is put into the image, its strongest pixels
first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from counterfactory.metrics.pairs import Pairs

COARSE = 10  # where points may be left out, every so many steps there is one all the same


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
    """COUT per row, float64 (B,) within [-1,1]: area under p(target) minus that under p(source),
    trapezoid rule over the share of pixels moved from the counterfactual into the original, [0,1]
    in equal steps.

    classifier: images to scores (B,K) whose softmax is the probability; images: (B,3,H,W) in [0,1]
    on the 8-bit grid; source, target: (B,) int64. Pixels go by the channels' summed change, ties by
    position. An unchanged pair scores p(target) - p(source). batch: images per call of the
    classifier, across rows. reference: the figure that public code gives (khorrams/c3lt, kept in
    ACE): steps of floor(pixels / steps), the last one running over the end, so that it integrates
    to 1.02 on 256 x 256 pixels. tolerance: points between two whose curve differs by no more are
    taken to lie on a line, but for every tenth; at 0 all are computed. Where the curve only rises,
    or only falls, from one tenth to the next the figure is off by no more than the tolerance.
    Khorram and Fuxin, "Cycle-Consistent Counterfactuals by Latent Transformations", CVPR 2022.
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
    # Once a row's last changed pixel has moved its composites stay the same: they are classified
    # once.
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
    """Points of the curve to compute first, (B,S) bool: all up to each row's last, or only every
    tenth and the ends.
    """
    at = torch.arange(points)[None, :]
    chosen = at <= last[:, None]
    return chosen if dense else chosen & ((at % COARSE == 0) | (at == last[:, None]))


def _between(curve: Tensor, done: Tensor, last: Tensor, tolerance: float) -> Tensor:
    """Middles of the stretches whose ends differ by more than the tolerance, (B,S) bool; those of
    flat ones are put on a line between their ends, in place."""
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
    """Pixels moved at each point of the curve, (S,) int64, and the share of pixels it stands at,
    (S,) float64.
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
    """Each pixel's place in the order of moving, (B, pixels) int64, and how many pixels differ at
    all, (B,) int64.
    """
    levels = (counterfactual - original).mul(255).round().abs().sum(1).flatten(1).long().cpu()
    order = levels.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return rank, (levels > 0).sum(1)


def measure(pairs: Pairs) -> dict[str, Tensor]:
    """The column cout of a batch."""
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
