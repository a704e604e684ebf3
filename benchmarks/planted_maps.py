"""Maps of where decisions lie, by several methods, each a share (C,) for every cell of the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from counterfactory.interventions.experiment import Answers
from counterfactory.interventions.look import with_look
from counterfactory.interventions.switches import (
    GRID,
    Cells,
    Kinds,
    all_coalitions,
    draw_switches,
)
from counterfactory.metrics import effects
from counterfactory.metrics.cout import change_order
from counterfactory.metrics.effects import EffectSums
from counterfactory.models.interfaces import AttributeModel, Classifier

Floats = NDArray[np.float64]
MIXTURES = 16
DRAWS = 400  # of the bootstrap


@dataclass(frozen=True)
class Pairs:
    """Flipped rows: original and counterfactual (N,3,H,W) in [0,1]; source and target (N,)."""

    original: Tensor
    counterfactual: Tensor
    source: Tensor
    target: Tensor


def effect_sums(
    pairs: Pairs, model: Classifier, oracle: AttributeModel | None
) -> tuple[EffectSums, EffectSums]:
    """Return the sums of the experiment for each target, from 18 evaluations of each row."""
    answers = Answers(model, pairs.target, oracle)
    cells = Cells(pairs.original, pairs.counterfactual)
    rows = torch.arange(len(pairs.target))
    ends = torch.stack(
        [answers.of(pairs.original, rows), answers.of(pairs.counterfactual, rows)], 1
    )
    on = draw_switches(rows, MIXTURES, cells.count)
    outcomes = answers.each(cells, on)
    amounts = cells.amounts()
    changed = (amounts / amounts.sum(1, keepdim=True).clamp(min=1e-12)).double()
    groups = effects.group_of([str(row) for row in rows.tolist()])
    found = []
    for target in (0, 1):
        mine = pairs.target == target
        parts = (part[mine].numpy() for part in (on, outcomes, ends))
        found.append(effects.update(*parts, groups[mine.numpy()], changed[mine].numpy()))
    return found[0], found[1]


def kind_shares(pairs: Pairs, model: Classifier) -> tuple[Floats, Floats]:
    """Return the share (3,) of the effect, and of |x'-x|, of each kind of change."""
    kinds = Kinds(pairs.original, pairs.counterfactual)
    answers, rows = Answers(model, pairs.target), torch.arange(len(pairs.target))
    sets = all_coalitions(kinds.count)
    between = answers.each(kinds, sets[None].expand(len(rows), -1, -1))[..., 0]
    ends = [answers.of(part, rows) for part in (pairs.original, pairs.counterfactual)]
    worths = torch.cat([ends[0], between, ends[1]], 1).numpy()
    worth = effects.shapley(worths).sum(0)
    amounts = kinds.amounts().double().sum(0).numpy()
    return worth / worth.sum(), amounts / amounts.sum()


def changed_map(pairs: Pairs) -> Floats:
    """Return the share of |x'-x| in each cell, mean over the rows."""
    return per_cell((pairs.counterfactual - pairs.original).abs().sum(1))


@torch.no_grad()
def cout_map(pairs: Pairs, model: Classifier) -> Floats:
    """Return the share in each cell of the pixels that flip the decision, in COUT's order: the
    fewest of the most changed pixels, by bisection.
    """
    rank, changed = change_order(pairs.original, pairs.counterfactual)
    low, high = torch.zeros_like(changed), changed.clone()
    shape = pairs.original.shape[2:]
    for _ in range(13):
        middle = (low + high) // 2
        mask = (rank < middle[:, None]).view(-1, 1, *shape)
        mixed = torch.where(mask, pairs.counterfactual, pairs.original)
        flips = model(mixed).argmax(1) == pairs.target
        low, high = torch.where(flips, low, middle), torch.where(flips, middle, high)
    return per_cell((rank < high[:, None]).view(-1, *shape).float())


def gradients_map(pairs: Pairs, model: nn.Module, *, contrast: bool) -> Floats:
    """Return integrated gradients of the decision (Sundararajan et al. 2017) by captum, absolute.

    contrast: from the counterfactual as the baseline, else from black.
    """
    from captum.attr import IntegratedGradients

    baseline = pairs.counterfactual if contrast else torch.zeros_like(pairs.original)
    found = IntegratedGradients(model).attribute(
        pairs.original, baseline, target=pairs.source, n_steps=24, internal_batch_size=256
    )
    return per_cell(found.detach().abs().sum(1).float())


def cam_map(pairs: Pairs, model: nn.Module, layer: nn.Module) -> Floats:
    """Return Grad-CAM of the decision (Selvaraju et al. 2017) by captum, at a layer."""
    from captum.attr import LayerAttribution, LayerGradCam

    original = pairs.original.clone().requires_grad_()  # the frozen network has no gradients else
    found = LayerGradCam(model, layer).attribute(
        original, target=pairs.source, relu_attributions=True
    )
    size = tuple(pairs.original.shape[2:])
    return per_cell(LayerAttribution.interpolate(found, size, "bilinear").detach()[:, 0])


def per_cell(amount: Tensor) -> Floats:
    """Return the mean over rows of each row's share in every cell; amount: (N,H,W), 0 or more."""
    cells = F.adaptive_avg_pool2d(amount[:, None], GRID).flatten(1).double()
    whole = cells.sum(1, keepdim=True)
    there = whole[:, 0] > 0
    return np.asarray((cells[there] / whole[there]).mean(0).numpy())


@torch.no_grad()
def look_share(pairs: Pairs, model: Classifier) -> float:
    """Return the share of the effect that the look of the whole picture has.

    The look: each channel's mean, and its contrast at each of five scales. Exact Shapley value of
    two players, the look and all else, from two images more a row: x with the look of x', and x'
    with the look of x.
    """
    answers, rows = Answers(model, pairs.target), torch.arange(len(pairs.target))
    x, y = pairs.original, pairs.counterfactual
    images = (x, with_look(x, y), with_look(y, x), y)
    worths = torch.cat([answers.of(image, rows) for image in images], 1).numpy()
    worth = effects.shapley(worths).sum(0)
    return float(worth[0] / worth.sum())
