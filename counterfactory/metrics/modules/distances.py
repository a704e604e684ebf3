"""Distances of a counterfactual to its original: in pixels, by networks, in latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from counterfactory.metrics.latents import latent_ratio
from counterfactory.metrics.modules.states import MeanMetric, RateMetric
from counterfactory.metrics.perceptual import distances, diversity
from counterfactory.metrics.pixels import pixel_distances
from counterfactory.metrics.similarity import VERIFIED, cosine, verified

Network = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


class PixelDistance(MeanMetric):
    """Mean pixel distance: l1 (mean absolute change), l2 (root mean square) or linf (largest).

    Range [0,1], lower is better. ValueError where the norm is another.

    >>> metric = PixelDistance("l1")
    >>> metric.update(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2))
    >>> metric.compute()
    tensor(0.2000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, norm: Literal["l1", "l2", "linf"] = "l1", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if norm not in ("l1", "l2", "linf"):
            raise ValueError(f"norm: expected l1, l2 or linf, got {norm!r}")
        self.norm = norm

    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1] on the 8-bit grid."""
        self.add_rows(pixel_distances(original, counterfactual)[self.norm])


class PixelSparsity(MeanMetric):
    """Mean share of pixels that changed by more than 1/255 in at least one channel.

    Range [0,1], lower is better.

    >>> metric = PixelSparsity()
    >>> after = torch.zeros(1, 3, 2, 2)
    >>> after[..., 0, 0] = 1
    >>> metric.update(torch.zeros(1, 3, 2, 2), after)
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False

    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1] on the 8-bit grid."""
        self.add_rows(pixel_distances(original, counterfactual)["sparsity"])


class LPIPSDistance(MeanMetric):
    """Mean perceptual distance of a counterfactual to its original.

    network: two batches (B,3,H,W) in [0,1] to distances (B,). With the package lpips it is
    `lambda a, b: net(a, b, normalize=True).flatten()`, where `net = lpips.LPIPS(net="alex")`. Lower
    is better. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018.

    >>> metric = LPIPSDistance(lambda a, b: (a - b).square().mean((1, 2, 3)))
    >>> metric.update(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, network: Distance, batch: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network, self.batch = network, batch

    @torch.inference_mode()
    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1]."""
        self.add_rows(distances(self.network, original, counterfactual, self.batch))


class LPIPSDiversity(MeanMetric):
    """Mean perceptual distance between the answers to one query (sigma_L).

    network: as in `LPIPSDistance`. flipped_only: compare only answers that flipped. A query with
    fewer than two answers does not count. Higher is better. Jeanneret et al., "Diffusion Models for
    Counterfactual Explanations", ACCV 2022.

    >>> metric = LPIPSDiversity(lambda a, b: (a - b).abs().mean((1, 2, 3)))
    >>> metric.update(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(
        self, network: Distance, *, flipped_only: bool = False, batch: int = 64, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.network, self.flipped_only, self.batch = network, flipped_only, batch

    @torch.inference_mode()
    def update(self, answers: Tensor, flipped: Tensor | None = None) -> None:
        """Add one query: all answers to it (k,3,H,W) in [0,1].

        flipped: (k,) bool, the answers that have the target class; needed for flipped_only
        (ValueError without it).
        """
        if flipped is None:
            if self.flipped_only:
                raise ValueError("expected which answers flipped (flipped_only), got none")
            flipped = torch.ones(len(answers), dtype=torch.bool)
        every, valid = diversity(self.network, answers, flipped, self.batch)
        found = valid if self.flipped_only else every
        self.add_rows(torch.tensor([torch.nan if found is None else found], dtype=torch.float64))


class S3(MeanMetric):
    """S3: mean cosine of SimSiam's outputs for original and counterfactual.

    network: images (B,3,H,W) in [0,1] to the outputs (B,D) of a SimSiam projector. Range [-1,1],
    higher is better. Jeanneret et al., "Adversarial Counterfactual Visual Explanations" (ACE),
    CVPR 2023.

    >>> metric = S3(lambda images: images.mean((2, 3)))
    >>> metric.update(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4) / 2)
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, network: Network, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network

    @torch.inference_mode()
    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1]."""
        self.add_rows(cosine(self.network(original), self.network(counterfactual)))


class FaceSimilarity(S3):
    """FS: mean cosine of a face network's embeddings of original and counterfactual.

    network: images (B,3,H,W) in [0,1] to embeddings (B,D). Range [-1,1], higher is better.

    >>> metric = FaceSimilarity(lambda images: images.mean((2, 3)))
    >>> metric.update(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4) / 2)
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """


class FaceVerification(RateMetric):
    """FVA: share of pairs whose two faces are the same person by a face network.

    network: images (B,3,H,W) in [0,1] to embeddings (B,D). threshold: two faces are the same
    person where their cosine is above it. Range [0,1], higher is better.

    >>> metric = FaceVerification(lambda images: images.mean((2, 3)))
    >>> metric.update(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4) / 2)
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, network: Network, threshold: float = VERIFIED, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network, self.threshold = network, threshold

    @torch.inference_mode()
    def update(self, original: Tensor, counterfactual: Tensor, rows: Tensor | None = None) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1].

        rows: (B,) the row that each answer belongs to, where rows have several answers.
        """
        found = cosine(self.network(original), self.network(counterfactual))
        self.add_rows(verified(found, self.threshold), rows)


class LatentPerturbationRatio(MeanMetric):
    """LPR: mean share of latent coordinates that changed by more than the tolerance.

    encoder: images (B,3,H,W) in [0,1] to latents (B,...). Use the same encoder for all methods.
    Range [0,1], lower is better. Yang et al., "Generative Counterfactuals for Neural Networks via
    Attribute-Informed Perturbation", eq. 8.

    >>> metric = LatentPerturbationRatio(lambda images: images.mean((2, 3)), tolerance=0.1)
    >>> after = torch.zeros(1, 3, 4, 4)
    >>> after[:, 0] = 1
    >>> metric.update(torch.zeros(1, 3, 4, 4), after)
    >>> metric.compute()
    tensor(0.3333, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, encoder: Network, tolerance: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder, self.tolerance = encoder, tolerance

    @torch.inference_mode()
    def update(self, original: Tensor, counterfactual: Tensor) -> None:
        """Add a batch of pairs (B,3,H,W) in [0,1]."""
        before, after = self.encoder(original), self.encoder(counterfactual)
        self.add_rows(latent_ratio(before, after, self.tolerance))
