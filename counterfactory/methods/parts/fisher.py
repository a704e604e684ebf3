"""Which coordinates of a latent a decision depends on together: Fisher information, and groups of
them.
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
    """E[g g'] over images, g the gradient by the latent of the log-odds of the two likeliest
    classes; (D,D) float64.

    Fisher information is of log p(y|z), y drawn from the classifier, which weighs an image by p (1
    - p): by nothing where it is sure. Here, as in the code of Rodriguez et al. 2021, the log-odds
    count alike everywhere. images: (N,3,H,W) uint8; those whose gradient is not finite are left
    out.
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
    """Group (D,) int64 of each coordinate, 0 the group that holds most information; each group has
    one or more.

    Spectral clustering (Ng et al. 2001) with the information, shifted and scaled to [0,1], as the
    affinity: the same groups every time. ValueError where there are fewer coordinates than groups,
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
    """Cluster (N,) int64 of each of the points (N,D) of unit length, none empty: k-means without
    chance.

    The first centres are as Ng et al. 2001 take them: each next point the one most at right angles
    to those before.
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
            # the worst placed of those not alone
            now[far.amin(1).where(crowded, -torch.ones(())).argmax()] = lost
        if torch.equal(now, found):
            break
        found = now
        centres = torch.stack([points[found == j].mean(0) for j in range(count)])
    return found


@lru_cache(maxsize=4)  # once for a worker's models, whatever the batches
def fisher_groups(
    classifier: Classifier,
    autoencoder: Autoencoder | AttributeAutoencoder,
    distractors: Distractors,
    count: int,
    residual: bool,
) -> Tensor:
    """Groups of the latent's coordinates by the Fisher information over a bank of images; see
    spectral_groups.
    """
    return spectral_groups(
        fisher_information(classifier, autoencoder, distractors.images, residual), count
    )
