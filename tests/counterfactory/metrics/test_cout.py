"""COUT against one pixel loop a row, its bounds, and the public code's figure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from counterfactory.metrics.cout import cout, schedule


class Linear(torch.nn.Module):
    """Class scores linear in the pixels, (B,K)."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = torch.randn(classes, 3 * size * size, generator=generator) * 0.4
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return (images - 0.5).flatten(1) @ self.weight.T


def pictures(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (rows, 3, size, size))
    moved = rng.random((rows, 1, size, size)) < rng.random((rows, 1, 1, 1))
    y = np.where(moved, rng.integers(0, 256, x.shape), x)
    return torch.tensor(x / 255, dtype=torch.float32), torch.tensor(y / 255, dtype=torch.float32)


def by_hand(model: Linear, x: Tensor, y: Tensor, source: int, target: int, steps: int) -> float:
    """One row, one composite at a time."""
    change = (y - x).double().mul(255).round().abs().sum(0).flatten().tolist()
    order = sorted(range(len(change)), key=lambda i: (-change[i], i))
    composite, curve, shares = x.clone().flatten(1), [], []
    for step in range(steps + 1):
        upto = round(step * len(order) / steps)
        for pixel in order[:upto]:
            composite[:, pixel] = y.flatten(1)[:, pixel]
        scores = [float(s) for s in model(composite.view(1, *x.shape))[0].double()]
        total = sum(math.exp(s) for s in scores)
        curve.append((math.exp(scores[target]) - math.exp(scores[source])) / total)
        shares.append(upto / len(order))
    return sum((shares[i + 1] - shares[i]) * (curve[i + 1] + curve[i]) / 2 for i in range(steps))


@pytest.mark.parametrize("classes", [2, 5])
def test_against_a_loop(classes: int) -> None:
    model, size = Linear(classes, 12), 12
    x, y = pictures(6, size)
    source, target = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([1, 0, 1, 0, 1, 0])
    if classes == 5:
        source, target = torch.tensor([0, 4, 2, 3, 1, 2]), torch.tensor([1, 2, 4, 0, 3, 0])
    expected = [by_hand(model, x[i], y[i], int(source[i]), int(target[i]), 50) for i in range(6)]
    got = cout(model, x, y, source, target, batch=32)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_rows_do_not_depend_on_their_batch_and_go_to_the_classifier_together() -> None:
    model = Linear(2, 12)
    x, y = pictures(7, 12, seed=1)
    source, target = torch.zeros(7, dtype=torch.int64), torch.ones(7, dtype=torch.int64)
    alone = torch.cat(
        [cout(model, x[i : i + 1], y[i : i + 1], source[:1], target[:1]) for i in range(7)]
    )
    model.calls.clear()
    assert cout(model, x, y, source, target, batch=100).tolist() == pytest.approx(
        alone.tolist(), abs=1e-6
    )
    assert model.calls[:-1] == [100] * (len(model.calls) - 1)  # full batches, whatever the rows
    assert sum(model.calls) < 7 * 51  # composites that stay the same are classified once


def test_bounds_are_reached_and_nothing_lies_beyond() -> None:
    x, y = pictures(3, 8, seed=2)
    zero, one = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)

    def sure(images: Tensor) -> Tensor:
        return torch.tensor([[-1000.0, 1000.0]]).expand(len(images), 2)

    assert cout(sure, x, y, zero, one).tolist() == [1.0] * 3
    assert cout(sure, x, y, one, zero).tolist() == [-1.0] * 3


def test_a_step_at_the_first_pixel_and_at_the_last() -> None:
    x, y = torch.zeros(1, 3, 10, 10), torch.full((1, 3, 10, 10), 40 / 255)
    y[0, :, 4, 4] = 1.0  # the strongest change
    y[0, :, 9, 9] = 10 / 255  # the weakest

    def watches(row: int) -> object:
        def score(images: Tensor) -> Tensor:
            return torch.where(images[:, 0, row, row] > 5 / 255, 1000.0, -1000.0)[
                :, None
            ] * torch.tensor([[-1.0, 1.0]])

        return score

    zero, one = torch.tensor([0]), torch.tensor([1])
    # -1 at 0, then 1 from the first of 50 steps on: one trapezoid of mean 0. At the last pixel: the
    # mirror.
    assert cout(watches(4), x, y, zero, one).item() == pytest.approx(49 / 50)  # type: ignore[arg-type]
    assert cout(watches(9), x, y, zero, one).item() == pytest.approx(-49 / 50)  # type: ignore[arg-type]


