"""Answers that are cores: of each change that flips, the fewest parts that still flip as surely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from counterfactory.interventions.core import find_cores, own_maps
from counterfactory.interventions.experiment import Answers, log_odds
from counterfactory.interventions.switches import GRID, Cells, Switches, draw_switches
from counterfactory.methods.contract import ImageAnswers, ImageQueries
from counterfactory.models.interfaces import Classifier

VERSION = 1  # of the search; raised when the same answers get other cores
MIXTURES, MORE, ROUNDS = 16, 8, 6  # of a row: at first, in each further round, further rounds
# A core keeps this share of the log-odds of the full answer: all of them would be asked of every
# part that adds a little. With half of them, other classifiers no longer agree with the flip.
KEPT = 0.9
SMALL = 8  # parts of a core from which on a round that does not shrink it is the last
SALT = 7_368_787  # a row's mixtures are drawn apart from what its method drew


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
        flips = (scores.argmax(1) == target) & scores.isfinite().all(1)
        return torch.stack([log_odds(scores, target), flips.double()], 1).cpu()


def search_cores(parts: Switches, verdicts: Verdicts, seed: Tensor, flipped: Tensor) -> Found:
    """Return the cores of changes of any kind of data.

    seed: (B,) int64. flipped: (B,) bool; other rows have no core and are not asked about. A row's
    mixtures give the effects of its parts, and its core is the smallest set in their order that
    flips and keeps KEPT of the log-odds. Each further round draws mixtures within the core and
    searches again among its parts, until the core is small and does not shrink.
    """
    rows, count = len(seed), parts.count
    core = torch.zeros(rows, count, dtype=torch.bool)
    forward = torch.zeros(rows, dtype=torch.int64)

    def ask(chosen: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-odds (n,M) and whether rows flip, (n,M), with sets of parts, (n,M,C)."""
        forward[chosen] += on.shape[1]
        device = verdicts.target.device
        each = chosen.repeat_interleave(on.shape[1]).to(device)
        found = verdicts(parts, each, on.flatten(0, 1).to(device))
        odds, flips = found.reshape(*on.shape[:2], 2).unbind(2)
        return odds, flips.bool()

    at = flipped.cpu().nonzero()[:, 0]
    switches = torch.stack([torch.zeros(count), torch.ones(count)]).bool().expand(len(at), 2, count)
    ends, ends_flip = ask(at, switches)
    sound = ends.isfinite().all(1) & ends_flip[:, 1]
    at, ends = at[sound], ends[sound]
    core[at] = True
    # with three classes or more an answer may flip with less than an even chance
    least = (KEPT * ends[:, 1]).where(ends[:, 1] > 0, -torch.inf)
    amounts = parts.amounts().cpu()[at]
    on = torch.zeros(len(at), 0, count, dtype=torch.bool)
    outcomes = torch.zeros(len(at), 0, dtype=torch.float64)
    for turn in range(1 + ROUNDS):
        seeds = seed.cpu()[at] + SALT * (1 + turn)
        drawn = draw_switches(seeds, MORE if turn else MIXTURES, count) & core[at, None]
        on = torch.cat([on, drawn], 1)
        outcomes = torch.cat([outcomes, ask(at, drawn)[0]], 1)
        order = own_maps(on, outcomes, ends, amounts)
        sound = order.isfinite().all(1)
        order = order.where(core[at] & sound[:, None], -torch.inf)

        def passes(
            chosen: Tensor, on: Tensor, at: Tensor = at, least: Tensor = least
        ) -> tuple[Tensor, Tensor]:
            odds, flips = ask(at[chosen], on[:, None])
            return odds[:, 0], flips[:, 0] & (odds[:, 0] >= least[chosen])

        found = find_cores(passes, order, sound, 1.0, core[at].sum(1)).on
        shrunk = sound & (found.sum(1) < core[at].sum(1))
        core[at[shrunk]] = found[shrunk]
        left = core[at].sum(1)
        more = sound & (left > 1) & (shrunk | (left > SMALL))
        at, ends, least, amounts = at[more], ends[more], least[more], amounts[more]
        on, outcomes = on[more], outcomes[more]
        if not len(at):
            break
    return Found(core, forward)
