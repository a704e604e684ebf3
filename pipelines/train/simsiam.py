"""SimSiam's training: two views of every image, the symmetric loss, and a check that the output has
not collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.strict import UserError
from pipelines.train.data import Samples
from pipelines.train.losses import jitter, normal
from pipelines.train.trainer import Loss, LossTrainer, State


class SimSiamTrainer(LossTrainer):
    """Trainer that makes the outputs of two views of an image similar, without labels."""

    normalised = True

    def loss(self, net: nn.Module) -> Loss:
        return lambda images, _, g: loss(net, images, self.weights, g)

    def finish(
        self, net: nn.Module, samples: Samples, spec: dict[str, Any], state: State
    ) -> tuple[dict[str, Any], State]:
        expect_no_collapse(net, samples, self.config.name, self.device)
        return without_predictor(spec, state)

    def holdout(self, model: Any) -> dict[str, Any]:
        return self.logged(holdout(model, self.held([]), self.weights, self.device))


# least spread of the output of a useful training; 1 is even over all directions
COLLAPSED = 0.1


def views(images: Tensor, w: dict[str, float], generator: torch.Generator) -> Tensor:
    """Return a random view of each image (B,3,H,W) in [0,1]: cropped, mirrored, in other colours
    and light, blurred and noisy.

    w: the terms of `train_losses.TERMS["simsiam"]`.
    """

    def draw() -> Tensor:
        return torch.rand(len(images), generator=generator)

    scale = 1 - w["crop"] * draw()
    mirror = torch.where(draw() < 0.5, -1.0, 1.0)
    x, y = ((1 - scale) * (2 * draw() - 1) for _ in range(2))
    zero = torch.zeros_like(scale)
    rows = torch.stack([scale * mirror, zero, x, zero, scale, y], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows.to(images), list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    angle, saturation = 2 * math.pi * draw(), 1.4 * draw()
    chosen = (draw() < w["colour"]).to(images.device)[:, None, None, None]
    return jitter(
        torch.where(chosen, recoloured(seen, angle, saturation), seen), w["jitter"], generator
    )


def recoloured(images: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Return images (B,3,H,W) with hues turned around the grey axis by angle (B,) in radians, and
    with the saturation multiplied by saturation (B,).
    """
    angle, saturation = (value.to(images)[:, None, None, None] for value in (angle, saturation))
    grey = images.mean(1, keepdim=True)
    colour = images - grey
    # the cross product with the grey axis
    across = (colour.roll(1, 1) - colour.roll(-1, 1)) / math.sqrt(3)
    return (grey + saturation * (angle.cos() * colour + angle.sin() * across)).clamp(0, 1)


def loss(net: Any, images: Tensor, w: dict[str, float], generator: torch.Generator) -> Tensor:
    """Return half of D(p1, z2) + D(p2, z1), where D is the negative cosine and no gradient flows
    through z (equations 1 to 4).
    """
    z1, z2 = (net(normal(views(images, w, generator))).float() for _ in range(2))
    p1, p2 = net.predictor(z1).float(), net.predictor(z2).float()
    near = F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()
    return -near / 2


def without_predictor(
    spec: dict[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the model config and the weights without the predictor, which only training needs."""
    kept = {key: value for key, value in state.items() if not key.startswith("predictor.")}
    return {**spec, "settings": {**spec["settings"], "hidden": 0}}, kept


def spread(z: Tensor) -> float:
    """Return the mean standard deviation of the l2-normalised outputs (N,D) per direction, times
    sqrt(D). It is near 1 when they are even over the sphere, and 0 when all are one point (section
    4.1).
    """
    return float(F.normalize(z.double(), dim=1).std(0, correction=0).mean()) * math.sqrt(z.shape[1])


def rank(z: Tensor) -> float:
    """Return how many directions the l2-normalised outputs (N,D) fill, from 1 to D: the exponential
    of the entropy of their covariance's spectrum (Roy & Vetterli 2007).
    """
    spectrum = torch.linalg.eigvalsh(torch.cov(F.normalize(z.double(), dim=1).T)).clamp(min=1e-12)
    shares = spectrum / spectrum.sum()
    return float((-(shares * shares.log()).sum()).exp())


@torch.no_grad()
def expect_no_collapse(net: nn.Module, samples: Samples, name: str, device: torch.device) -> None:
    """Raise UserError where the outputs of 256 training images are nearly one point."""
    net.eval()
    images = samples.images[:256].to(device).float() / 255
    got = spread(net(normal(images)).float().cpu())
    if len(images) > 1 and not got > COLLAPSED:
        raise UserError(
            f"{name}: expected outputs that differ, got a spread of {got:.3f} (1 is even): the"
            " training collapsed: a larger batch, another lr or more steps"
        )


@torch.no_grad()
def holdout(
    model: Any, samples: Samples, w: dict[str, float], device: torch.device
) -> dict[str, Any]:
    """Return the figures on holdout rows: spread, rank, mean cosine of two views of one image and
    of two images, and the share of views whose nearest other view is of the same image.
    """
    generator = torch.Generator().manual_seed(0)
    pairs: list[list[Tensor]] = [[], [], []]
    for images in torch.split(samples.images, 100):
        plain = images.to(device).float() / 255
        two = (views(plain, w, generator) for _ in range(2))
        for kept, shown in zip(pairs, (plain, *two), strict=True):
            kept.append(model(shown).float().cpu())
    z, first, second = (torch.cat(part) for part in pairs)
    cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    own = cosines.diagonal()
    others = (cosines.sum() - own.sum()) / max(1, len(z) * (len(z) - 1))
    return {
        "rows": len(z),
        "spread": round(spread(z), 4),
        "rank": round(rank(z), 2),
        "cosine_of_two_views": round(float(own.mean()), 4),
        "cosine_of_two_images": round(float(others), 4),
        "view_finds_its_own": round(
            float((cosines.argmax(1) == torch.arange(len(z))).float().mean()), 4
        ),
    }
