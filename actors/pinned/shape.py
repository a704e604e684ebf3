"""Loaded models in the shapes that the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from actors.guard.batch import FIRST
from configs.schema import EngineConfig
from counterfactory.models.wrapping.shape import Shape, Shaped


def shape_of(engine: EngineConfig, device: torch.device) -> Shape:
    """The rows that networks compute at a time; `auto`: on a CPU LEAST or more, which rounds alike
    there; on a GPU as many as the batch, or FIRST where that grows, which leaves one shape.
    """
    if engine.shape != "auto":
        return Shape(engine.shape, exact=True)
    if device.type == "cpu":
        return Shape()
    return Shape(FIRST if engine.batch == "auto" else engine.batch, exact=True)


def in_shape(
    models: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]], shape: Shape
) -> dict[str, Any]:
    """The models by name, their networks in a shape; specs: their settings. A data set in the place
    of a model has no network.
    """
    return {
        name: model if specs[name].get("source") == "parquet" else Shaped(model, shape)
        for name, model in models.items()
    }
