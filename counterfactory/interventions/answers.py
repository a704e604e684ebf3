"""Answers that are cores: of each change that flips, the fewest parts that still flip as surely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from counterfactory.interventions.core import find_cores
from counterfactory.interventions.experiment import Answers, log_odds
from counterfactory.interventions.switches import GRID, Cells, Switches
from counterfactory.methods.contract import ImageAnswers, ImageQueries, row_generators
from counterfactory.models.interfaces import Classifier

VERSION = 1  # of the search; raised when the same answers get other cores
GROUPS, ROUNDS = 12, 8  # of a row
# A core keeps this share of the log-odds of the full answer: all of them would be asked of every
# part that adds a little. With half of them, other classifiers no longer agree with the flip.
KEPT = 0.9
# A round that does not shrink a core of few parts is its last; other groups of many parts may do.
SMALL, PATIENCE = 8, 2
SALT = 7_368_787  # a row's groups are drawn apart from what its method drew


@dataclass(frozen=True)
class Found:
    """on: (B,C) bool, the parts of each core; none where a row has no core. forward: (B,) int64,
    evaluations of the classifier.
    """

    on: Tensor
    forward: Tensor


def with_cores(
    answers: ImageAnswers,
    queries: ImageQueries,
    classifier: Classifier,
    *,
    grid: int = GRID,
    batch: int | None = None,
) -> ImageAnswers:
    """Return the answers with the core of each change that flips in the place of the whole change.

    answers: k per query. grid: cells per side. batch: images that the classifier gets at a time,
    default as many as there are answers, 16 or more. Only scores are used. A row that did not flip
    keeps its answer. A row's core depends on its query and its answer alone, not on the batch. What
    describes the full answer (latent_after, condition_after, edits) is None.
    """
    asked = queries.repeated(len(answers.flipped) // len(queries))
    cells = Cells(asked.images, answers.counterfactual, grid)
    verdicts = Verdicts(classifier, asked.target, batch or max(16, len(asked)))
    found = search_cores(cells, verdicts, asked.seed, answers.flipped)
    on = found.on.to(asked.images.device)
    there = on.any(1)
    mask = cells.masks(on).where(there[:, None, None, None], 1.0)
    every = torch.arange(len(asked), device=on.device)
    return replace(
        answers,
        counterfactual=cells.mixed(every, on).where(
            there[:, None, None, None], answers.counterfactual
        ),
        mask=mask if answers.mask is None else mask * answers.mask,
        forward=answers.forward + found.forward,
        latent_after=None,
        condition_after=None,
        edits=None,
    )


class Verdicts(Answers):
    """The target's log-odds, and 1 where it is the decision, else 0, of mixtures of any kind."""

    def __init__(self, classifier: Classifier, target: Tensor, batch: int) -> None:
        super().__init__(classifier, target, None, batch)
        self.functions = 2

    @torch.no_grad()
    def of(self, contents: Any, rows: Tensor) -> Tensor:
        """Return (N,2), float64 on the CPU; NaN and 0 where a row's scores are not finite."""
        scores = self.classifier(contents)
        target = self.target[rows]
        flips = (scores.argmax(1) == target) & scores.softmax(1).isfinite().all(1)
        return torch.stack([log_odds(scores, target), flips.double()], 1).cpu()


def search_cores(parts: Switches, verdicts: Verdicts, seed: Tensor, flipped: Tensor) -> Found:
    """Return the cores of changes of any kind of data.

    seed: (B,) int64. flipped: (B,) bool; other rows have no core and are not asked about. Each
    round leaves out a group of parts at a time, and orders the parts by what the absence of their
    group costs. The core is the smallest set in this order that flips and keeps KEPT of the
    log-odds; the next round searches among its parts.
    """
    core = torch.zeros(len(seed), parts.count, dtype=torch.bool)
    forward = torch.zeros(len(seed), dtype=torch.int64)
    seed, device = seed.cpu(), verdicts.target.device

    def ask(rows: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-odds (N,) and whether the row flips, (N,), with sets of parts (N,C)."""
        forward.index_add_(0, rows, torch.ones_like(rows))
        odds, flips = verdicts(parts, rows.to(device), on.to(device)).unbind(1)
        return odds, flips.bool()

    def search(at: Tensor, order: Tensor) -> Tensor:
        """Return which cores got smaller, (n,)."""

        def passes(chosen: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
            odds, flips = ask(at[chosen], on)
            return odds, flips & (odds >= least[at[chosen]])

        size = core[at].sum(1)
        found = find_cores(passes, order, torch.ones_like(at, dtype=torch.bool), 1.0, size).on
        shrunk = found.sum(1) < size
        core[at[shrunk]] = found[shrunk]
        return shrunk

    at = flipped.cpu().nonzero()[:, 0]
    whole, flips = ask(at, torch.ones(len(at), parts.count, dtype=torch.bool))
    at, whole = at[flips], whole[flips]
    # with three classes or more an answer may flip with less than an even chance
    least = torch.zeros(len(seed), dtype=torch.float64)
    least[at] = (KEPT * whole).where(whole > 0, -torch.inf)
    core[at] = True
    amounts, idle = parts.amounts().cpu(), torch.zeros_like(forward)
    for turn in range(ROUNDS):
        if not len(at):
            break
        which, groups = groups_of(seed[at] + SALT * (1 + turn), core[at])
        left = ask(at[which], core[at[which]] & ~groups)[0].nan_to_num(-torch.inf)
        cost = torch.full((len(at), parts.count), -torch.inf, dtype=torch.float64)
        row, part = groups.nonzero().unbind(1)
        cost[which[row], part] = -left[row]
        shrunk = search(at, ranked(cost, amounts[at]))
        size = core[at].sum(1)
        idle[at] = (idle[at] + 1).masked_fill(shrunk, 0)
        at = at[(size > 1) & (idle[at] < torch.where(size > SMALL, PATIENCE, 1))]
    return Found(core, forward)


def groups_of(seeds: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Return random groups of the parts of cores: the row of each, (N,), and its parts, (N,C) bool.

    seeds: (n,) int64. core: (n,C) bool. A row has GROUPS groups of about one size, or one for each
    part where it has fewer parts.
    """
    which, groups = [], []
    for row, generator in enumerate(row_generators(seeds)):
        parts = core[row].nonzero()[:, 0]
        parts = parts[torch.randperm(len(parts), generator=generator)]
        for group in parts.tensor_split(min(GROUPS, len(parts))):
            which.append(row)
            groups.append(torch.zeros(core.shape[1], dtype=torch.bool).index_fill(0, group, True))
    return torch.tensor(which), torch.stack(groups)


def ranked(cost: Tensor, amounts: Tensor) -> Tensor:
    """Return minus the parts' places in the order of their cost, ties by their amounts, (n,C)."""
    place = amounts.argsort(dim=1, descending=True, stable=True)
    place = place.gather(1, cost.gather(1, place).argsort(dim=1, descending=True, stable=True))
    return -place.argsort(dim=1).double()
