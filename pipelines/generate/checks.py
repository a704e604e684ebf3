"""What would stop a run, found before any work: settings and models that do not fit together."""

from __future__ import annotations

import torch

from actors.pinned.load import load_method, load_models, method_models, pick_device
from configs.schema import RunConfig
from configs.strict import UserError, nearest
from storage.codec import sides


def check_needs(config: RunConfig) -> None:
    """Stop on a method, target or model list that cannot work, before anything is loaded."""
    method = load_method(config.model_dump())
    for name in method_models(method):
        if name not in config.models:
            raise UserError(
                f"models: expected {name!r}, which {config.method.target} needs, got"
                f" {', '.join(config.models)}"
            )
    if getattr(method, "needs_masks", False) and config.data.mask is None:
        raise UserError(
            f"data.mask: expected the column of segmentation masks, which {config.method.target}"
            " needs, got none"
        )
    classes = config.models["classifier"].classes
    if not classes:
        return
    if config.target.rule == "opposite" and len(classes) != 2:
        raise UserError(
            f"target: expected 2 classes for the rule `opposite`, got {len(classes)}: use"
            " runner-up, a name or a column"
        )
    if config.target.name is not None and config.target.name not in classes:
        raise UserError(
            f"target: expected a class's name, got {config.target.name!r}:"
            f" {nearest(config.target.name, classes)}"
        )


def try_models(config: RunConfig) -> None:
    """Load what the workers will load and ask the classifier once, so that a bad setting stops here
    and not there.
    """
    plain = config.model_dump()
    pick_device(config.engine.device)
    method = load_method(plain)
    models = load_models(plain, method_models(method), torch.device("cpu"))
    if hasattr(method, "expect"):  # what a method asks of its models beyond their roles
        try:
            method.expect(models)
        except ValueError as error:
            raise UserError(str(error)) from None
    width, height = sides(config.data.size)
    try:
        scores = models["classifier"](torch.zeros(1, 3, height, width))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"models.classifier: {' '.join(str(error).split())}") from None
    if config.target.rule == "opposite" and scores.shape[1] != 2:
        raise UserError(
            f"target: expected 2 classes for the rule `opposite`, got {scores.shape[1]}"
        )
