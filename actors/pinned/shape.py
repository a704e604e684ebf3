"""Loaded models in the shapes of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actors.guard.batch import FIRST
from configs.schema import EngineConfig
from counterfactory.models.roles import BLACK_BOXES
from counterfactory.models.wrapping.shape import Shape, Shaped


def shape_of(engine: EngineConfig, device: torch.device) -> Shape:
    """Return the number of rows that networks compute at a time.

    For `auto` on a CPU it is LEAST or more, where rounding does not change. For `auto` on a GPU it
    is the batch, or FIRST where the batch grows, so that only one shape is used.
    """
    if engine.shape != "auto":
        return Shape(engine.shape, exact=True)
    if device.type == "cpu":
        return Shape()
    return Shape(FIRST if engine.batch == "auto" else engine.batch, exact=True)


def in_shape(
    models: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]], shape: Shape
) -> dict[str, Any]:
    """Return the models by name, with their networks in a shape; specs: their settings.

    A data set in the place of a model is returned as it is, because it has no network; a black box
    too, because the rows that pad would be asked.
    """
    return {
        name: model
        if specs[name].get("source") in ("parquet", *BLACK_BOXES)
        else Shaped(model, shape)
        for name, model in models.items()
    }
