"""The look of pictures: what a tint and a blur change, and what a patch does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterfactory.interventions.look import with_look
from counterfactory.methods.contract import to_8bit


def pictures(height: int = 32, width: int = 32) -> Tensor:
    """Noise of several scales about a middle grey, (4,3,H,W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((4, 3, 4, 4), generator=generator)
    fine = torch.rand((4, 3, height, width), generator=generator)
    whole = F.interpolate(coarse, (height, width), mode="bilinear")
    return to_8bit(0.25 + 0.4 * whole + 0.1 * fine)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 40), (2, 3)])
def test_a_picture_with_its_own_look_is_itself(size: tuple[int, int]) -> None:
    x = pictures(*size)
    assert torch.equal(with_look(x, x), x)


def test_a_tint_is_all_look() -> None:
    x = pictures()
    tinted = to_8bit(x + torch.tensor([0.1, 0.0, -0.1])[:, None, None])
    assert (with_look(x, tinted) - tinted).abs().max() < 0.02
    assert (with_look(tinted, x) - x).abs().max() < 0.02


def test_a_blur_takes_the_contrast_away_and_a_patch_does_not_come() -> None:
    x = pictures()
    blurred = to_8bit(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1))

    def roughness(images: Tensor) -> float:
        return float((images[..., 1:] - images[..., :-1]).square().mean())

    assert roughness(with_look(x, blurred)) < 0.5 * roughness(x)
    patched = x.clone()
    patched[:, :, :4, :4] = 1
    change = (with_look(x, patched) - x).abs()
    assert change[:, :, :4, :4].mean() < 0.5 * (patched - x).abs()[:, :, :4, :4].mean()


def test_rows_do_not_depend_on_each_other() -> None:
    x, y = pictures(), pictures().flip(0)
    each = torch.cat([with_look(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    assert torch.equal(each, with_look(x, y))
