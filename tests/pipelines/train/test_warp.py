"""Moving training images at random."""

import torch

from pipelines.train.losses import warp


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_no_warp_draws_nothing_and_changes_nothing() -> None:
    images, used = torch.rand(2, 3, 16, 16), generator()
    assert warp(images, 0.0, used) is images
    assert torch.equal(torch.rand(4, generator=used), torch.rand(4, generator=generator()))


def test_warp_moves_a_dot_by_a_few_pixels_and_repeats_itself() -> None:
    images = torch.zeros(32, 3, 64, 64)
    images[:, :, 30:34, 30:34] = 1
    moved = warp(images, 1.0, generator())
    assert torch.equal(moved, warp(images, 1.0, generator()))
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mass = moved[:, 0].sum((1, 2))
    shift = torch.stack(
        [(moved[:, 0] * axis).sum((1, 2)) / mass - 31.5 for axis in (rows, columns)]
    )
    assert shift.abs().max() < 4.6  # 4 px, scaled by at most 8 %
    assert shift.std(1).min() > 1


def test_warp_repeats_the_border() -> None:
    assert torch.allclose(
        warp(torch.full((4, 3, 16, 16), 0.5), 1.0, generator()), torch.full((4, 3, 16, 16), 0.5)
    )
