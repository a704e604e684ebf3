"""Counted operations of layers whose count is known."""

import pytest
import torch
from torch import nn

from counterfactory.metrics.flops import tflops


def test_a_linear_layer_and_a_convolution_forward_and_back() -> None:
    linear, x = nn.Linear(30, 20, bias=False), torch.rand(7, 30)
    forward = 2 * 7 * 30 * 20
    assert tflops(lambda: linear(x)) * 1e12 == pytest.approx(forward)
    # and the weights' gradient
    assert tflops(lambda: linear(x).sum().backward()) * 1e12 == pytest.approx(2 * forward)
    images = torch.rand(2, 3, 8, 8)
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert tflops(lambda: convolution(images)) * 1e12 == pytest.approx(2 * 2 * 8 * 8 * 5 * 3 * 9)
    assert tflops(lambda: x + 1) == 0


def test_without_autograd_and_through_its_grad() -> None:
    linear, x = nn.Linear(30, 20, bias=False), torch.rand(7, 30, requires_grad=True)
    forward = 2 * 7 * 30 * 20
    with torch.inference_mode():
        assert tflops(lambda: linear(x)) * 1e12 == pytest.approx(forward)
    linear.requires_grad_(False)

    def step() -> None:
        for _ in range(3):
            torch.autograd.grad(torch.relu(linear(x)).sum(), x)

    assert tflops(step) * 1e12 == pytest.approx(3 * 2 * forward)  # back to the input only
