"""The doctor's checks of a classifier: its outputs, and whether it gets images as in its
training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pipelines.doctor.finding import Finding, ok, problem, warning

Statistics = tuple[str, list[float], list[float]]
NORMALISATIONS: tuple[Statistics, ...] = (
    ("no mean and std (images in [0,1])", [0.0], [1.0]),
    ("mean 0.5 and std 0.5 (images in [-1,1])", [0.5], [0.5]),
    ("ImageNet's mean and std", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ("mean 0 and std 1/255 (images in [0,255])", [0.0], [1 / 255]),
)
BATCH = 32
TRIED = 8  # images that are tried in several ways
ROUNDING = 1e-3  # of a probability; another batch size changes less


def check_classifier(
    name: str, model: Any, images: Tensor, labels: Sequence[int | None]
) -> tuple[list[Finding], Tensor | None]:
    """Check a wrapped classifier on sampled images (n,3,H,W).

    Returns the findings and its predictions (n,), or None where it fails. labels: class index per
    image, or None.
    """
    found: list[Finding] = []
    try:
        scores = in_batches(model, images)
    except Exception as error:  # a foreign network may raise anything
        text = f"fails on images of {images.shape[-1]} px: {type(error).__name__}: {error}"
        try:  # as a worker does
            scores = in_batches(model, images, 1)
        except Exception:  # report the first reason, whether this one differs or not
            advice = "set its size, and see that its head and output fit"
            return [problem(name, text, advice)], None
        found.append(
            warning(
                name, f"{text}; it takes one image at a time", "rows are asked one by one: slow"
            )
        )
    if not scores.isfinite().all():
        rows = int((~scores.isfinite().all(1)).sum())
        return [
            problem(name, f"gives NaN or infinity on {rows} of {len(images)} sampled images")
        ], None
    probabilities, predicted = scores.softmax(1), scores.argmax(1)
    few = images[: 1 if found else TRIED]
    found += find_unsteady(name, lambda shown: in_batches(model, shown).softmax(1), few)
    sure = float(probabilities.max(1).values.mean())
    if len(images) > 1 and float(scores.std(0).max()) <= 1e-6 * float(1 + scores.abs().max()):
        text = f"gives the same scores for all {len(images)} sampled images"
        return [problem(name, text, "are the weights trained ones, and mean and std right?")], None
    if bool((scores >= 0).all()) and bool(((scores.sum(1) - 1).abs() < 1e-3).all()):
        text = "its outputs are probabilities already: a second softmax makes it unsure"
        found.append(warning(name, text, "give the network without its last softmax"))
    counts = Counter(predicted.tolist())
    shown = ", ".join(f"{model.classes[index]} {count}" for index, count in counts.most_common(5))
    found.append(
        ok(
            name,
            f"predicts {shown} of {len(images)} sampled images, with mean confidence {sure:.2f}",
        )
    )
    if len(counts) == 1 and len(images) >= 16:
        found.append(
            warning(name, f"predicts {shown} for every sampled image", "are mean and std right?")
        )
    found += _accuracy(name, model, images, scores, labels)
    return found, predicted


def find_unsteady(name: str, ask: Callable[[Tensor], Tensor], images: Tensor) -> list[Finding]:
    """Return a problem where a network has more than one answer to an image.

    Compares its answers to the image alone, alone again, repeated, and among other images. ask:
    returns the values (B,K) for images (B,3,H,W) that a worker uses, such as probabilities. They
    must be equal except for rounding.
    """
    alone = torch.cat([ask(image) for image in torch.split(images, 1)])
    again = torch.cat([ask(image) for image in torch.split(images, 1)])
    repeated = ask(images[:1].expand_as(images).contiguous())
    dropout = "is dropout still in training mode?"
    norm = "its answers depend on the batch: is batch norm still in training mode?"
    ways = (
        (again, alone, "to the same image when asked again", dropout),
        (repeated, alone[:1], "to an image alone than repeated", norm),
        (
            ask(images),
            alone,
            "to an image alone than among others",
            norm,
        ),
    )
    for one, other, how, advice in ways:
        gap = float((one - other).abs().max())
        if gap > ROUNDING:
            return [problem(name, f"gives another answer {how} (by up to {gap:.2g})", advice)]
    return []


def _accuracy(
    name: str, model: Any, images: Tensor, scores: Tensor, labels: Sequence[int | None]
) -> Iterator[Finding]:
    keep = [i for i, label in enumerate(labels) if label is not None and label < scores.shape[1]]
    if not keep:
        yield ok(name, "no labels to compare with")
        return
    truth, images, predicted = (
        torch.tensor([labels[i] or 0 for i in keep]),
        images[keep],
        scores[keep].argmax(1),
    )
    right, classes = float((predicted == truth).float().mean()), scores.shape[1]
    chance, noise = 1 / classes, 2 * sqrt(0.25 / len(keep))
    text = f"right on {right:.0%} of {len(keep)} labelled images of the sample"
    better = best_reading(model, images, truth) if right <= 0.9 else None
    renamed = _renamed(predicted, truth, model.classes)
    if better and better[1] > right + max(0.1, noise) and not (renamed and renamed[1] >= better[1]):
        yield warning(
            name,
            f"{text}, but on {better[1]:.0%} with {better[0]}",
            "was it trained so? Set its mean and std",
        )
    elif renamed and renamed[1] > right + max(0.2, noise):
        yield warning(
            name,
            f"{text}, and on {renamed[1]:.0%} if {renamed[0]}",
            "are its classes in the outputs' order?",
        )
    elif right < chance + noise:
        yield warning(
            name,
            f"{text}, no better than chance ({chance:.0%})",
            "do labels and classes mean the same?",
        )
    else:
        yield ok(name, text)


def best_reading(model: Any, images: Tensor, truth: Tensor) -> tuple[str, float] | None:
    """Return the other way to show images that has the highest accuracy, and this accuracy.

    The ways are other normalisations, another channel order, and inverted images. Returns None
    where none of them works.
    """
    changed = {
        "the channels in the order blue, green, red": images.flip(1),
        "black for white": 1 - images,
    }
    mean, std = getattr(model, "mean", None), getattr(model, "std", None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        mean, std = mean.cpu(), std.cpu()
        for text, other_mean, other_std in NORMALISATIONS:
            if len(other_mean) > 1 and getattr(model, "channels", 3) == 1:
                continue  # a normalisation of colours
            m, s = (torch.tensor(values).view(1, -1, 1, 1) for values in (other_mean, other_std))
            # The wrapper computes (resize(x) - mean) / std, so another mean and std is another x.
            changed[text] = ((images - m) / s * std + mean).expand(-1, 3, -1, -1)
    best: tuple[str, float] | None = None
    for text, shown in changed.items():
        try:
            right = float((in_batches(model, shown).argmax(1) == truth).float().mean())
        except Exception:  # this way does not fit the network, so there is no hint
            continue
        if best is None or right > best[1]:
            best = (text, right)
    return best


def _renamed(predicted: Tensor, truth: Tensor, classes: Sequence[str]) -> tuple[str, float] | None:
    """Return another meaning of the outputs and its accuracy.

    Each output then means its most frequent true class. Returns None where the labels do not
    support that.
    """
    if len(truth) < 5 * len(classes):
        return None  # with few rows per class, the best renaming fits the noise
    votes = {
        p: Counter(truth[predicted == p].tolist()).most_common(1)[0]
        for p in sorted(set(predicted.tolist()))
    }
    moved = [f"{classes[p]} is {classes[t]}" for p, (t, _) in votes.items() if p != t]
    if not moved or len({t for t, _ in votes.values()}) < len(votes):
        return None
    return " and ".join(moved[:3]), sum(count for _, count in votes.values()) / len(truth)


@torch.no_grad()
def in_batches(model: Any, images: Tensor, batch: int = BATCH) -> Tensor:
    """Return a model's outputs for many images, on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.cat([model(part.to(device)).float().cpu() for part in torch.split(images, batch)])
