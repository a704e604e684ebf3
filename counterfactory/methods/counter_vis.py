"""Counterfactual Visual Explanations (arXiv 1904.07451), named Counter_Vis in tables: exchange of
cells of the image with cells of another image, until the decision changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    settle,
    stored_verdict,
)
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Distractors, SplitClassifier

CHUNK = 256  # exchanges that the head scores in one call
NONE = "no distractor: the classifier takes none of them for the target"
Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class CounterVis:
    """Greedy exchange of spatial cells with a distractor's cells: the best of all pairs each time,
    until the decision changes.

    layer: the layer whose maps hold the cells: a dotted name, or "last" for the last layer with
    more than one cell (the paper). None: `cells` x `cells` cells of the image itself, judged by the
    whole classifier (black box). distractor: "random" among the images that the classifier takes
    for the target (the paper), or the "nearest" of them. until: the search ends when the decision
    changes on the edited "features" (the paper), or only when it changes also on the "image" pasted
    together from the cells' pixels, which is the stored image. max_edits: the highest number of
    exchanges. screen: the head scores only this number of pairs, those of the largest gain to first
    order; None: all pairs (the paper).
    """

    name: ClassVar[str] = "counter-vis"
    version: ClassVar[int] = 1
    access: ClassVar[str] = "gradient"  # it splits the network, for which scores are not enough
    needs: ClassVar[tuple[str, ...]] = ("distractors",)

    layer: str | None = "last"
    cells: int = 8
    distractor: str = "random"
    until: str = "features"
    max_edits: int = 100
    screen: int | None = None

    def __post_init__(self) -> None:
        choices, ends = ("random", "nearest"), ("features", "image")
        check_settings(
            self,
            cells=(1, inf),
            distractor=choices,
            until=ends,
            max_edits=(0, inf),
            screen=(1, inf),
        )

    @torch.no_grad()
    def __call__(
        self, queries: ImageQueries, *, classifier: SplitClassifier, distractors: Distractors
    ) -> ImageAnswers:
        """Return composite images; a flip is judged on the composite. The edits hold the exchanged
        cells and the features' decision.

        A row is charged one evaluation for each exchange that the head scores, although the head is
        only a part of the network.
        """
        x, target = queries.images, queries.target
        budget, reasons = Budget.of(len(x)), ["the edits did not turn the decision"] * len(x)
        steps, told = (
            torch.zeros(len(x), dtype=torch.int64),
            list[dict[str, Any] | None]([None] * len(x)),
        )
        composite, mask = x.clone(), x.new_zeros(len(x), 1, *x.shape[2:])

        other, number = distractors(x, target, queries.seed, classifier, self.distractor)
        going = (queries.source != target).nonzero()[:, 0]
        for row in going[number[going] < 0].tolist():
            reasons[row] = NONE
        going = going[number[going] >= 0]
        if len(going):
            maps, head = self._cells(torch.cat([x[going], other[going]]), classifier)
            budget.spend(going, forward=2)
            for at, row in enumerate(going.tolist()):
                edits: list[tuple[int, int]] = []
                turned = False
                search = self._edits(
                    maps[at], maps[at + len(going)], head, int(target[row]), row, budget
                )
                for edit, turned in search:
                    edits.append(edit)
                    paste(composite[row], mask[row], other[row], *edit, maps.shape[2:])
                    if turned and (
                        self.until == "features"
                        or self._flips(classifier, composite, target, row, budget)
                    ):
                        break
                else:
                    if len(edits) < min(self.max_edits, maps[at, 0].numel()):
                        reasons[row] = "non-finite scores"
                if turned:
                    reasons[row] = (
                        "the decision turned on the features, and not on the image pasted together"
                    )
                steps[row] = len(edits)
                told[row] = {
                    "cells": list(maps.shape[2:]),
                    "distractor": int(number[row]),
                    "features_turned": turned,
                    "exchanged": edits,
                }

        return settle(
            classifier, composite, queries, reasons, budget, steps=steps, mask=mask, edits=told
        )

    def _cells(self, images: Tensor, classifier: SplitClassifier) -> tuple[Tensor, Head]:
        """Return the cells' values (B,D,h,w), and the function from such values to scores (B,K).

        ValueError where square cells do not fill the image.
        """
        if self.layer is not None:
            return classifier.split(images, self.layer)
        side = images.shape[-1] // self.cells
        if images.shape[-2:] != (side * self.cells, side * self.cells):
            got = f"{images.shape[-2]} x {images.shape[-1]} px"
            raise ValueError(
                f"expected images that {self.cells} x {self.cells} square cells fill, got {got}:"
                " set cells"
            )
        return F.pixel_unshuffle(images, side), lambda cells: classifier(
            F.pixel_shuffle(cells, side)
        )

    def _edits(
        self, cells: Tensor, spare: Tensor, head: Head, target: int, row: int, budget: Budget
    ) -> Iterator[tuple[tuple[int, int], bool]]:
        """Yield each exchange (i,j) of the greedy search (algorithm 1), and whether the target is
        the class after it.

        cells, spare: (D,h,w), of the query and of the distractor. Ends early where no pair has
        finite scores.
        """
        edits: list[tuple[int, int]] = []
        one = torch.tensor([row])
        while len(edits) < min(self.max_edits, cells[0].numel()):
            pairs = free_pairs(cells, edits)
            if self.screen is not None and self.screen < len(pairs):
                pairs = promising(cells, spare, pairs, head, target, self.screen)
                budget.spend(one, forward=1, backward=1)
            found = best_exchange(cells, spare, pairs, head, target)
            budget.spend(one, forward=len(pairs))
            if found is None:
                return
            edit, turned = found
            cells = exchanged(cells, spare, *edit)
            edits.append(edit)
            yield edit, turned

    def _flips(
        self, classifier: SplitClassifier, images: Tensor, target: Tensor, row: int, budget: Budget
    ) -> bool:
        """Return whether a row's image, rounded to 8 bits, is classified as its target."""
        budget.spend(torch.tensor([row]), forward=1)
        flipped, _ = stored_verdict(classifier, images[row : row + 1], target[row : row + 1])
        return bool(flipped)


