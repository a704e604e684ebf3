"""Counted operations of a run's method, on a classifier whose every call has a known count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from pipelines.score.flops import count_tflops
from tests.pipelines.conftest import CLASSES, SIZE


class Linear(nn.Module):
    """Scores linear in the pixels; counts its calls."""

    classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE * SIZE, 2, bias=False).requires_grad_(False)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        assert len(images) == 1  # each row alone
        self.calls += 1
        scores: Tensor = self.layer(images.flatten(1))
        return scores


ONE = 2 * 3 * SIZE * SIZE * 2  # operations of one call, and of one pass back to the image


def settings(run: Any, **score: Any) -> RunConfig:
    raw = run.config.model_dump()
    raw["method"] = {"target": "counterfactory.methods.pixel_pgd.PixelPGD", "settings": {}}
    raw["score"] |= score
    return RunConfig.model_validate(raw)


def test_count_is_that_of_the_calls_and_is_taken_once(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    run, classifier = make_run(rows=9, shards=2), Linear()
    monkeypatch.setattr(
        "pipelines.score.flops.load_models",
        lambda config, names, device: {"classifier": classifier},
    )
    found = count_tflops(run.store, settings(run, flops_rows=3))
    assert found is not None
    assert found.value is not None
    assert found.n == 3
    passes = found.value * 1e12 * 3 / ONE
    assert passes == pytest.approx(round(passes))
    assert classifier.calls <= passes <= 2 * classifier.calls  # forward, and back from some of them
    assert passes > classifier.calls
    calls = classifier.calls
    assert count_tflops(run.store, settings(run, flops_rows=3)) == found
    assert classifier.calls == calls


def test_not_asked_for_no_rows_and_models_that_the_run_has_not(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.score.flops.load_models", lambda config, names, device: {"classifier": Linear()}
    )
    run = make_run(rows=0, shards=1)
    assert count_tflops(run.store, settings(run, flops_rows=0)) is None
    nothing = count_tflops(run.store, settings(run))
    assert nothing is not None
    assert (nothing.value, nothing.n) == (None, 0)
    # ACE, and no denoiser among the run's models
    assert count_tflops(run.store, run.config) is None
