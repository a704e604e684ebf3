"""AIP: algorithm 1 step by step, its random control, and what it says of attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.aip import AIP, length
from counterfactory.methods.aip_random import AIPRandom, random_direction
from counterfactory.methods.contract import ImageQueries, to_8bit

Pick = Callable[[ImageQueries, list[int]], ImageQueries]


def used(models: dict[str, nn.Module]) -> dict[str, Any]:
    return {name: models[name] for name in ("classifier", "attgan")}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("floor", "beta"), [(0.0, 0.9), (0.3, 0.5), (0.0, 1.0)])
def test_a_row_goes_as_algorithm_1_says(
    residual: bool,
    floor: float,
    beta: float,
    models: dict[str, nn.Module],
    queries: ImageQueries,
    pick: Pick,
) -> None:
    """Transcribed: while F(dec(z,a)) != y* and n < n_max: eq. 6 with the gradient of eq. 3; mu,
    gamma times beta.
    """
    F: Any = models["classifier"]
    G: Any = models["attgan"]
    alpha, mu, gamma, n_max = 0.3, 0.05, 0.2, 12
    method = AIP(
        alpha=alpha,
        beta=beta,
        n_max=n_max,
        mu=mu,
        gamma=gamma,
        floor=floor,
        residual=residual,
        threshold=0.0,
    )
    answers = method(queries, **used(models))
    ended = set()
    for row in range(7):  # the last has its target already
        one = pick(queries, [row])
        x, y, skip = one.images, int(one.target), G.skip(one.images)
        z0, a0 = G.encode(x).detach(), (G.attributes_of(x) > 0.5).float()
        z, a, n, step_z, step_a = z0, a0, 0, mu, gamma

        def dec(
            z: Tensor,
            a: Tensor,
            x: Tensor = x,
            z0: Tensor = z0,
            a0: Tensor = a0,
            skip: Tensor = skip,
        ) -> Tensor:
            made: Tensor = G.decode(z, a, skip)
            return (x + made - G.decode(z0, a0, skip)).clamp(0, 1) if residual else made

        def there(z: Tensor, a: Tensor, y: int = y, dec: Any = dec) -> bool:
            """The prediction is the target, of the image and of what is stored of it."""
            return {
                int(F(image.detach()).argmax()) for image in (dec(z, a), to_8bit(dec(z, a)))
            } == {y}

        tried = []
        while n < n_max and not there(z, a):
            tried.append((float(F(dec(z, a)).softmax(1)[0, y].detach()), z, a))
            z, a = z.detach().requires_grad_(), a.detach().requires_grad_()
            loss = -F(dec(z, a)).log_softmax(1)[0, y] + alpha * ((z - z0).norm() + (a - a0).norm())
            grad_z, grad_a = torch.autograd.grad(loss, (z, a))
            z, a, n = (z - step_z * grad_z).detach(), (a - step_a * grad_a).detach(), n + 1
            step_z, step_a = max(beta * step_z, floor * mu), max(beta * step_a, floor * gamma)
        if not there(z, a):
            _, z, a = max(
                [*tried, (float(F(dec(z, a)).softmax(1)[0, y].detach()), z, a)],
                key=lambda found: found[0],
            )
        ended.add(n == n_max)
        assert int(answers.steps[row]) == n
        torch.testing.assert_close(answers.latent_after[row], z[0], atol=1e-4, rtol=1e-4)  # type: ignore[index]
        torch.testing.assert_close(answers.condition_after[row], a[0], atol=1e-4, rtol=1e-4)  # type: ignore[index]
        torch.testing.assert_close(
            answers.counterfactual[row], to_8bit(dec(z, a))[0], atol=1.5 / 255, rtol=0
        )
        assert torch.equal(answers.condition_before[row], a0[0])  # type: ignore[index]
    assert False in ended  # some row flipped before n_max


def test_decay_bounds_the_way_and_a_floor_lifts_the_bound(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    """A classifier that never flips and whose gradient is 1 everywhere: the way is mu (1 - beta^n)
    / (1 - beta).
    """

    class Ramp(nn.Module):
        classes = ("a", "b", "c")

        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).sum(1) * 0 - 50
            return torch.stack([torch.zeros_like(score), score, score], 1)

    class Line(nn.Module):
        attributes = ("one",)

        def encode(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * 0

        def attributes_of(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :1] * 0

        def skip(self, images: Tensor) -> Tensor:
            return images[:, :0]

        def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
            # log p(target) = score of the target, to within e^-50: its gradient is that of the
            # pictures' sum
            grey = (latents.sum(1) + attributes.sum(1)) / (3 * 16 * 16)
            return grey[:, None, None, None].expand(-1, 3, 16, 16)

    class Slope(Ramp):
        def forward(self, images: Tensor) -> Tensor:
            total = images.flatten(1).sum(1)
            return torch.stack(
                [torch.zeros_like(total), total - 50, torch.full_like(total, -99.0)], 1
            )

    queries.source[:], queries.target[:] = 0, 1
    for settings, way in (
        ({"floor": 0.0}, (1 - 0.5**6) / 0.5),
        ({"floor": 0.25}, 1 + 0.5 + 0.25 * 4),
    ):
        method = AIP(alpha=0.0, beta=0.5, n_max=6, mu=1.0, gamma=3.0, residual=False, **settings)
        answers = method(queries, classifier=Slope(), attgan=Line())
        torch.testing.assert_close(answers.latent_after, torch.full((8, 2), way), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            answers.condition_after, torch.full((8, 1), 3 * way), atol=1e-4, rtol=0
        )
    clamped = AIP(alpha=0.0, beta=0.5, n_max=6, mu=1.0, gamma=3.0, residual=False, clamp=True)(
        queries, classifier=Slope(), attgan=Line()
    )
    assert clamped.condition_after is not None
    assert float(clamped.condition_after.max()) == 1
    still = AIP(n_max=6)(queries, classifier=Ramp(), attgan=Line())
    torch.testing.assert_close(still.latent_after, still.latent_before)


def test_what_a_row_weighs_by_alpha_stays_nearer(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    ways = []
    for alpha in (0.0, 2.0):
        answers = AIP(alpha=alpha, n_max=4, mu=0.02, gamma=0.05, threshold=1.0)(
            queries, **used(models)
        )
        ways.append(length(answers.latent_after - answers.latent_before))  # type: ignore[operator]
    assert float(ways[1].mean()) < float(ways[0].mean())


def test_random_ways_are_as_long_and_a_rows_own(
    models: dict[str, nn.Module], queries: ImageQueries, pick: Pick
) -> None:
    grad = torch.randn(4, 5, 2)
    generators = [torch.Generator().manual_seed(row) for row in range(4)]
    ways = random_direction(grad, generators)
    torch.testing.assert_close(length(ways), length(grad))
    cosines = torch.nn.functional.cosine_similarity(ways.flatten(1), grad.flatten(1))
    assert float(cosines.abs().max()) < 0.99
    assert not bool(random_direction(torch.zeros(4, 3), generators).any())
    settings: dict[str, Any] = {
        "n_max": 8,
        "mu": 0.05,
        "gamma": 0.1,
        "alpha": 0.3,
        "threshold": 1.0,
    }
    whole = AIPRandom(**settings)(queries, **used(models))
    alone = AIPRandom(**settings)(pick(queries, [3]), **used(models))
    torch.testing.assert_close(whole.latent_after[3:4], alone.latent_after)  # type: ignore[index]
    informed = AIP(**settings)(queries, **used(models))
    p_random, p_informed = (
        models["classifier"](a.counterfactual)
        .detach()
        .softmax(1)
        .gather(1, queries.target[:, None])
        .mean()
        for a in (whole, informed)
    )
    assert float(p_informed) > float(p_random)


def test_rows_that_flip_leave_the_batch(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    sizes: list[int] = []
    attgan: Any = models["attgan"]

    class Counting(nn.Module):
        attributes = attgan.attributes
        encode, skip, attributes_of = attgan.encode, attgan.skip, attgan.attributes_of

        def decode(self, latents: Tensor, attributes: Tensor, skip: Tensor) -> Tensor:
            sizes.append(len(latents))
            made: Tensor = attgan.decode(latents, attributes, skip)
            return made

    answers = AIP(alpha=0.1, n_max=40, mu=0.05, gamma=0.1, beta=1.0)(
        queries, classifier=models["classifier"], attgan=Counting()
    )
    steps = answers.steps.tolist()
    assert len(set(steps)) > 2
    assert steps[7] == 0  # it has its target already
    assert sizes[1:] == [sum(step >= n for step in steps[:7]) for n in range(max(steps) + 1)]


@pytest.mark.parametrize(
    "wrong", [{"beta": 1.5}, {"floor": -0.1}, {"alpha": -1.0}, {"n_max": 2.5}, {"clamp": 1}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AIP(**wrong)
