"""The core of a counterfactual: the fewest parts of its change that still flip the decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A set passes with this share of the log-odds that the method asks for, since a method stops where
# its answer just passes, and then no part could be left out. The core gets the rest back: it has
# MARGIN times the effect of the smallest set that passes.
KEPT = 0.8
MARGIN = 1 / KEPT
MOST = 0.75  # a core is not widened beyond this share of the whole effect
Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Cores:
    """on: (B,C) bool, the parts of each core, none where no set passes. log_odds: (B,) of the core.
    asked: (B,) int64, evaluations of the classifier.
    """

    on: Tensor
    log_odds: Tensor
    asked: Tensor


def own_maps(
    on: Tensor, outcomes: Tensor, ends: Tensor, amounts: Tensor, prior: Tensor | None = None
) -> Tensor:
    """Return the effect (B,C) of each part of each row, from that row's mixtures alone.

    on: (B,M,C) bool. outcomes: (B,M) log-odds. ends: (B,2), of x and x'. amounts: (B,C) sum of
    |x'-x| of each part. A row has fewer mixtures than parts: the prior variance of a part's effect
    is its share of the change, so a part that does not change has no effect. prior: (B,C), the
    effects that are expected, such as those of other rows; 0 without it.
    """
    rows, _, parts = on.shape
    switches = np.concatenate(
        [on.double().numpy(), np.zeros((rows, 1, parts)), np.ones((rows, 1, parts))], 1
    )
    values = torch.cat([outcomes, ends], 1).double().numpy()[..., None]
    switches -= switches.mean(1, keepdims=True)
    values = values - values.mean(1, keepdims=True)
    if prior is not None:
        values = values - switches @ prior.double().numpy()[..., None]
    across = switches.transpose(0, 2, 1)
    size = amounts.double().numpy()
    share = size / np.maximum(size.sum(1, keepdims=True), 1e-12)
    # Scaled switches with one penalty are switches with a penalty each.
    scale = np.sqrt(share * parts + 1e-6)
    scaled = across * scale[..., None]
    gram = scaled @ scaled.transpose(0, 2, 1)
    level = np.trace(gram, axis1=1, axis2=2) / parts + 1e-9
    free = np.linalg.solve(gram + np.eye(parts) * level[:, None, None], scaled @ values)
    found = torch.from_numpy(free[..., 0] * scale)
    return found if prior is None else found + prior


def find_cores(
    ask: Ask,
    order: Tensor,
    whole: Tensor,
    margin: float = MARGIN,
    passing: Tensor | None = None,
) -> Cores:
    """Return the core of each row: the smallest passing set in the order of effect, with a margin.

    ask: from rows (N,) and parts (N,C) to the log-odds (N,) and whether the mixture passes, (N,)
    bool: flips, at the method's own threshold. order: (B,C) effect of each part. whole: (B,) bool,
    rows whose whole change passes; other rows have no core. Sizes are searched by bisection over
    1, 2, 3, 4, 6, 8, 12, ... parts, so a row takes about log2 of their number in evaluations.
    passing: (B,) int64, how many of the first parts are known to pass; all of them without it.
    """
    rows, parts = order.shape
    ranked = order.argsort(dim=1, descending=True, stable=True)
    place = ranked.argsort(dim=1)
    effect = order.clamp(min=0)
    sizes = torch.tensor(sizes_up_to(parts))
    low = torch.full((rows,), -1)  # index of a size that is known to fail
    most = torch.full((rows,), parts) if passing is None else passing
    high = torch.searchsorted(sizes, most)  # index of a size that is known to pass
    asked = torch.zeros(rows, dtype=torch.int64)
    odds = torch.full((rows,), torch.nan, dtype=torch.float64)

    def first(size: Tensor) -> Tensor:
        return place < size[:, None]

    while len(open_ := (whole & (high - low > 1)).nonzero()[:, 0]):
        middle = (low + high) // 2
        found, passes = ask(open_, first(sizes[middle])[open_])
        asked[open_] += 1
        odds[open_[passes]] = found[passes]
        high[open_[passes]] = middle[open_[passes]]
        low[open_[~passes]] = middle[open_[~passes]]
    least = sizes[high]
    on = first(least) & whole[:, None]
    # Cells with most of the effect need no more: the rest adds little and changes much.
    wanted = torch.minimum((effect * on).sum(1) * margin, MOST * effect.sum(1))
    reached = torch.gather(effect, 1, ranked).cumsum(1)
    wider = torch.maximum(least, (reached < wanted[:, None] - 1e-9).sum(1) + 1)
    wider = torch.where(effect.sum(1) > 0, wider.clamp(max=parts), least)
    more = (whole & (wider > least)).nonzero()[:, 0]
    if len(more):
        found, passes = ask(more, first(wider)[more])
        asked[more] += 1
        good = more[passes]
        on[good], odds[good] = first(wider)[good], found[passes]
    return Cores(on, odds, asked)


def least_log_odds(threshold: float, whole: Tensor) -> Tensor:
    """Return the log-odds (B,) that a core needs to pass.

    threshold: the method's own probability of the target, 0 where any flip counts. whole: (B,) the
    log-odds of the whole change; a core is never asked for more than KEPT of them.
    """
    least = torch.logit(torch.tensor(min(max(threshold, 0.5), 1.0), dtype=torch.float64))
    return (KEPT * torch.minimum(least.expand_as(whole), whole)).clamp(min=0)


def sizes_up_to(parts: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, 16, ... below `parts`, and `parts`."""
    sizes = [1]
    step = 2
    while step < parts:
        sizes += [step, step * 3 // 2]
        step *= 2
    return sorted({size for size in sizes if size < parts} | {parts})


def switches_of(packed: bytes, parts: int) -> NDArray[np.bool_]:
    """Return the switches (M,parts) of a row that `switches.pack` packed."""
    sets = np.frombuffer(packed, dtype=np.uint8).reshape(-1, -(-parts // 8))
    return np.unpackbits(sets, axis=1, count=parts).astype(np.bool_)
