"""Distances between the set of originals and the set of counterfactuals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from counterfactory.metrics import kid, moments
from counterfactory.metrics.buckets import BUCKETS, buckets, hashes
from counterfactory.metrics.estimate import Estimate
from counterfactory.metrics.fid import SEED, BucketMoments, sfid
from counterfactory.metrics.kid import Sample
from counterfactory.metrics.modules.states import SumMetric, floats
from counterfactory.metrics.moments import Moments, frechet


class FID(FrechetInceptionDistance):
    """FID: Frechet distance between the features of originals and of counterfactuals.

    This is torchmetrics' metric with its arguments and states. feature: 2048 for its Inception
    network, which needs torch-fidelity, or your own network (images to (B,D)). Only the final
    formula is from this package: it computes in float64, with the root of a symmetric matrix. Lower
    is better. Below 2,048 rows per side, compare KID instead. Heusel et al., "GANs Trained by a Two
    Time-Scale Update Rule", NeurIPS 2017.

    >>> class Colour(torch.nn.Module):
    ...     num_features = 3
    ...     def forward(self, images):
    ...         return images.mean((2, 3))
    >>> metric = FID(Colour(), normalize=True)
    >>> images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> metric.update(images, real=True)
    >>> metric.update(images / 2 + 0.5, real=False)
    >>> f"{metric.compute():.1f}"
    '0.2'
    """

    def compute(self) -> Tensor:
        """Return the distance, float64; NaN where a side has fewer than two rows."""
        real, fake = (
            Moments(
                int(getattr(self, f"{side}_features_num_samples")),
                floats(getattr(self, f"{side}_features_sum")),
                floats(getattr(self, f"{side}_features_cov_sum")),
            )
            for side in ("real", "fake")
        )
        found = frechet(real, fake)
        return torch.tensor(torch.nan if found is None else found, dtype=torch.float64)


class SplitFID(SumMetric):
    """Split FID: mean FID between originals of one half and counterfactuals of the other half.

    The mean is over both pairings and over seeded splits. No counterfactual is compared with a set
    that has its own original. network: images to features (B,D). width: D. The states take 320 D^2
    bytes. Lower is better. ACE, CVPR 2023.

    >>> metric = SplitFID(lambda images: images.mean((2, 3)), width=3)
    >>> images = torch.rand(80, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> ids = [f"row-{i}" for i in range(80)]
    >>> metric.update(images, ids, real=True)
    >>> metric.update(images / 2 + 0.5, ids, real=False)
    >>> f"{metric.compute():.1f}"
    '0.2'
    """

    higher_is_better = False

    def __init__(
        self,
        network: nn.Module | Any,
        width: int,
        *,
        repeats: int | None = None,
        seed: int = SEED,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network, self.width, self.repeats, self.seed = network, width, repeats, seed
        for side in ("real", "fake"):
            for bucket in range(BUCKETS):
                self.hold(Moments.zero(width), f"{side}_{bucket}_")

    @torch.inference_mode()
    def update(self, images: Tensor, ids: Sequence[str], real: bool) -> None:
        """Add a batch of originals (real) or counterfactuals.

        images: (B,3,H,W), as the network takes them. ids: the names of the rows. An original and
        its counterfactuals have the same name.
        """
        features, places = floats(self.network(images)), buckets(ids)
        for bucket in np.unique(places).tolist():
            more = moments.update(features[places == bucket])
            self.add(more, f"{'real' if real else 'fake'}_{bucket}_")

    def estimate(self) -> Estimate:
        """Return the distance and n."""
        real, fake = (
            BucketMoments(
                self.width, {b: self.held(Moments, f"{side}_{b}_") for b in range(BUCKETS)}
            )
            for side in ("real", "fake")
        )
        return sfid(real, fake, self.repeats, self.seed)


class KID(KernelInceptionDistance):
    """KID: squared MMD with the kernel (x'y/D + 1)^3, unbiased also for few rows.

    feature: as in torchmetrics, 2048 for its Inception network, which needs torch-fidelity, or your
    own module; the feature states are torchmetrics', too. rows: the largest number of rows stored
    per side; they are the rows whose ids have the smallest hashes. apart: exclude a row's own
    counterfactual from the cross term. Lower is better; the value may be negative. Binkowski et
    al., "Demystifying MMD GANs", ICLR 2018.

    >>> class Colour(torch.nn.Module):
    ...     def forward(self, images):
    ...         return images.mean((2, 3))
    >>> metric = KID(Colour())
    >>> images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> ids = [f"row-{i}" for i in range(8)]
    >>> metric.update(images, ids, real=True)
    >>> metric.update(images / 2 + 0.5, ids, real=False)
    >>> f"{metric.compute():.2f}"
    '0.57'
    """

    real_hashes: list[Tensor]
    fake_hashes: list[Tensor]

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        *,
        rows: int = kid.ROWS,
        apart: bool = False,
        **kwargs: Any,
    ):
        with warnings.catch_warnings():  # it warns of storing all features; this class does not
            warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
            super().__init__(feature, **kwargs)
        self.rows, self.apart = rows, apart
        for side in ("real", "fake"):
            self.add_state(f"{side}_hashes", [], dist_reduce_fx=None)
            self.add_state(f"{side}_rows", torch.tensor(0), dist_reduce_fx="sum")

    @torch.inference_mode()
    def update(self, images: Tensor, ids: Sequence[str], real: bool) -> None:  # type: ignore[override]
        """Add a batch of originals (real) or counterfactuals.

        images: as the network takes them. ids: the names of the rows. An original and its
        counterfactuals have the same name.
        """
        side = "real" if real else "fake"
        super().update(images, real)
        keys = torch.from_numpy(hashes(ids).view(np.int64).copy())
        getattr(self, f"{side}_hashes").append(keys.to(images.device))
        kept = self._sample(side)
        setattr(self, f"{side}_rows", getattr(self, f"{side}_rows") + len(ids))
        for name, values in (("features", kept.features), ("hashes", kept.hashes.view(np.int64))):
            setattr(self, f"{side}_{name}", [torch.from_numpy(values).to(images.device)])

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the distance, float64; NaN where a side has too few rows."""
        value = self.estimate().value
        return torch.tensor(torch.nan if value is None else value, dtype=torch.float64)

    def estimate(self) -> Estimate:
        """Return the distance with its 95 % interval, and n."""
        return kid.compute(self._sample("real"), self._sample("fake"), apart=self.apart)

    def _sample(self, side: str) -> Sample:
        keys = [part.cpu() for part in getattr(self, f"{side}_hashes")]
        if not keys:
            return Sample(0, self.rows, np.zeros(0, np.uint64), np.zeros((0, 1)))
        features = floats(torch.cat([part.cpu() for part in getattr(self, f"{side}_features")]))
        found = kid.update(features, torch.cat(keys).numpy().view(np.uint64), self.rows)
        n = max(int(getattr(self, f"{side}_rows")), found.n)
        return Sample(n, self.rows, found.hashes, found.features)
