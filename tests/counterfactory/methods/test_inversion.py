"""GAN inversion: a known latent found again, against torch's AdamW, best of many starts, and rows
that leave alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import Budget, ImageQueries, row_generators, row_noise
from counterfactory.methods.counterfactual_attack_gan import CounterfactualAttackGAN
from counterfactory.methods.parts.inversion import Inversion

Pick = Callable[[ImageQueries, list[int]], ImageQueries]
PLAIN: dict[str, Any] = {
    "spread": 1.0,
    "lr": 0.1,
    "decay": 0.0,
    "patience": 0,
    "tolerance": 0.01,
    "precision": "float32",
}


def squared(made: Tensor, images: Tensor) -> Tensor:
    return (made - images).square().flatten(1).sum(1)


class Waves(nn.Module):
    """A latent of two numbers that an image shows as sines of them: many valleys, one of which is
    the deepest.
    """

    latent_shape = (2,)

    def decode(self, latents: Tensor) -> Tensor:
        place = torch.linspace(0.5, 6, 48).view(3, 4, 4)
        one, two = latents[:, 0, None, None, None], latents[:, 1, None, None, None]
        return 0.5 + 0.25 * torch.sin(place * one) + 0.25 * torch.cos(place * two + one)


def inverted(gan: Any, images: Tensor, seeds: list[int], **settings: Any) -> tuple[Tensor, Budget]:
    budget = Budget.of(len(images))
    generators = row_generators(torch.tensor(seeds))
    z = Inversion(**{**PLAIN, **settings})(gan, squared, images, generators, budget, calls=0)
    return z, budget


def test_a_known_latent_is_found_again(models: dict[str, nn.Module]) -> None:
    gan: Any = models["gan"]
    known = torch.randn(5, *gan.latent_shape, generator=torch.Generator().manual_seed(9))
    z, budget = inverted(gan, gan.decode(known).detach(), list(range(5)), starts=8, steps=120)
    torch.testing.assert_close(z, known, atol=0.01, rtol=0)
    assert budget.forward.tolist() == [8 + 121] * 5
    assert budget.backward.tolist() == [120] * 5


def test_the_way_is_that_of_torchs_adamw_from_the_nearest_start(
    models: dict[str, nn.Module],
) -> None:
    gan: Any = models["gan"]
    image = gan.decode(torch.full((1, *gan.latent_shape), 0.8)).detach()
    drawn = (
        0.7 * row_noise(row_generators(torch.tensor([4])), (16, *gan.latent_shape), image.device)[0]
    )
    first = squared(gan.decode(drawn), image.expand(16, -1, -1, -1)).argmin()
    z = drawn[first][None].clone().requires_grad_()
    adamw = torch.optim.AdamW([z], lr=0.1, weight_decay=0.3)
    for step in range(1, 6):
        adamw.zero_grad()
        squared(gan.decode(z), image).sum().backward()
        adamw.step()
        found, _ = inverted(gan, image, [4], starts=16, spread=0.7, steps=step, decay=0.3)
        torch.testing.assert_close(found, z.detach(), atol=1e-5, rtol=1e-5)


def test_the_best_of_many_starts_ends_nearer_than_one_start() -> None:
    gan = Waves()
    known = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)) * 1.5
    images, seeds = gan.decode(known), list(range(12))
    ends = []
    for starts in (1, 64):
        z, _ = inverted(gan, images, seeds, starts=starts, steps=80, spread=1.5)
        ends.append(squared(gan.decode(z), images))
    assert float(ends[1].mean()) < 0.3 * float(ends[0].mean())
    assert float((ends[0] > 0.1).float().mean()) > 0.3, (
        "one start alone must get stuck, or this tests nothing"
    )


def test_a_row_is_inverted_alone_as_in_a_batch_and_its_starts_are_its_own() -> None:
    gan = Waves()
    images = gan.decode(torch.randn(6, 2, generator=torch.Generator().manual_seed(20)))
    # 6 x 30: more than are looked at in one call
    settings: dict[str, Any] = {"starts": 30, "steps": 40, "patience": 5}
    whole, spent = inverted(gan, images, list(range(6)), **settings)
    assert len(set(spent.forward.tolist())) > 1, (
        "rows leave at different steps, or this tests little"
    )
    for row in range(6):
        alone, budget = inverted(gan, images[row : row + 1], [row], **settings)
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=0)
        assert budget.forward.item() == spent.forward[row]
        assert budget.backward.item() == spent.backward[row]
    same = gan.decode(torch.ones(2, 2))
    z, _ = inverted(gan, same, [1, 2], starts=1, steps=0)
    assert not torch.equal(z[0], z[1])


def test_a_row_that_has_settled_leaves() -> None:
    gan = Waves()
    images = gan.decode(torch.randn(6, 2, generator=torch.Generator().manual_seed(20)))
    best, long = inverted(gan, images, list(range(6)), starts=4, steps=150)
    z, short = inverted(
        gan, images, list(range(6)), starts=4, steps=150, patience=15, tolerance=0.01
    )
    assert bool((short.forward < long.forward).all())
    # Nobody leaves while there is still something to gain.
    assert bool(
        (squared(gan.decode(z), images) < 1.05 * squared(gan.decode(best), images) + 1e-3).all()
    )


def test_a_bad_gradient_ends_one_row_alone() -> None:
    gan = Waves()
    images = gan.decode(torch.randn(4, 2, generator=torch.Generator().manual_seed(20)))

    class Sick(Waves):
        def decode(self, latents: Tensor) -> Tensor:
            made = super().decode(latents)
            if made.requires_grad and len(latents) == 4:
                made.register_hook(lambda grad: grad.index_fill(0, torch.tensor([1]), torch.nan))
            return made

    z, spent = inverted(Sick(), images, [0, 1, 2, 3], starts=4, steps=20)
    healthy, _ = inverted(gan, images, [0, 1, 2, 3], starts=4, steps=20)
    start, _ = inverted(gan, images, [0, 1, 2, 3], starts=4, steps=0)
    assert bool(z.isfinite().all())
    torch.testing.assert_close(z[[0, 2, 3]], healthy[[0, 2, 3]], atol=1e-5, rtol=0)
    assert torch.equal(z[1], start[1])
    assert spent.backward.tolist() == [20, 1, 20, 20]


def test_the_attack_begins_where_the_inversion_ends(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    used: dict[str, Any] = {"classifier": models["classifier"], "gan": models["gan"]}
    settings: dict[str, Any] = {
        "perceptual": 0.0,
        "pixels": 1.0,
        "starts": 8,
        "inversion_steps": 30,
        "max_steps": 20,
    }
    method = CounterfactualAttackGAN(**settings, lr=0.05, residual=False)
    answers = method(queries, **used)
    z, budget = inverted(
        used["gan"],
        queries.images,
        queries.seed.tolist(),
        starts=8,
        steps=30,
        spread=0.7,
        decay=0.01,
    )
    torch.testing.assert_close(answers.latent_before, z)
    assert bool((answers.forward > budget.forward).all())
    assert method.needs == ("gan",)
    assert CounterfactualAttackGAN().needs == ("gan", "perceptual")


def test_a_generator_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.size"):
        inverted(Waves(), torch.zeros(1, 3, 8, 8), [0], starts=2, steps=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": 0},
        {"spread": -1.0},
        {"tolerance": 2.0},
        {"perceptual": 0.0},
        {"inversion_steps": 1.5},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CounterfactualAttackGAN(**wrong)
