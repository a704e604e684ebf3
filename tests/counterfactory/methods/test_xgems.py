"""xGEMs: the first step in closed form, torch's optimizers as a reference, and AttGAN's attributes
held still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterfactory.methods.contract import ImageQueries
from counterfactory.methods.xgems import XGEMs

Pick = Callable[[ImageQueries, list[int]], ImageQueries]


@pytest.mark.parametrize("name", ["autoencoder", "attgan"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("optimizer", ["gradient", "adam"])
def test_every_iterate_is_that_of_torchs_optimizer(
    optimizer: str,
    residual: bool,
    name: str,
    models: dict[str, nn.Module],
    queries: ImageQueries,
    pick: Pick,
) -> None:
    one = pick(queries, [0])
    F: Any = models["classifier"]
    G: Any = models[name]
    x, y = one.images, int(one.target)
    told = () if name == "autoencoder" else ((G.attributes_of(x) > 0.5).float(), G.skip(x))
    z0 = G.encode(x).detach()
    z = z0.clone().requires_grad_()
    torch_optimizer: Any = (
        torch.optim.Adam([z], lr=0.01) if optimizer == "adam" else torch.optim.SGD([z], lr=0.01)
    )
    for _ in range(5):
        made: Tensor = G.decode(z, *told)
        image = (x + made - G.decode(z0, *told)).clamp(0, 1) if residual else made
        loss = -F(image).log_softmax(1)[0, y] + 0.02 * (image - x).square().sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        torch_optimizer.step()
    method = XGEMs(
        lr=0.01,
        max_steps=5,
        distance_weight=0.02,
        optimizer=optimizer,
        residual=residual,
        threshold=1.0,
    )
    answers = method(one, classifier=F, autoencoder=G)
    assert int(answers.steps) == 5
    torch.testing.assert_close(answers.latent_after, z.detach(), atol=1e-5, rtol=1e-4)


def test_it_stops_at_the_flip_and_a_threshold_asks_for_more(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    used: dict[str, Any] = {
        "classifier": models["classifier"],
        "autoencoder": models["autoencoder"],
    }
    settings: dict[str, Any] = {
        "lr": 0.05,
        "optimizer": "adam",
        "distance_weight": 0.0,
        "residual": False,
    }
    first, sure = (XGEMs(threshold=p, **settings)(queries, **used) for p in (0.0, 0.9))
    p = (
        models["classifier"](sure.counterfactual)
        .softmax(1)
        .gather(1, queries.target[:, None])[:, 0]
    )
    assert bool(first.flipped.any())
    assert bool((sure.steps >= first.steps).all())
    assert int(sure.steps.sum()) > int(first.steps.sum())
    assert bool((p[:7][sure.steps[:7] < 50] > 0.9).all())
    assert int(sure.steps[-1]) == 0  # it has its target already


def test_a_heavy_weight_on_pixels_keeps_the_row_near(
    models: dict[str, nn.Module], queries: ImageQueries
) -> None:
    used: dict[str, Any] = {
        "classifier": models["classifier"],
        "autoencoder": models["autoencoder"],
    }
    near, far = (
        XGEMs(lr=0.01, max_steps=10, distance_weight=w, optimizer="adam", threshold=1.0)(
            queries, **used
        )
        for w in (1.0, 0.0)
    )
    way = [(a.counterfactual - queries.images).abs().mean() for a in (near, far)]
    assert float(way[0]) < float(way[1])


@pytest.mark.parametrize(
    "wrong", [{"optimizer": "newton"}, {"lr": -1.0}, {"max_steps": 0.5}, {"threshold": 2.0}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        XGEMs(**wrong)
