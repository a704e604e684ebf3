"""The last layer of a classifier as a function from penultimate features to scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from counterfactory.models.wrapping.wrap import ClassifierWrapper


@torch.no_grad()
def head_of(classifier: ClassifierWrapper, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a differentiable function from features R (B,F) to the classifier's scores (B,K).

    It is the layer whose input is R and whose output is the network's output. The search runs the
    classifier on images (B,3,H,W) in [0,1], two or more of them. ValueError where there is no such
    layer.
    """
    features = classifier.features(images)
    seen: list[tuple[nn.Module, Any, Any]] = []
    layers = [layer for layer in classifier.network.modules() if layer is not classifier.network]
    hooks = [
        layer.register_forward_hook(lambda *call: seen.append((call[0], call[1][:1], call[2])))
        for layer in layers
    ]
    try:
        scores = classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, given, output in reversed(seen):
        if _same(given[0] if given else None, features) and _same_scores(
            classifier, output, scores
        ):
            return partial(_scores, classifier, layer)
    name = classifier.layer or f"the method `features` of {type(classifier.network).__name__}"
    raise ValueError(
        f"expected a last layer that the features (of {name}) go into and the scores come out of,"
        " got none: set models.classifier.layer to the name of the last linear layer"
    )


def _scores(classifier: ClassifierWrapper, layer: nn.Module, features: Tensor) -> Tensor:
    return classifier.read(layer(features))


def _same(given: Any, features: Tensor) -> bool:
    return (
        isinstance(given, Tensor)
        and given.shape == features.shape
        and bool(torch.allclose(given.float(), features))
    )


def _same_scores(classifier: ClassifierWrapper, output: Any, scores: Tensor) -> bool:
    try:
        return bool(torch.allclose(classifier.read(output), scores))
    except (ValueError, StopIteration):  # not scores at all
        return False
