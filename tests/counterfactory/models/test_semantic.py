"""The semantic autoencoder: what a style reaches, what a region without pixels gives, and its
wrapper.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from counterfactory.models.semantic import SemanticNet, places, shares
from counterfactory.models.wrapping.load import build

SMALL: dict[str, Any] = {
    "regions": 3,
    "size": 16,
    "style": 4,
    "told": 5,
    "encoder": (4, 6, 8),
    "widths": (6, 8, 4),
}


@pytest.fixture
def masks() -> Tensor:
    masks = torch.zeros(2, 16, 16, dtype=torch.int64)
    masks[0, 4:12, 4:12] = 1
    masks[1, 2:6, 2:6] = 2
    return masks


def made() -> SemanticNet:
    torch.manual_seed(0)
    return SemanticNet(**SMALL).eval()


def test_shares_and_places(masks: Tensor) -> None:
    whole, half = shares(masks, 3, (16, 16), torch.float32), shares(masks, 3, (8, 8), torch.float32)
    assert torch.equal(whole.argmax(1), masks)
    torch.testing.assert_close(half.sum(1), torch.ones(2, 8, 8))
    torch.testing.assert_close(half.mean((2, 3)), whole.mean((2, 3)))
    own = places(whole)[:, 3:5]
    assert torch.equal(places(whole)[:, 2], torch.ones(2, 16, 16))
    u, v = own.unbind(1)
    torch.testing.assert_close(places(whole)[:, 5:], torch.stack([u * u, u * v, v * v], 1))
    inside = own[0][:, masks[0] == 1]
    # from the region's own middle
    torch.testing.assert_close(inside.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    moved = places(shares(masks.roll((3, 2), (1, 2)), 3, (16, 16), torch.float32))[:, 3:5]
    torch.testing.assert_close(moved[0, :, 7:15, 6:14], own[0, :, 4:12, 4:12], atol=1e-4, rtol=0)


def test_a_style_is_of_its_region_alone(masks: Tensor) -> None:
    net, x = made(), torch.rand(2, 3, 16, 16)
    z = net.encode(x, masks)
    assert z.shape == (2, 3, 4)
    assert not bool(z[0, 2].any())  # nothing of it in that mask
    assert bool(z[1, 2].all())
    other = z.clone()
    other[:, 1] += 5  # of which the second mask has nothing
    a, b = net.decode(z, masks).detach(), net.decode(other, masks).detach()
    assert a.shape == x.shape
    assert 0 <= float(a.min()) <= float(a.max()) <= 1
    assert torch.equal(a[1], b[1])
    assert bool((a[0] != b[0]).any(0)[masks[0] == 1].all())


def test_what_a_style_draws_reaches_no_farther_than_convolutions(masks: Tensor) -> None:
    """Six 3x3 convolutions at a quarter, half and the whole of the side: no norm carries it to the
    other end.
    """
    net = SemanticNet(**{**SMALL, "size": 64}).eval()
    large = torch.zeros(1, 64, 64, dtype=torch.int64)
    large[0, :8, :8] = 1
    z = torch.zeros(1, 3, 4)
    other = z.clone()
    other[:, 1] += 3
    change = (net.decode(z, large) - net.decode(other, large)).detach().abs().sum((0, 1))
    assert float(change[:8, :8].min()) > 0
    assert not bool(change[48:].any() or change[:, 48:].any())


def test_its_rows_do_not_know_each_other(masks: Tensor) -> None:
    net, x = made(), torch.rand(2, 3, 16, 16)
    both = net.decode(net.encode(x, masks), masks)
    for row in range(2):
        part = slice(row, row + 1)
        alone = net.decode(net.encode(x[part], masks[part]), masks[part])
        torch.testing.assert_close(alone, both[part], atol=1e-5, rtol=0)


def test_the_wrapper_knows_regions_and_size(masks: Tensor) -> None:
    spec = {
        "role": "semantic",
        "target": "counterfactory.models.semantic.SemanticNet",
        "settings": SMALL,
        "size": 16,
    }
    model: Any = build({**spec, "classes": ["a", "b", "c"]}, None, torch.device("cpu"))
    assert model.regions == ("a", "b", "c")
    assert model.decode(model.encode(torch.rand(2, 3, 16, 16), masks), masks).shape == (
        2,
        3,
        16,
        16,
    )
    with pytest.raises(ValueError, match="expected images of 16 x 16 px"):
        model.encode(torch.rand(2, 3, 8, 8), masks[:, :8, :8])
    fewer: Any = build({**spec, "classes": ["a", "b"]}, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="expected a style for each of 2 regions, got 3"):
        fewer.encode(torch.rand(2, 3, 16, 16), masks)
    with pytest.raises(ValueError, match="expected a network with a method `encode`"):
        build(
            {**spec, "target": "torch.nn.Identity", "settings": {}, "classes": ["a"]},
            None,
            torch.device("cpu"),
        )
    with pytest.raises(ValueError, match="divisible by 4"):
        SemanticNet(regions=3, size=18)