def free_pairs(cells: Tensor, edits: Sequence[tuple[int, int]]) -> Tensor:
    """Return the pairs (N,2) of a cell and a distractor's cell that no edit has used yet; cells:
    (D,h,w).
    """
    places = range(cells[0].numel())
    used = [{edit[side] for edit in edits} for side in (0, 1)]
    free = [torch.tensor([place for place in places if place not in taken]) for taken in used]
    return torch.cartesian_prod(*free).to(cells.device)


def promising(
    cells: Tensor, spare: Tensor, pairs: Tensor, head: Head, target: int, most: int
) -> Tensor:
    """Return the pairs of the largest gain in log p(target), to first order: the product of the
    gradient and the exchange.
    """
    with torch.enable_grad():
        at = cells.clone().requires_grad_()
        (grad,) = torch.autograd.grad(head(at[None]).log_softmax(1)[0, target], at)
    slope, now = grad.flatten(1), cells.flatten(1)
    gain = slope.T @ spare.flatten(1) - (slope * now).sum(0)[:, None]  # (cells, distractor's cells)
    return pairs[gain[pairs[:, 0], pairs[:, 1]].topk(most).indices]


def best_exchange(
    cells: Tensor, spare: Tensor, pairs: Tensor, head: Head, target: int
) -> tuple[tuple[int, int], bool] | None:
    """Return the pair (i,j) whose exchange leads to the highest log p(target), and whether the
    target is then the class.

    cells, spare: (D,h,w), of the query and of the distractor. pairs: (N,2). Returns None where no
    pair has finite scores.
    """
    log_p, right = [], []
    for part in torch.split(pairs, CHUNK):
        tried = cells.flatten(1).repeat(len(part), 1, 1)
        given = spare.flatten(1).T[part[:, 1]]
        tried.scatter_(2, part[:, :1, None].expand(-1, len(cells), -1), given[:, :, None])
        scores = head(tried.view(len(part), *cells.shape))
        log_p.append(scores.log_softmax(1)[:, target].nan_to_num(-inf))
        right.append(scores.argmax(1) == target)
    best = int(torch.cat(log_p).argmax())
    if torch.cat(log_p)[best] == -inf:
        return None
    return (int(pairs[best, 0]), int(pairs[best, 1])), bool(torch.cat(right)[best])


def exchanged(cells: Tensor, spare: Tensor, i: int, j: int) -> Tensor:
    """Return the cells (D,h,w) with cell i replaced by the distractor's cell j."""
    flat = cells.flatten(1).clone()
    flat[:, i] = spare.flatten(1)[:, j]
    return flat.view_as(cells)


def paste(image: Tensor, mask: Tensor, other: Tensor, i: int, j: int, grid: Sequence[int]) -> None:
    """Replace the pixels of cell i by those of the distractor's cell j, and set the mask (1,H,W) to
    1 there.
    """
    to, source = block(i, grid, image.shape[1:]), block(j, grid, image.shape[1:])
    patch = other[:, *source]
    # Cells differ by a pixel where the grid does not divide the image.
    if patch.shape != image[:, *to].shape:
        patch = F.interpolate(patch[None], image[:, *to].shape[1:], mode="bilinear")[0]
    image[:, *to], mask[:, *to] = patch, 1.0


def block(cell: int, grid: Sequence[int], size: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image that belong to a cell; size: the image's (H,W); cells
    are counted along the rows of the grid.
    """
    at = divmod(cell, grid[1])
    ends = [
        (round(a * s / n), round((a + 1) * s / n)) for a, n, s in zip(at, grid, size, strict=True)
    ]
    return slice(*ends[0]), slice(*ends[1])