def test_an_unchanged_pair_scores_its_constant() -> None:
    model = Linear(2, 8)
    x, _ = pictures(4, 8, seed=3)
    source, target = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    p = model(x).double().softmax(1)
    model.calls.clear()
    assert cout(model, x, x.clone(), source, target).tolist() == pytest.approx(
        (p[:, 1] - p[:, 0]).tolist(), abs=1e-9
    )
    assert sum(model.calls) == 4


def test_reference_integrates_over_the_end_as_public_code_does() -> None:
    x, y = pictures(1, 64, seed=4)
    sure = torch.tensor([[-1000.0, 1000.0]])
    got = cout(
        lambda im: sure.expand(len(im), 2),
        x,
        y,
        torch.tensor([0]),
        torch.tensor([1]),
        reference=True,
    )
    step = 64 * 64 // 50
    calls = len(range(0, 64 * 64, step))  # the public loop
    assert got.item() == pytest.approx((calls + 1 - 1) * step / 64**2)
    assert schedule(256 * 256, 50, True)[1][-1].item() == pytest.approx(1.02, abs=1e-3)
    assert schedule(256 * 256, 50, False)[1][[0, -1]].tolist() == [0.0, 1.0]


def test_reference_curve_is_the_public_one() -> None:
    """The public loop, written out: cells of `step` pixels, width step / pixels, no matter how many
    are left.
    """
    model, size, steps = Linear(2, 9), 9, 50
    rng = np.random.default_rng(5)
    x = torch.zeros(1, 3, size, size)
    y = torch.zeros(1, 3, size, size)
    y[0] = torch.tensor(rng.permutation(size * size).reshape(size, size) / 255)  # no ties
    step = max(1, size * size // steps)
    order = (y - x).abs().sum(1).flatten(1).argsort(dim=1, descending=True)[0]
    mask = torch.zeros(size * size)
    curve = [model(x).softmax(1)[0]]
    for at in range(0, size * size, step):
        mask[order[at : at + step]] = 1
        m = mask.view(1, 1, size, size)
        curve.append(model(y * m + x * (1 - m)).softmax(1)[0])
    gap = [float(p[1] - p[0]) for p in curve]
    expected = (gap[0] / 2 + sum(gap[1:-1]) + gap[-1] / 2) * step / (size * size)
    got = cout(model, x, y, torch.tensor([0]), torch.tensor([1]), steps=steps, reference=True)
    assert got.item() == pytest.approx(expected, abs=1e-5)


def test_no_rows_and_wrong_shapes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert cout(
        Linear(2, 8), torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8), none, none
    ).shape == (0,)
    with pytest.raises(ValueError, match=r"expected images of one shape .* got \(1, 3, 8, 8\)"):
        cout(Linear(2, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), none, none)


def test_points_left_out_by_a_tolerance_are_few_calls_less_and_no_other_figure_for_a_step() -> None:
    x, y = torch.zeros(2, 3, 50, 50), torch.full((2, 3, 50, 50), 40 / 255)
    y[:, :, 7, :] = 1.0  # a whole row of pixels first: moved by step 1 of 50
    source, target = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    calls: list[int] = []

    def share_moved(images: Tensor) -> Tensor:
        """Flips where three tenths of the pixels have moved."""
        calls.append(len(images))
        moved = (images[:, 0] > 0).float().mean((1, 2))
        return torch.stack([0.305 - moved, moved - 0.305], 1) * 1e5

    exact = cout(share_moved, x, y, source, target)
    assert sum(calls) == 2 * 51
    calls.clear()
    near = cout(share_moved, x, y, source, target, tolerance=0.01)
    assert near.tolist() == pytest.approx(exact.tolist(), abs=1e-9)
    assert sum(calls) <= 2 * 10  # 6 on the coarse grid, then the jump between 15 and 16 by halves


@pytest.mark.parametrize("slope", [1, 10, 100])
def test_a_tolerance_bounds_the_error_of_a_rising_curve(slope: float) -> None:
    x, y = torch.zeros(3, 3, 30, 30), torch.full((3, 3, 30, 30), 40 / 255)
    source, target = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)

    def rising(images: Tensor) -> Tensor:
        moved = (images[:, 0] > 0).float().mean((1, 2)) - 0.4
        return torch.stack([-moved, moved], 1) * slope

    exact = cout(rising, x, y, source, target)
    for tolerance in (0.5, 0.05, 0.005):
        near = cout(rising, x, y, source, target, tolerance=tolerance)
        assert (near - exact).abs().max() <= tolerance
    every = cout(rising, x, y, source, target, tolerance=1e-12)
    assert every.tolist() == pytest.approx(exact.tolist(), abs=1e-9)


def test_a_model_without_numbers_ends_too() -> None:
    x, y = pictures(3, 8, seed=7)
    zero, one = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    got = cout(lambda im: torch.full((len(im), 2), torch.nan), x, y, zero, one, tolerance=0.01)
    assert got.isnan().all()
