"""Checks before any work of a run: settings and models that do not fit together."""

from __future__ import annotations

from typing import Any

import torch

from actors.pinned.load import load_method, load_models, method_models, pick_device
from configs.access import ACCESS, access_error, enough
from configs.schema import MethodConfig, RunConfig
from configs.strict import UserError, check, nearest, presets, read_preset
from pipelines.engine.progress import note
from storage.codec import sides


def check_needs(config: RunConfig) -> None:
    """Raise UserError for a method, target or list of models that cannot work, before anything is
    loaded.
    """
    method = load_method(config.model_dump())
    for name in method_models(method):
        if name not in config.models:
            raise UserError(
                f"models: expected {name!r}, which {config.method.target} needs, got"
                f" {', '.join(config.models)}"
            )
    expect_access(config, method)
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


def expect_access(config: RunConfig, method: Any) -> None:
    """Raise UserError, with the presets that work, where a method needs more of the classifier than
    it provides.
    """
    needed = getattr(method, "access", ACCESS[0])
    if needed not in ACCESS:
        raise UserError(f"method.access: expected one of {', '.join(ACCESS)}, got {needed!r}")
    if not enough(config, needed):
        works = [name for name in presets("method") if enough(config, _access_of(name))]
        raise access_error(config, needed, works)


def _access_of(preset: str) -> str:
    method = check(MethodConfig, read_preset("method", preset), preset)
    access: str = load_method({"method": method.model_dump()}).access
    return access


def try_models(config: RunConfig) -> None:
    """Load what the workers will load and call the classifier once, so that a bad setting fails
    here and not in a worker.
    """
    plain = config.model_dump()
    pick_device(config.engine.device)
    method = load_method(plain)
    models = load_models(plain, method_models(method), torch.device("cpu"))
    for name, model in models.items():
        for text in getattr(model, "notes", ()):
            note(f"warning: models.{name}: {text}")
    if hasattr(method, "expect"):  # a method's requirements of its models besides their roles
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
