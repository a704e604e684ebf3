"""Fisher information in closed form, groups that are there to be found, and that a reference set is
asked once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.parts.fisher import (
    fisher_groups,
    fisher_information,
    spectral_groups,
    start,
)
from counterfactory.models.distractors import Distractors


class Linear(nn.Module):
    """decode(z) = 0.5 + A z and three classes by w . x: the log-odds' gradient is A'(w_i - w_j)."""

    classes = ("a", "b", "c")

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.A, self.w = (
            torch.randn(48, latent, generator=g) * 0.01,
            torch.randn(48, 3, generator=g),
        )
        self.calls = 0

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.A

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 + latents @ self.A.T).unflatten(1, (3, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) @ self.w


def images(rows: int) -> Tensor:
    return torch.randint(
        40, 210, (rows, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


@pytest.mark.parametrize("residual", [True, False])
def test_information_is_the_mean_outer_product_in_closed_form(residual: bool) -> None:
    net, bank = Linear(), images(40)  # more than one batch
    z0, image, calls = start(net, bank.float() / 255, residual)
    assert calls == 1 + residual
    top = net(image(torch.arange(40), z0)).topk(2, dim=1).indices
    gradient = ((net.w[:, top[:, 0]] - net.w[:, top[:, 1]]).T @ net.A).double()
    wanted = (gradient[:, :, None] * gradient[:, None]).mean(0)
    # a decoded image is nearly grey, and of one class
    assert len(top.unique(dim=0)) > 1 or not residual
    torch.testing.assert_close(
        fisher_information(net, net, bank, residual), wanted, rtol=1e-4, atol=1e-7
    )


def test_images_without_a_finite_gradient_are_left_out() -> None:
    net, bank = Linear(), images(6)

    class Sick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bad = torch.zeros(len(x))
            bad[0] = torch.nan
            return net(x) + bad[:, None] * x.flatten(1).sum(1, keepdim=True)

    got = fisher_information(Sick(), net, bank, True)  # type: ignore[arg-type]
    torch.testing.assert_close(
        got * 6, fisher_information(net, net, bank[1:], True) * 5, rtol=1e-4, atol=1e-7
    )


def test_groups_that_go_together_are_found_and_come_by_their_information() -> None:
    truth = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 2, 0, 1])
    strength = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    together = (truth[:, None] == truth) * strength[truth]
    noise = (
        torch.rand(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.02
    )
    got = spectral_groups(together + noise + noise.T, 3)
    assert got.tolist() == torch.tensor([1, 0, 2])[truth].tolist()  # strength 3, 1, 0.5


def test_no_group_is_empty_and_the_groups_are_the_same_every_time() -> None:
    for seed in range(5):
        gradient = torch.randn(
            3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        # of rank three: hardly eight groups in it
        groups = spectral_groups(gradient.T @ gradient, 8)
        assert sorted(set(groups.tolist())) == list(range(8))
        assert torch.equal(groups, spectral_groups(gradient.T @ gradient, 8))
    assert spectral_groups(gradient.T @ gradient, 20).sort().values.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("count", "scale", "told"), [(5, 1.0, "answers <= 4"), (2, 0.0, "depends on the latent")]
)
def test_what_cannot_be_grouped_is_said(count: int, scale: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        spectral_groups(scale * torch.eye(4, dtype=torch.float64), count)


def test_the_reference_set_is_asked_once_for_its_models() -> None:
    net, bank = Linear(), Distractors(images(8), torch.arange(8))
    asked: list[Any] = [fisher_groups(net, net, bank, 2, True) for _ in range(3)]
    assert net.calls == 1
    assert torch.equal(asked[0], asked[2])
    fisher_groups(Linear(), net, bank, 2, True)
    fisher_groups(net, net, bank, 3, True)
    assert net.calls == 2
