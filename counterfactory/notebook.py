"""Counterfactuals of images in memory, for notebooks: a method runs without Ray and without
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from counterfactory.interventions.answers import with_cores
from counterfactory.methods.contract import ImageAnswers, ImageQueries, Method, to_8bit
from counterfactory.models.interfaces import Classifier
from counterfactory.models.wrapping.images import channels_of, gray
from counterfactory.models.wrapping.load import wrap
from counterfactory.models.wrapping.shape import Shape, Shaped
from counterfactory.models.wrapping.wrap import (
    ClassifierWrapper,
    DenoiserWrapper,
    scores_of,
)

Images = Tensor | NDArray[np.uint8]
Target = str | int | Sequence[int] | Tensor


def explain(
    images: Images,
    *,
    classifier: nn.Module | Callable[[Tensor], Any],
    method: Method,
    target: Target = "opposite",
    classes: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 16,
    core: bool = False,
    **models: Any,
) -> ImageAnswers:
    """Return a counterfactual of every image, in the images' order.

    images: (B,3,H,W) floats in [0,1], or (B,H,W,3) uint8. classifier: a torch module, a
    transformers model or any callable from images (B,3,H,W) in [0,1] to scores: (B,K) logits, or
    (B,1), the second class's logit. target: "opposite", "runner-up", a class's name, its index, or
    one index per image. core: answer with the core of each change, the fewest cells of it that flip
    nearly as surely; its changed cells are the answers' mask. models: the models that the method
    needs, by name: a network of the role, or as `denoiser` a diffusers pipeline with `unet` and
    `scheduler`.

    The models are in eval mode and frozen while the method runs, and are restored afterwards.
    ValueError where an argument is invalid, with the value that was expected.
    """
    pixels = _pixels(images)
    missing = [name for name in method.needs if name not in models]
    if missing:
        needed, got = ", ".join(method.needs), ", ".join(models) or "none"
        raise ValueError(f"expected the models {needed} for {type(method).__name__}, got {got}")
    if getattr(method, "needs_masks", False):
        raise ValueError(
            f"expected a method without masks, got {type(method).__name__}: run it over a data set"
        )
    shape = Shape()
    used = {name: Shaped(_model(name, models[name]), shape) for name in method.needs}
    network = classifier if isinstance(classifier, nn.Module) else _Called(classifier)
    with _frozen(network, *used.values()):
        asked = Shaped(_classifier(network, pixels[:1], classes), shape)
        with torch.no_grad():
            scores = torch.cat([asked(part) for part in torch.split(pixels, batch)])
        if getattr(method, "access", "gradient") == "gradient":
            _expect_gradients(asked, pixels[:1], method)
        source = scores.argmax(1)
        wanted = _targets(target, scores, asked.classes)
        seeds = torch.arange(len(pixels)) + seed * 1_000_003
        parts = []
        for at in torch.split(torch.arange(len(pixels)), batch):
            queries = ImageQueries(
                images=pixels[at], source=source[at], target=wanted[at], seed=seeds[at]
            )
            answers = method(queries, classifier=asked, **used)
            parts.append(with_cores(answers, queries, asked) if core else answers)
    return _joined(parts)


def _pixels(images: Images) -> Tensor:
    """Return images (B,3,H,W) float32 on the 8-bit grid; ValueError on another shape, dtype or
    range.
    """
    if isinstance(images, np.ndarray) or images.dtype == torch.uint8:
        whole = torch.as_tensor(images)
        if whole.ndim != 4 or whole.shape[-1] != 3 or whole.dtype != torch.uint8:
            got = f"{tuple(whole.shape)} {whole.dtype}"
            raise ValueError(f"expected images of shape (B,H,W,3) and dtype uint8, got {got}")
        return whole.permute(0, 3, 1, 2).float().div(255).contiguous()
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"expected images of shape (B,3,H,W) and a float dtype, got {got}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected images in [0,1], got {low:g} to {high:g}: undo normalisation")
    return to_8bit(images.detach().float())


class _Called(nn.Module):
    """A callable wrapped as a torch module."""

    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, images: Tensor) -> Any:
        return self.call(images)


def _classifier(network: nn.Module, one: Tensor, classes: Sequence[str] | None) -> Classifier:
    """Return a network as a Classifier; one: an image, for which the network's outputs are
    counted.
    """
    if isinstance(network, ClassifierWrapper):
        return network
    with torch.no_grad():
        shown = gray(one) if channels_of(network) == 1 else one
        outputs = scores_of(network(shown)).shape[1]
    named = getattr(getattr(network, "config", None), "id2label", None) or {}
    count = max(outputs, 2)
    known = (
        [str(named[i]) for i in sorted(named)] if len(named) == count else map(str, range(count))
    )
    names = tuple(classes or known)
    if len(names) != count:
        raise ValueError(f"expected {count} classes, got {len(names)}: {', '.join(names)}")
    return ClassifierWrapper(network, classes=names, head="sigmoid" if outputs == 1 else "softmax")


def _model(role: str, model: Any) -> nn.Module:
    """Return a model with its role's interface: the model itself where it has the interface, else
    wrapped.
    """
    if type(model).__module__.startswith("counterfactory.models.wrapping"):
        return model  # type: ignore[no-any-return]
    if role == "denoiser" and not hasattr(model, "alphas_cumprod"):
        unet, scheduler = (getattr(model, name, None) for name in ("unet", "scheduler"))
        if unet is None or scheduler is None:
            raise ValueError(
                "expected a denoiser with its schedule: a diffusers pipeline with `unet` and"
                f" `scheduler`, or `alphas_cumprod`, got {type(model).__name__}"
            )
        return DenoiserWrapper(
            unet,
            alphas_cumprod=scheduler.alphas_cumprod,
            prediction=scheduler.config.prediction_type,
        )
    if role == "autoencoder" and isinstance(model, nn.Module):
        return wrap(role, model, {}, {}, {})
    return model  # type: ignore[no-any-return]


def _expect_gradients(classifier: Classifier, one: Tensor, method: Method) -> None:
    with torch.enable_grad():
        scores = classifier(one.clone().requires_grad_())
    if not scores.requires_grad:
        raise ValueError(
            f"expected a classifier with gradients, which {type(method).__name__} needs, got scores"
            " without: compute them in torch, outside of torch.no_grad"
        )


def _targets(target: Target, scores: Tensor, classes: Sequence[str]) -> Tensor:
    """Return the target class of every row, (B,) int64."""
    rows, count = scores.shape
    if isinstance(target, str):
        if target == "opposite":
            if count != 2:
                raise ValueError(f"expected 2 classes for the target `opposite`, got {count}")
            return 1 - scores.argmax(1)
        if target == "runner-up":
            return scores.topk(2).indices[:, 1]
        if target not in classes:
            known = ", ".join(["opposite", "runner-up", *classes])
            raise ValueError(f"expected a target out of {known}, got {target!r}")
        target = list(classes).index(target)
    wanted = torch.as_tensor(target, dtype=torch.int64, device=scores.device)
    if wanted.ndim > 1 or (wanted.ndim == 1 and len(wanted) != rows):
        raise ValueError(f"expected {rows} targets, got {tuple(wanted.shape)}")
    if bool(((wanted < 0) | (wanted >= count)).any()):
        raise ValueError(f"expected targets below {count}, got {wanted.tolist()}")
    return wanted.expand(rows).clone()


@contextmanager
def _frozen(*models: nn.Module) -> Iterator[None]:
    """Set models to eval mode and freeze their parameters; restore both at the end."""
    parts = {part: part.training for model in models for part in model.modules()}
    learnt = {p: p.requires_grad for model in models for p in model.parameters()}
    try:
        for part in parts:
            part.training = False
        for parameter in learnt:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, training in parts.items():
            part.training = training
        for parameter, learns in learnt.items():
            parameter.requires_grad_(learns)


def _joined(parts: Sequence[ImageAnswers]) -> ImageAnswers:
    """Return the answers of several batches as one batch."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(ImageAnswers)):
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            found[name] = None
        elif isinstance(values[0], Tensor):
            found[name] = torch.cat(values)
        else:
            found[name] = [value for part in values for value in part]
    return ImageAnswers(**found)
