"""Switches: mixtures against references pixel by pixel, and the draws that the effects rest on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from counterfactory.interventions.core import switches_of
from counterfactory.interventions.switches import (
    Cells,
    Kinds,
    all_coalitions,
    draw_switches,
    pack,
    regions_as_maps,
)

SIZES = [(64, 64), (28, 28), (17, 40), (40, 17), (5, 3), (2, 2), (1, 1), (1, 9)]


def levels(*shape: int, seed: int = 0) -> Tensor:
    """Images as they are stored: 256 levels, as float32."""
    drawn = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8).float() / 255


def pair(height: int, width: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    return levels(rows, 3, height, width), levels(rows, 3, height, width, seed=1)


def soft(side: int, cells: int) -> np.ndarray:
    """How much each pixel belongs to each cell, by hand: the mean of hard cells under a triangle
    around the pixel, where the picture goes on as its last pixel does.
    """
    edges = [round(side * cell / cells) for cell in range(cells + 1)]  # half to even, as torch
    cell_of = [sum(pixel >= edge for edge in edges[1:]) for pixel in range(side)]
    reach = max(1, round(side / cells / 4)) if cells > 1 else 0
    found = np.zeros((side, cells))
    for pixel in range(side):
        for step in range(-reach, reach + 1):
            near = min(max(pixel + step, 0), side - 1)
            found[pixel, cell_of[near]] += (reach + 1 - abs(step)) / (reach + 1) ** 2
    return found


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_all_cells_are_the_counterfactual_and_no_cell_is_the_original_to_the_bit(
    height: int, width: int
) -> None:
    before, after = pair(height, width)
    cells, every = Cells(before, after), torch.arange(3)
    whole, none = (torch.full((3, cells.count), on, dtype=torch.bool) for on in (True, False))
    assert torch.equal(cells.mixed(every, whole), after)
    assert torch.equal(cells.mixed(every, none), before)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mixture_is_the_change_under_soft_cells(height: int, width: int) -> None:
    before, after = pair(height, width)
    cells = Cells(before, after)
    assert cells.count == max(1, min(8, height // 2)) * max(1, min(8, width // 2))
    on = draw_switches(torch.tensor([5, 6]), 3, cells.count).flatten(0, 1)
    rows = torch.tensor([2, 0, 0, 1, 2, 1])
    down, across = soft(height, cells.rows), soft(width, cells.columns)
    for row, these, mask, image in zip(
        rows.tolist(), on, cells.masks(on), cells.mixed(rows, on), strict=True
    ):
        expected = down @ these.reshape(cells.rows, cells.columns).double().numpy() @ across.T
        assert mask[0].numpy() == pytest.approx(expected, abs=1e-6)
        exact = before[row].double().numpy() + expected * (after[row] - before[row]).numpy()
        assert (image * 255 - (image * 255).round()).abs().max() < 1e-4, "on the 8-bit grid"
        assert np.abs(image.numpy() - exact).max() <= 0.5 / 255 + 1e-6


def test_a_cell_leaves_pixels_beyond_its_soft_edge_alone() -> None:
    before, after = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    cells = Cells(before, after)
    on = torch.zeros(1, 64, dtype=torch.bool)
    on[0, 8 * 2 + 5] = True  # rows 16..23, columns 40..47, and two soft pixels around
    mask = cells.masks(on)[0, 0]
    assert (mask[18:22, 42:46] == 1).all()
    mask[14:26, 38:50] = 0
    assert (mask == 0).all()


def test_amounts_are_the_change_and_are_divided_by_regions() -> None:
    before, after = pair(17, 40)
    cells = Cells(before, after)
    size = (after - before).abs().mean(1)
    assert cells.amounts().sum(1).tolist() == pytest.approx(size.sum((1, 2)).tolist())
    masks = torch.randint(0, 4, (3, 17, 40), generator=torch.Generator().manual_seed(2))
    inside = cells.inside(regions_as_maps(masks, 4))
    assert inside.shape == (3, cells.count, 4)
    assert torch.allclose(inside.sum(2), cells.amounts(), rtol=1e-5)
    for region in range(4):
        expected = (size * (masks == region)).sum((1, 2))
        assert torch.allclose(inside[..., region].sum(1), expected, rtol=1e-5)


def test_an_amount_is_its_own_cells() -> None:
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[0, :, 19:21, 44:46] = 0.6  # the middle of cell (2,5), where no other cell reaches
    amounts = Cells(before, after).amounts()[0]
    assert amounts[8 * 2 + 5].item() == pytest.approx(4 * 0.6, rel=1e-5)
    assert amounts.sum().item() == pytest.approx(4 * 0.6, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_kinds_add_up_to_the_change(height: int, width: int) -> None:
    before, after = pair(height, width)
    kinds, every = Kinds(before, after), torch.arange(3)
    assert torch.allclose(kinds.parts.sum(1), after - before, atol=1e-6)
    assert kinds.parts[:, 1:].mean((3, 4)).abs().max() < 1e-6, "the colour is the whole mean"
    whole, none = (torch.full((3, 3), on, dtype=torch.bool) for on in (True, False))
    assert torch.equal(kinds.mixed(every, whole), after)
    assert torch.equal(kinds.mixed(every, none), before)


def shares_of_kinds(before: Tensor, after: Tensor) -> list[float]:
    amounts = Kinds(before, after).amounts()[0]
    return (amounts / amounts.sum()).tolist()


def test_a_tint_is_colour() -> None:
    before = 0.2 + 0.5 * levels(1, 3, 64, 64)
    tint = torch.tensor([0.1, -0.05, 0.2])[None, :, None, None]
    assert shares_of_kinds(before, before + tint) == pytest.approx([1, 0, 0], abs=1e-5)


def test_noise_is_fine_and_a_slow_wave_is_coarse() -> None:
    before = torch.full((1, 3, 64, 64), 0.5)
    noise = (levels(1, 3, 64, 64) - 0.5) * 0.4
    assert shares_of_kinds(before, before + noise)[2] > 0.85
    wave = 0.3 * torch.sin(2 * torch.pi * torch.arange(64) / 64).expand(1, 3, 64, 64)
    found = shares_of_kinds(before, before + wave)
    assert found[0] < 0.01
    assert found[1] > 0.8


def test_a_blur_has_no_colour() -> None:
    before = levels(1, 3, 64, 64)
    blurred = torch.nn.functional.avg_pool2d(before, 9, 1, 4, count_include_pad=False)
    colour, coarse, fine = shares_of_kinds(before, blurred)
    assert colour < 0.02
    assert coarse + fine > 0.98
    assert fine > coarse


def test_draws_are_the_seeds_alone() -> None:
    seeds = torch.tensor([11, 2**62 + 5, 3, -4])
    drawn = draw_switches(seeds, 16, 64)
    assert drawn.dtype == torch.bool
    assert drawn.shape == (4, 16, 64)
    assert torch.equal(drawn, draw_switches(seeds, 16, 64))
    for row in range(4):
        assert torch.equal(drawn[row], draw_switches(seeds[[row]], 16, 64)[0])
    assert torch.equal(drawn.flip(0), draw_switches(seeds.flip(0), 16, 64))
    assert not torch.equal(drawn[0], drawn[2])
    assert draw_switches(seeds[:0], 16, 64).shape == (0, 16, 64)


def test_sets_come_with_their_complements_and_an_odd_number_ends_with_half_a_pair() -> None:
    even, odd = (draw_switches(torch.arange(5), number, 9) for number in (8, 7))
    assert torch.equal(even[:, 0::2], ~even[:, 1::2])
    assert torch.equal(odd, even[:, :7])
    assert torch.equal(odd[:, 0:6:2], ~odd[:, 1:6:2])
    assert draw_switches(torch.arange(5), 1, 9).shape == (5, 1, 9)


def test_every_number_of_parts_is_as_likely() -> None:
    drawn = draw_switches(torch.arange(3000), 2, 6)[:, 0].sum(1)
    counts = torch.bincount(drawn, minlength=7)
    expected = 3000 / 7
    assert ((counts - expected).abs() < 4 * expected**0.5).all(), counts.tolist()


def test_all_coalitions_are_the_bits_of_their_number() -> None:
    assert all_coalitions(3).int().tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [1, 1, 0],
        [0, 0, 1],
        [1, 0, 1],
        [0, 1, 1],
    ]
    assert all_coalitions(1).shape == (0, 1)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8, 9, 36, 64])
@pytest.mark.parametrize("mixtures", [1, 4, 5, 16])
def test_packed_switches_come_back(parts: int, mixtures: int) -> None:
    on = draw_switches(torch.arange(4), mixtures, parts)
    for row, packed in zip(on, pack(on), strict=True):
        found = switches_of(packed, parts)
        assert found.shape == (mixtures, parts)
        assert np.array_equal(found, row.numpy())
        assert np.array_equal(switches_of(pack(row[:1])[0], parts)[0], row[0].numpy())


def test_regions_are_maps_that_cover_every_pixel_once() -> None:
    masks = torch.tensor([[[0, 1], [2, 9]]])
    maps = regions_as_maps(masks, 3)
    assert maps.shape == (1, 3, 2, 2)
    assert (maps.sum(1) == 1).all()
    assert maps[0, 2].tolist() == [[0, 0], [1, 1]], "a value beyond the names is the last region"
