"""The tiny models and the small queries of counterfactory's own contract suite, as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from torch import nn

from counterfactory import testing
from counterfactory.methods.contract import ImageQueries
from counterfactory.models.tiny import TinyDenoiser, tiny_models


@pytest.fixture
def models() -> dict[str, nn.Module]:
    return tiny_models()


@pytest.fixture
def make_denoiser() -> Callable[..., TinyDenoiser]:
    return TinyDenoiser


@pytest.fixture
def queries(models: dict[str, nn.Module]) -> ImageQueries:
    return testing.tiny_queries(models)


@pytest.fixture
def pick() -> Callable[[ImageQueries, Sequence[int]], ImageQueries]:
    return testing.pick
