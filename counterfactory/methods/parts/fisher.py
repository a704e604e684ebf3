"""Fisher information of a decision in a latent, and groups of the coordinates that the decision
depends on together.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Any

import torch
from torch import Tensor

from counterfactory.methods.parts.latents import start
from counterfactory.models.interfaces import (
    AttributeAutoencoder,
    Autoencoder,
    Classifier,
    Distractors,
)

BATCH = 32


def fisher_information(
    classifier: Classifier, autoencoder: Any, images: Tensor, residual: bool
) -> Tensor:
    """Return E[g g'] over images, where g is the gradient by the latent of the log-odds of the two
    likeliest classes; (D,D) float64.

    Fisher information uses log p(y|z), with y drawn from the classifier, so that an image has the
    weight p (1 - p), which is almost 0 where the classifier is sure. Here, as in the code of
    Rodriguez et al. 2021, the log-odds have the same weight everywhere. images: (N,3,H,W) uint8;
    images whose gradient is not finite are skipped.
    """
    total: Tensor | float = 0.0
    for part in torch.split(images, BATCH):
        z0, image, _ = start(autoencoder, part.float() / 255, residual)
        with torch.enable_grad():
            z = z0.clone().requires_grad_()
            best, second = (
                classifier(image(torch.arange(len(z), device=z.device), z))
                .topk(2, dim=1)
                .values.unbind(1)
            )
            (grad,) = torch.autograd.grad((best - second).sum(), z)
        grad = grad.flatten(1).double()
        grad = grad[grad.isfinite().all(1)]
        total = total + grad.T @ grad
    assert isinstance(total, Tensor)  # a bank holds one image or more
    return total / len(images)


def spectral_groups(information: Tensor, count: int) -> Tensor:
    """Return the group (D,) int64 of each coordinate; group 0 holds the most information, and no
    group is empty.

    Spectral clustering (Ng et al. 2001); the affinity is the information, shifted and scaled to
    [0,1]. The groups are deterministic. ValueError where there are fewer coordinates than groups,
    or no information.
    """
    if len(information) < count:
        raise ValueError(
            f"expected answers <= {len(information)}, the latent's coordinates, got {count}"
        )
    if not bool(information.isfinite().all()) or float(information.abs().max()) == 0:
        raise ValueError(
            "expected a decision that depends on the latent, got gradients of zero or none finite"
        )
    affinity = information.cpu() - information.cpu().min()
    affinity = affinity / affinity.max()
    scale = affinity.sum(1).clamp(min=1e-12).rsqrt()
    vectors = torch.linalg.eigh(scale[:, None] * affinity * scale).eigenvectors[:, -count:]
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    found = clusters(vectors, count)
    held = torch.zeros(count, dtype=torch.float64).index_add_(
        0, found, information.diagonal().cpu()
    )
    return held.argsort(descending=True).argsort()[found]


def clusters(points: Tensor, count: int) -> Tensor:
    """Return the cluster (N,) int64 of each point (N,D) of unit length, by deterministic k-means;
    no cluster is empty.

    The first centres are chosen as in Ng et al. 2001: each next centre is the point closest to a
    right angle to the centres before.
    """
    chosen = [0]
    for _ in range(count - 1):
        turned = (points @ points[chosen].T).abs().amax(1)
        turned[chosen] = inf
        chosen.append(int(turned.argmin()))
    centres, found = points[chosen].clone(), torch.full((len(points),), -1)
    for _ in range(100):
        far = torch.cdist(points, centres)
        now = far.argmin(1)
        for lost in (torch.bincount(now, minlength=count) == 0).nonzero()[:, 0].tolist():
            crowded = torch.bincount(now, minlength=count)[now] > 1
            # the point farthest from its centre, among points that share a cluster
            now[far.amin(1).where(crowded, -torch.ones(())).argmax()] = lost
        if torch.equal(now, found):
            break
        found = now
        centres = torch.stack([points[found == j].mean(0) for j in range(count)])
    return found


@lru_cache(maxsize=4)  # computed once for a worker's models, for all batches
def fisher_groups(
    classifier: Classifier,
    autoencoder: Autoencoder | AttributeAutoencoder,
    distractors: Distractors,
    count: int,
    residual: bool,
) -> Tensor:
    """Return groups of the latent's coordinates by the Fisher information over a bank of images;
    see spectral_groups.
    """
    return spectral_groups(
        fisher_information(classifier, autoencoder, distractors.images, residual), count
    )
