"""The diffusion methods as public code runs them: one image at a time, every iteration, every call
one after another.

Written down line by line from the papers, with the noise that our methods draw for the same row, so
that answers can be compared. `denoiser` is a counterfactory.models.interfaces.Denoiser, images are
(3,H,W) in [0,1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Models = dict[str, Any]


class Chain:
    """A respaced diffusion process; `step` is DDPM's ancestral step with the
    posterior's variance."""

    def __init__(self, denoiser: Any, respaced: int) -> None:
        trained = denoiser.alphas_cumprod.double()
        self.denoiser = denoiser
        self.kept = [round(j * (len(trained) - 1) / (respaced - 1)) for j in range(respaced)]
        self.bar = trained[self.kept].tolist()

    def noised(self, x: Tensor, i: int, noise: Tensor) -> Tensor:
        return self.bar[i] ** 0.5 * x + (1 - self.bar[i]) ** 0.5 * noise

    def step(self, x_t: Tensor, i: int) -> tuple[Tensor, Tensor, float]:
        """Clean estimate, mean and deviation of the next cleaner level."""
        eps = self.denoiser(x_t[None], torch.tensor([self.kept[i]]))[0][0]
        x0 = ((x_t - (1 - self.bar[i]) ** 0.5 * eps) / self.bar[i] ** 0.5).clamp(-1, 1)
        if i == 0:
            return x0, x0, 0.0
        beta = 1 - self.bar[i] / self.bar[i - 1]
        mean = beta * self.bar[i - 1] ** 0.5 / (1 - self.bar[i]) * x0
        mean = mean + (1 - self.bar[i - 1]) * (1 - beta) ** 0.5 / (1 - self.bar[i]) * x_t
        return x0, mean, (beta * (1 - self.bar[i - 1]) / (1 - self.bar[i])) ** 0.5


def attack(
    chain: Chain,
    image: Tensor,
    generator: torch.Generator,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    levels: int,
    iterations: int,
    step: float,
) -> Tensor:
    """ACE's PGD: `iterations` times `levels` denoiser calls, forward and backward."""
    x = image.clone()
    for _ in range(iterations):
        noise = torch.randn((levels, *image.shape), generator=generator)
        x = x.detach().requires_grad_()
        x_t = chain.noised(2 * x - 1, levels - 1, noise[0])
        for j, i in enumerate(reversed(range(levels))):
            _, x_t, deviation = chain.step(x_t, i)
            if i:
                x_t = x_t + deviation * noise[j + 1]
        (grad,) = torch.autograd.grad(loss_of(x, (x_t + 1) / 2), x)
        x = (x.detach() - step / 255 * grad.sign()).clamp(0, 1)
    return x


def cross_entropy(classifier: Any, view: Tensor, target: int) -> Tensor:
    return F.cross_entropy(classifier(view[None]), torch.tensor([target]))


