"""Figures of a trained model on holdout rows, measured on the written file through its wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipelines.train.data import Samples, bits
from pipelines.train.losses import edges

BATCH = 100


def batches(samples: Samples, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices and their images (B,3,S,S) float32 in [0,1]."""
    for start in range(0, len(samples), BATCH):
        part = slice(start, min(start + BATCH, len(samples)))
        yield part, samples.images[part].to(device).float() / 255


@torch.no_grad()
def classifier(
    model: Any, samples: Samples, labels: Tensor, groups: list[str], device: torch.device
) -> dict[str, Any]:
    """Return the accuracy overall, per class, and per label x value of each boolean column of
    `groups`, with the worst of these groups.
    """
    right = torch.cat(
        [model(x).argmax(1).cpu() == labels[part] for part, x in batches(samples, device)]
    )
    out: dict[str, Any] = {"rows": len(samples), "accuracy": share(right)}
    out["per_class"] = {name: share(right[labels == k]) for k, name in enumerate(model.classes)}
    values = bits(samples, groups).bool()
    table = {}
    for column, name in enumerate(groups):
        for k, label in enumerate(model.classes):
            for value in (False, True):
                rows = (labels == k) & (values[:, column] == value)
                if rows.any():
                    table[f"{label}, {name}={int(value)}"] = {
                        "accuracy": share(right[rows]),
                        "rows": int(rows.sum()),
                    }
    if table:
        out["worst_group"] = min(table, key=lambda key: float(table[key]["accuracy"]))
        out["groups"] = table
    return out


@torch.no_grad()
def attributes(
    model: Any, samples: Samples, labels: Tensor, device: torch.device
) -> dict[str, Any]:
    """Return the accuracy per attribute, and the mean of its accuracies on positives and on
    negatives.
    """
    guess = torch.cat([model(x).cpu() > 0.5 for _, x in batches(samples, device)])
    right, truth = guess == labels.bool(), labels.bool()
    per = {}
    for column, name in enumerate(model.attributes):
        of, yes = right[:, column], truth[:, column]
        sides = [share(of[side]) for side in (yes, ~yes) if side.any()]
        per[name] = {
            "accuracy": share(of),
            "balanced": round(sum(sides) / len(sides), 4),
            "positive": share(yes),
        }
    lowest = min(float(value["accuracy"]) for value in per.values())
    return {
        "rows": len(samples),
        "mean_accuracy": share(right),
        "lowest_accuracy": lowest,
        "attributes": per,
    }


@torch.no_grad()
def autoencoder(model: Any, samples: Samples, device: torch.device) -> dict[str, Any]:
    """Return the mean absolute error per pixel in [0,1], the same of differences between
    neighbours, the PSNR in dB, and how many latent coordinates vary.
    """
    absolute, edge, psnr, codes = 0.0, 0.0, 0.0, []
    for _, x in batches(samples, device):
        z = model.encode(x)
        error = model.decode(z) - x
        absolute += float(error.abs().mean((1, 2, 3)).sum())
        edge += float(edges(error)) * len(x)
        psnr += float(-10 * error.square().mean((1, 2, 3)).clamp(min=1e-10).log10().sum())
        codes.append(z.cpu().flatten(1))
    count, spread = len(samples), torch.cat(codes).std(0, correction=0)
    out = {
        "rows": count,
        "l1": round(absolute / count, 5),
        "edges": round(edge / count, 5),
        "psnr": round(psnr / count, 2),
    }
    return {**out, "latent": len(spread), "latent_used": int((spread > 0.1).sum())}


@torch.no_grad()
def denoiser(model: Any, samples: Samples, device: torch.device) -> dict[str, Any]:
    """Return the mean squared error of the predicted noise at five noise levels, and of the clean
    image that follows from it, in [-1,1].
    """
    bar, generator = model.alphas_cumprod, torch.Generator().manual_seed(0)
    out: dict[str, Any] = {"rows": len(samples)}
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        step = int(fraction * len(bar))
        a, noise_error, image_error = bar[step], 0.0, 0.0
        for _, x in batches(samples, device):
            x0, eps = x * 2 - 1, torch.randn(x.shape, generator=generator).to(device)
            x_t = (a.sqrt() * x0 + (1 - a).sqrt() * eps).float()
            guess = model(x_t, torch.full((len(x),), step, device=device))[0]
            noise_error += float((guess - eps).square().mean((1, 2, 3)).sum())
            clean = ((x_t - (1 - a).sqrt() * guess) / a.sqrt()).clamp(-1, 1)
            image_error += float((clean - x0).square().mean((1, 2, 3)).sum())
        noise, image = round(noise_error / len(samples), 5), round(image_error / len(samples), 5)
        out[f"step_{step}"] = {"noise_mse": noise, "image_mse": image}
    return out


def share(of: Tensor) -> float:
    """Return the share of true values in a boolean tensor, rounded to four digits."""
    return round(float(of.float().mean()), 4)
