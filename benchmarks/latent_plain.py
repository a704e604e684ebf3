"""The latent methods as public code runs them: one image at a time, torch's optimizers, one call
after another.

Written down line by line from the papers, with the noise that our methods draw for the same row, so
that answers can be compared. `models` are those of a run; images are (3,H,W) in [0,1]; answers are
stored images. Where weights want gradients, `backward` computes theirs as well, as it does in
public code, which freezes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Models = dict[str, Any]
Settings = dict[str, Any]


def stored(image: Tensor) -> Tensor:
    return (image.detach().clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def seen(classifier: Any, image: Tensor, target: int) -> tuple[bool, float]:
    """Is the stored image its target, and with what probability."""
    p = classifier(stored(image)[None]).softmax(1)[0]
    return int(p.argmax()) == target, float(p[target])


def climb(
    image: Tensor,
    target: int,
    classifier: Any,
    decode: Callable[[Tensor], Tensor],
    z0: Tensor,
    optimizer: Any,
    z: Tensor,
    s: Settings,
) -> Tensor:
    """Steps on z until the stored image passes the threshold; the best image where none does."""
    with torch.no_grad():
        x0 = decode(z0)
    best, best_p = image, -1.0
    for step in range(s["max_steps"] + 1):
        made = decode(z)
        x = (image + (made - x0)).clamp(0, 1) if s["residual"] else made
        log_p = classifier(x).log_softmax(1)[0]
        p = log_p[target].exp().item()
        if p > best_p:
            best, best_p = x.detach()[0], p
        if p > s["threshold"] and int(log_p.argmax()) == target:
            flips, p_stored = seen(classifier, x[0], target)
            if flips and p_stored > s["threshold"]:
                return stored(x[0])
        if step == s["max_steps"]:
            break
        loss = s["loss"](log_p[target], z, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return stored(best)


def counterfactualattack(
    image: Tensor, target: int, seed: int, models: Models, s: Settings
) -> Tensor:
    network = models["autoencoder"]
    with torch.no_grad():
        z0 = network.encode(image[None])
    z = z0.clone().requires_grad_()

    def loss_of(log_p: Tensor, z: Tensor, x: Tensor) -> Tensor:
        gain: Tensor = log_p if s["objective"] == "log_probability" else log_p.exp()
        loss: Tensor = -gain + s["distance_weight"] * (z - z0).square().sum()
        return loss

    adam = torch.optim.Adam([z], lr=s["lr"])
    return climb(
        image, target, models["classifier"], network.decode, z0, adam, z, {**s, "loss": loss_of}
    )


def xgems(image: Tensor, target: int, seed: int, models: Models, s: Settings) -> Tensor:
    network = models["autoencoder"]
    with torch.no_grad():
        z0 = network.encode(image[None])
    z = z0.clone().requires_grad_()

    def loss_of(log_p: Tensor, z: Tensor, x: Tensor) -> Tensor:
        loss: Tensor = -log_p + s["distance_weight"] * (x - image).square().sum()
        return loss

    sgd = torch.optim.SGD([z], lr=s["lr"])
    return climb(
        image, target, models["classifier"], network.decode, z0, sgd, z, {**s, "loss": loss_of}
    )


def aip(
    image: Tensor, target: int, seed: int, models: Models, s: Settings, random: bool = False
) -> Tensor:
    attgan, classifier, generator = (
        models["attgan"],
        models["classifier"],
        torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        z0, skip = attgan.encode(image[None]), attgan.skip(image[None])
        a0 = (attgan.attributes_of(image[None]) > 0.5).float()
        x0 = attgan.decode(z0, a0, skip)
    z, a, best, best_p = z0.clone(), a0.clone(), image, -1.0
    for n in range(s["n_max"] + 1):
        z, a = z.detach().requires_grad_(), a.detach().requires_grad_()
        made = attgan.decode(z, a, skip)
        x = (image + (made - x0)).clamp(0, 1) if s["residual"] else made
        log_p = classifier(x).log_softmax(1)[0]
        p = log_p[target].exp().item()
        if p > best_p:
            best, best_p = x.detach()[0], p
        if int(log_p.argmax()) == target and p > s["threshold"]:
            flips, p_stored = seen(classifier, x[0], target)
            if flips and p_stored > s["threshold"]:
                return stored(x[0])
        if n == s["n_max"]:
            break
        (-log_p[target] + s["alpha"] * ((z - z0).norm() + (a - a0).norm())).backward()
        step_z, step_a = z.grad, a.grad
        if random:
            step_z, step_a = (
                noise * (grad.norm() / noise.norm())
                for grad in (step_z, step_a)
                for noise in [torch.randn(grad.shape[1:], generator=generator)]
            )
        pace = max(s["beta"] ** n, s["floor"])
        with torch.no_grad():
            z, a = z - s["mu"] * pace * step_z, a - s["gamma"] * pace * step_a
            a = a.clamp(0, 1) if s["clamp"] else a
    return stored(best)


def aiprandom(image: Tensor, target: int, seed: int, models: Models, s: Settings) -> Tensor:
    return aip(image, target, seed, models, s, random=True)


def inverted(image: Tensor, seed: int, models: Models, s: Settings) -> Tensor:
    """The latent (1,...) of an image: every start by itself, then AdamW from the nearest."""
    gan, generator = models["gan"], torch.Generator().manual_seed(seed)
    starts: Tensor = s["spread"] * torch.randn(
        (s["starts"], *gan.latent_shape), generator=generator
    )
    with torch.no_grad():
        far = [float((gan.decode(start[None]) - image).square().sum()) for start in starts]
    z = starts[min(range(len(far)), key=far.__getitem__)][None].clone().requires_grad_()
    adamw = torch.optim.AdamW([z], lr=s["inversion_lr"], weight_decay=s["inversion_decay"])
    best, least = z.detach().clone(), float("inf")
    for step in range(s["inversion_steps"] + 1):
        distance = (gan.decode(z) - image).square().sum()
        if distance.item() < least:
            best, least = z.detach().clone(), distance.item()
        if step == s["inversion_steps"]:
            break
        adamw.zero_grad()
        distance.backward()
        adamw.step()
    return best


def counterfactualattackgan(
    image: Tensor, target: int, seed: int, models: Models, s: Settings
) -> Tensor:
    z0 = inverted(image, seed, models, s)
    z = z0.clone().requires_grad_()

    def loss_of(log_p: Tensor, z: Tensor, x: Tensor) -> Tensor:
        gain: Tensor = log_p if s["objective"] == "log_probability" else log_p.exp()
        loss: Tensor = -gain + s["distance_weight"] * (z - z0).square().sum()
        return loss

    adam = torch.optim.Adam([z], lr=s["lr"])
    return climb(
        image,
        target,
        models["classifier"],
        models["gan"].decode,
        z0,
        adam,
        z,
        {**s, "loss": loss_of},
    )
