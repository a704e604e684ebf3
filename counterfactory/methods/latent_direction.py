"""A latent attack without gradients: along a fitted direction, then in random blocks, then back by
bisection.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from counterfactory.methods.contract import (
    Budget,
    ImageAnswers,
    ImageQueries,
    row_generators,
    settle,
    stored_verdict,
)
from counterfactory.methods.parts.latents import Image, start
from counterfactory.methods.parts.settings import check_settings
from counterfactory.models.interfaces import Autoencoder, Classifier, Directions


@dataclass(frozen=True, kw_only=True)
class LatentDirection:
    """Search on an autoencoder's latent that asks the classifier for answers alone.

    The line: x' at first, 2 first, 4 first, ... and at last standard deviations along the direction
    from the source to the target class (role `direction`), until the stored image passes. Blocks,
    for a row that did not pass: from its best point, a random share of the coordinates moves by
    reach standard deviations; a move is kept where p(target) does not fall. Bisection, for a row
    that passed: the nearest point on the way there that still passes.

    ask: "scores", or "labels" for a classifier that returns no more than a class: then any flip
    passes, and every random move is kept until one does. threshold: probability of the target at
    which a row is done, where scores are asked. first, last: of the line, in
    standard deviations. block: share of the coordinates that a random move takes. reach: standard
    deviations of a random move. bisections: their number. max_queries: images that the classifier
    is asked about, at most; `steps` counts them. residual: x' = clip(x + dec(z) - dec(z0)), which
    preserves what the autoencoder loses (False: x' = dec(z)).

    Kin: Global Counterfactual Directions (Sobieski & Biecek 2024, arXiv 2404.12488), which walk
    along one direction of a diffusion autoencoder's latent.
    """

    name: ClassVar[str] = "latent-direction"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("autoencoder", "direction")

    ask: str = "scores"
    threshold: float = 0.75
    first: float = 0.5
    last: float = 15.0
    block: float = 0.05
    reach: float = 3.0
    bisections: int = 8
    max_queries: int = 500
    residual: bool = True

    def __post_init__(self) -> None:
        check_settings(
            self,
            ask=("scores", "labels"),
            threshold=(0, 1),
            first=(1e-6, inf),
            last=(1e-6, inf),
            block=(0, 1),
            reach=(0, inf),
            bisections=(0, inf),
            max_queries=(1, inf),
        )
        if self.last < self.first:
            raise ValueError(f"expected last of at least first, {self.first}, got {self.last}")

    @property
    def access(self) -> str:
        """Return what the search uses of the classifier."""
        return self.ask

    def __call__(
        self,
        queries: ImageQueries,
        *,
        classifier: Classifier,
        autoencoder: Autoencoder,
        direction: Directions,
    ) -> ImageAnswers:
        """Return counterfactuals; for a row that never passes, the image of highest p(target)."""
        x, budget = queries.images, Budget.of(len(queries))
        everything = torch.arange(len(x), device=x.device)
        direction.expect(autoencoder, classifier.classes, (x.shape[2], x.shape[3]))
        z0, image, calls = start(autoencoder, x, self.residual)
        budget.spend(everything, forward=calls)
        threshold = self.threshold if self.ask == "scores" else None
        search = Search(threshold, self.max_queries, queries, z0, image, classifier, budget)
        with torch.no_grad():
            failed = self.line(search, direction(z0, queries.source, queries.target))
            self.blocks(search, direction.spread(z0))
            self.back(search, failed)
        # The row already has its target, and no try is better than the query.
        there = (queries.source == queries.target) & ~search.passed
        search.z[there], search.images[there] = z0[there], x[there]
        return settle(
            classifier,
            search.images,
            queries,
            ["not converged"] * len(x),
            budget,
            steps=search.asked,
            latent_before=z0.flatten(1),
            latent_after=search.z.flatten(1),
        )

    def line(self, search: Search, way: Tensor) -> Tensor:
        """Ask along the way (B,...) until each row passes; return the share (B,) of the passing
        step that failed before, 0 where no step passed.
        """
        failed, before, far = torch.zeros(len(way), device=way.device), 0.0, self.first
        while True:
            rows = search.open()
            good = search.ask(rows, search.z0[rows] + far * way[rows])
            failed[rows[good]] = before / far
            if far >= self.last:
                return failed
            before, far = far, min(2 * far, self.last)

    def blocks(self, search: Search, spread: Tensor) -> None:
        """Move random blocks of the rows that have not passed; leave queries for the bisection."""
        generators = row_generators(search.queries.seed)
        while len(rows := search.open(self.bisections)):
            moves = []
            for row in rows.tolist():
                drawn = torch.rand(spread.shape, generator=generators[row]) < self.block
                moves.append(torch.randn(spread.shape, generator=generators[row]) * drawn)
            move = self.reach * spread * torch.stack(moves).to(spread)
            search.ask(rows, search.z[rows] + move)

    def back(self, search: Search, failed: Tensor) -> None:
        """Move the rows that passed towards their start; failed: (B,) the share of the way that is
        known to fail.
        """
        far = search.z.clone()
        low, high = failed.clone(), torch.ones_like(failed)
        across = (-1,) + (1,) * (far.ndim - 1)
        for _ in range(self.bisections):
            rows = (search.passed & (search.asked.to(far.device) < self.max_queries)).nonzero()[
                :, 0
            ]
            if not len(rows):
                return
            middle = (low[rows] + high[rows]) / 2
            z = torch.lerp(search.z0[rows], far[rows], middle.view(across))
            good = search.ask(rows, z)
            high[rows[good]], low[rows[~good]] = middle[good], middle[~good]


class Search:
    """The state of a search: each row's best latent z, its image and p(target), whether it passed,
    and how often the classifier was asked (asked, on the CPU). threshold: None where only labels
    are used; p is then 0 or 1.
    """

    def __init__(
        self,
        threshold: float | None,
        most: int,
        queries: ImageQueries,
        z0: Tensor,
        image: Image,
        classifier: Classifier,
        budget: Budget,
    ) -> None:
        self.threshold, self.most, self.queries, self.z0 = threshold, most, queries, z0
        self.image, self.classifier, self.budget = image, classifier, budget
        rows = len(z0)
        self.z, self.images = z0.clone(), queries.images.clone()
        self.p = torch.full((rows,), -1.0, device=z0.device)
        self.passed = torch.zeros(rows, dtype=torch.bool, device=z0.device)
        self.asked = torch.zeros(rows, dtype=torch.int64)

    def open(self, keep: int = 0) -> Tensor:
        """Return the rows (n,) that have not passed and have more than `keep` queries left."""
        left = self.asked.to(self.passed.device) < self.most - keep
        return (~self.passed & left).nonzero()[:, 0]

    def ask(self, rows: Tensor, z: Tensor) -> Tensor:
        """Return which of the latents (n,...) pass, (n,) bool; keep those that pass, and of rows
        that have not passed those whose p(target) does not fall.
        """
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=z.device)
        made = self.image(rows, z)
        flips, p = stored_verdict(self.classifier, made, self.queries.target[rows])
        self.budget.spend(rows, forward=2)
        self.asked[rows.cpu()] += 1
        if self.threshold is None:
            p, good = flips.to(p), flips
        else:
            good = flips & (p > self.threshold)
        kept = good | (~self.passed[rows] & (p >= self.p[rows]))
        self.z[rows[kept]], self.images[rows[kept]] = z[kept], made[kept]
        self.p[rows[kept]] = p[kept]
        self.passed[rows[good]] = True
        return good