def keep_mask(image: Tensor, changed: Tensor, gamma: float, kernel: int) -> Tensor:
    m = (changed - image).abs().sum(0, keepdim=True)
    m = m / m.max().clamp_min(1e-12)
    return F.max_pool2d(m[None], kernel, 1, kernel // 2)[0] < gamma


@torch.no_grad()
def refined(
    chain: Chain, image: Tensor, pre: Tensor, keep: Tensor, levels: int, generator: torch.Generator
) -> Tensor:
    draws = iter(torch.randn((2 * levels, *image.shape), generator=generator))
    x_t = chain.noised(2 * pre - 1, levels - 1, next(draws))
    for i in reversed(range(levels)):
        x_t = torch.where(keep, chain.noised(2 * image - 1, i, next(draws)), x_t)
        _, x_t, deviation = chain.step(x_t, i)
        if i:
            x_t = x_t + deviation * next(draws)
    return torch.where(keep, image, (x_t + 1) / 2)


def better(classifier: Any, target: int, *candidates: Tensor) -> Tensor:
    """The last candidate that flips as stored, else the one of highest probability."""
    stored = [(c.clamp(0, 1) * 255).round() / 255 for c in candidates]
    with torch.no_grad():
        p = [float(classifier(s[None]).softmax(1)[0, target]) for s in stored]
        flips = [int(classifier(s[None]).argmax(1)) == target for s in stored]
    return stored[max(range(len(stored)), key=lambda k: (flips[k], k if flips[k] else 0, p[k]))]


def ace(image: Tensor, target: int, seed: int, models: Models, s: dict[str, Any]) -> Tensor:
    chain, generator = Chain(models["denoiser"], s["respaced"]), torch.Generator().manual_seed(seed)
    classifier = models["classifier"]

    def loss(x: Tensor, view: Tensor) -> Tensor:
        return cross_entropy(classifier, view, target) + s["weight"] * (x - image).abs().sum()

    pace = {key: s[key] for key in ("levels", "iterations", "step")}
    pre = attack(chain, image, generator, loss, **pace)
    keep = keep_mask(image, pre, s["gamma"], s["kernel"])
    return better(classifier, target, pre, refined(chain, image, pre, keep, s["levels"], generator))


def cecas(image: Tensor, target: int, seed: int, models: Models, s: dict[str, Any]) -> Tensor:
    chain, classifier, spurious = (
        Chain(models["denoiser"], s["respaced"]),
        models["classifier"],
        models["spurious"],
    )
    first, second = (torch.Generator().manual_seed(seed) for _ in range(2))
    with torch.no_grad():
        said = spurious(image[None], classifier).softmax(2)

    def causal(x: Tensor, view: Tensor) -> Tensor:
        held = -(said * spurious(view[None], classifier).log_softmax(2)).sum()
        return cross_entropy(classifier, view, target) + s["alpha"] * held

    def near(x: Tensor, view: Tensor) -> Tensor:
        return cross_entropy(classifier, view, target) + s["weight"] * (x - image).abs().sum()

    pace = {key: s[key] for key in ("levels", "iterations", "step")}
    pre = attack(chain, image, first, causal, **pace)
    keep = keep_mask(image, attack(chain, image, second, near, **pace), s["gamma"], s["kernel"])
    return better(classifier, target, pre, refined(chain, image, pre, keep, s["levels"], first))


@torch.no_grad()
def dime(image: Tensor, target: int, seed: int, models: Models, s: dict[str, Any]) -> Tensor:
    chain, generator = Chain(models["denoiser"], s["respaced"]), torch.Generator().manual_seed(seed)
    classifier, tau, x = models["classifier"], s["tau"], 2 * image - 1
    first, tries = torch.randn(image.shape, generator=generator), []
    for scale in s["scales"]:
        x_t, clean = chain.noised(x, min(tau, s["respaced"] - 1), first), x
        for i in reversed(range(tau)):
            _, mean, deviation = chain.step(x_t, i)
            with torch.enable_grad():
                leaf = clean.clone().requires_grad_()
                scores = classifier(((leaf + 1) / 2)[None])[0]
                logit = scores[target] - torch.cat(
                    [scores[:target], scores[target + 1 :]]
                ).logsumexp(0)
                (grad,) = torch.autograd.grad(-scale * logit, leaf)
            grad = grad / chain.bar[i] ** 0.5 + s["l1"] * (x_t - x).sign()
            x_t = mean - deviation**2 * grad
            if i:
                x_t = x_t + deviation * torch.randn(image.shape, generator=generator)
                clean = x_t
                for k in reversed(range(i)):
                    _, clean, spread = chain.step(clean, k)
                    if k:
                        clean = clean + spread * torch.randn(image.shape, generator=generator)
        tries.append((x_t + 1) / 2)
        stored = (tries[-1].clamp(0, 1) * 255).round() / 255
        if int(classifier(stored[None]).argmax(1)) == target:
            break
    return better(classifier, target, *tries)
