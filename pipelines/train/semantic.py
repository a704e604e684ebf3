"""The semantic autoencoder's training: rebuild each image from a style per region and its mask.
Small regions count as much as large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.semantic import average
from pipelines.train import holdout as train_holdout
from pipelines.train.basic import expect_attributes
from pipelines.train.data import Samples, bits
from pipelines.train.losses import edges
from pipelines.train.trainer import Loss, LossTrainer, State


class SemanticTrainer(LossTrainer):
    """Trainer of rebuilding from a style for every region of a mask."""

    names = "classes"

    def columns(self) -> list[str]:
        expect_masks(self.config)
        return self.config.labels

    def targets(self, samples: Samples) -> Tensor:
        return targets(samples, self.config)

    def derived(self) -> dict[str, Any]:
        counts = {"regions": len(self.config.classes), "attributes": len(self.config.labels)}
        return self.side() | counts

    def loss(self, net: nn.Module) -> Loss:
        expect_attributes(self)
        return lambda images, told, g: loss(net, images, told, self.weights, g)

    def finish(
        self, net: nn.Module, samples: Samples, spec: dict[str, Any], state: State
    ) -> tuple[dict[str, Any], State]:
        return without_aids(spec, state)

    def holdout(self, model: Any) -> dict[str, Any]:
        samples = self.held([])
        masks = masks_of(samples, len(self.config.classes))
        return self.logged(holdout(model, samples, masks, self.device))


def expect_masks(config: TrainConfig) -> None:
    """Raise UserError where the config has no column of masks, not 2 to 256 regions in `classes`,
    or `flip`.
    """
    if config.data.mask is None:
        raise UserError(f"{config.name}: expected data.mask, the column of masks, got none")
    if len(config.classes) < 2 or len(config.classes) > 256:
        raise UserError(
            f"{config.name}: expected from 2 to 256 regions in classes, got {len(config.classes)}"
        )
    if config.flip:
        raise UserError(
            f"{config.name}: expected flip: false, since masks are not mirrored, got true"
        )


def masks_of(samples: Samples, regions: int) -> Tensor:
    """Return the masks of samples, (N,H,W) uint8; UserError where a value is not a region's."""
    assert samples.masks is not None
    if int(samples.masks.max()) >= regions:
        raise UserError(
            f"data.mask: expected values below {regions}, one per region, got"
            f" {int(samples.masks.max())}"
        )
    return samples.masks


def targets(samples: Samples, config: TrainConfig) -> Tensor:
    """Return what the loss needs of samples, (N, H*W + A) uint8: the mask, and attributes of 0 and
    1.
    """
    return torch.cat(
        [masks_of(samples, len(config.classes)).flatten(1), bits(samples, config.labels).byte()], 1
    )


def loss(net: Any, images: Tensor, told: Tensor, w: dict[str, float], g: torch.Generator) -> Tensor:
    """Return the loss: rebuilding from noisy styles (in pixels, edges and per region), the styles'
    divergence from the normal, and the attribute head.

    told: as from `targets`.
    """
    pixels = images.shape[2] * images.shape[3]
    masks, has = (
        told[:, :pixels].long().view(len(images), *images.shape[2:]),
        told[:, pixels:].float(),
    )
    mean = net.encode(images, masks)
    log_variance = net.log_variance.clamp(-8, 2).expand_as(mean)
    noise = torch.randn(mean.shape, generator=g).to(mean.device)
    styles = mean + (log_variance / 2).exp() * noise
    error = net.decode(styles, masks).float() - images
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean() / 2
    total: Tensor = w["pixel"] * error.abs().mean() + w["edges"] * edges(error) + w["kl"] * kl
    total = total + w["regions"] * unexplained(error, images, masks, net.regions).mean()
    if w["attributes"]:
        total = total + w["attributes"] * F.binary_cross_entropy_with_logits(
            net.probe(styles.flatten(1)).float(), has
        )
    return total


def without_aids(
    spec: dict[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the model config and the weights without the attribute head and the styles' noise,
    which only training needs.
    """
    kept = {
        key: value for key, value in state.items() if not key.startswith(("probe.", "log_variance"))
    }
    return {**spec, "settings": {**spec["settings"], "attributes": None}}, kept


def unexplained(error: Tensor, images: Tensor, masks: Tensor, regions: int) -> Tensor:
    """Return the share of each region's variance within the image that a rebuilding misses, (B,R);
    0 where a region is absent.

    The error is squared: the absolute error of a thin line, such as a mouth's, is least where the
    line is missing. 0.02 is added to the variance, so that regions with hardly any variance, such
    as a backdrop, do not outweigh all others.
    """
    squares = torch.cat([error.square(), images.square(), images], 1)
    missed, square, mean = average(squares, masks, regions).chunk(3, dim=2)
    share: Tensor = missed.mean(2) / ((square - mean.square()).mean(2) + 0.02)
    return share


@torch.no_grad()
def holdout(model: Any, samples: Samples, masks: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the figures on holdout rows: mean absolute error per pixel in [0,1] and PSNR in dB of
    rebuilt images, and the error in each region.

    leak: where one region gets another face's style, the share of all changes outside of that
    region, as a mean over the regions.
    """
    psnr, absolute, errors, leaks = 0.0, 0.0, [], []
    for part, x in train_holdout.batches(samples, device):
        mask = masks[part].to(device).long()
        styles = model.encode(x, mask)
        rebuilt = model.decode(styles, mask)
        error = rebuilt - x
        absolute += float(error.abs().mean((1, 2, 3)).sum())
        psnr += float(-10 * error.square().mean((1, 2, 3)).clamp(min=1e-10).log10().sum())
        errors.append(average(error.abs(), mask, len(model.regions)).mean(2).cpu())
        for region in range(len(model.regions)) if part.start == 0 else ():
            other = styles.clone()
            other[:, region] = styles.roll(1, 0)[:, region]
            moved = (model.decode(other, mask) - rebuilt).abs().sum(1)
            leaks.append(float(moved[mask != region].sum() / moved.sum().clamp(min=1e-6)))
    count, each = len(samples), torch.cat(errors)
    there = (each > 0).sum(0).clamp(min=1)
    per = {
        name: round(float(each[:, i].sum() / there[i]), 4) for i, name in enumerate(model.regions)
    }
    told = {
        "rows": count,
        "l1": round(absolute / count, 5),
        "psnr": round(psnr / count, 2),
        "regions": per,
    }
    return {**told, "leak": round(sum(leaks) / len(leaks), 4)}
