"""Denoising diffusion (Ho et al. 2020, DDPM) on a few of its trained steps: noising, one step back, a whole way back.

Images are in [-1,1] here. A level i counts respaced steps: level 0 is the least noise, N - 1 the most.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.interfaces import Denoiser


@dataclass(frozen=True)
class Schedule:
    """A diffusion process shortened to N of its T trained steps; one value a level each.

    trained: the trained step; alpha_bar: the signal's share of variance; alpha_bar_before: that of the next cleaner
    level (1 at level 0); beta: the variance that this level adds.
    """

    trained: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    alpha_bar_before: tuple[float, ...]
    beta: tuple[float, ...]

    def posterior_variance(self, i: int) -> float:
        """Variance of q(x_{t-1} | x_t, x_0), DDPM eq. 7."""
        return (1 - self.alpha_bar_before[i]) / (1 - self.alpha_bar[i]) * self.beta[i]


def respace(alphas_cumprod: Tensor, steps: int) -> Schedule:
    """Keep `steps` trained steps, evenly spread and both ends included, with the betas that join them.

    alphas_cumprod: (T,). Nichol & Dhariwal 2021, section 4: beta_i = 1 - alpha_bar_{S_i} / alpha_bar_{S_{i-1}}.
    """
    if not 1 <= steps <= len(alphas_cumprod):
        raise ValueError(
            f"expected 1 to {len(alphas_cumprod)} respaced steps (the denoiser's trained steps), got {steps}"
        )
    trained = torch.linspace(0, len(alphas_cumprod) - 1, steps, dtype=torch.float64).round().long()
    alpha_bar = alphas_cumprod.double().cpu()[trained].tolist()
    before = [1.0, *alpha_bar[:-1]]
    beta = [1 - now / then for now, then in zip(alpha_bar, before, strict=True)]
    return Schedule(tuple(trained.tolist()), tuple(alpha_bar), tuple(before), tuple(beta))


def q_sample(schedule: Schedule, x0: Tensor, i: int, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0), x0 noised to level i; DDPM eq. 4."""
    return sqrt(schedule.alpha_bar[i]) * x0 + sqrt(1 - schedule.alpha_bar[i]) * noise


def predicted_x0(schedule: Schedule, x_t: Tensor, i: int, eps: Tensor) -> Tensor:
    """The clean image that a noise prediction implies, clipped to [-1,1]; DDPM eq. 15."""
    return ((x_t - sqrt(1 - schedule.alpha_bar[i]) * eps) / sqrt(schedule.alpha_bar[i])).clamp(-1, 1)


def posterior_mean(schedule: Schedule, x0: Tensor, x_t: Tensor, i: int) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0); DDPM eq. 7."""
    a, before, beta = schedule.alpha_bar[i], schedule.alpha_bar_before[i], schedule.beta[i]
    return sqrt(before) * beta / (1 - a) * x0 + sqrt(1 - beta) * (1 - before) / (1 - a) * x_t


def p_step(denoiser: Denoiser, schedule: Schedule, x_t: Tensor, i: int, noise: Tensor | None) -> Tensor:
    """x_{t-1} ~ p(x_{t-1} | x_t), one ancestral step from level i; DDPM algorithm 2.

    noise: standard normal like x_t; at level 0 the step is its mean and noise is not used.
    """
    eps, v = denoiser(x_t, torch.full((len(x_t),), schedule.trained[i], device=x_t.device))
    mean = posterior_mean(schedule, predicted_x0(schedule, x_t, i, eps), x_t, i)
    if i == 0 or noise is None:
        return mean
    variance = schedule.posterior_variance(i)
    if v is None:
        return mean + sqrt(variance) * noise
    # The learned variance lies between the posterior's and beta, in logarithms: Nichol & Dhariwal 2021, eq. 15.
    return mean + (0.5 * (v * log(schedule.beta[i]) + (1 - v) * log(variance))).exp() * noise


def purify(denoiser: Denoiser, schedule: Schedule, x: Tensor, noise: Tensor, *, checkpointed: bool = False) -> Tensor:
    """Noise x to level K - 1 and denoise it in K ancestral steps (F_tau of ACE, section 3.2); x (B,3,H,W).

    noise: (B,K,3,H,W), in the order of use. Differentiable in x through all K denoiser calls; checkpointed: activations
    inside a call are computed again in the backward pass instead of kept, K more forward calls.
    """
    K = noise.shape[1]
    x_t = q_sample(schedule, x, K - 1, noise[:, 0])
    for i in reversed(range(K)):
        step_noise = noise[:, K - i] if i else None
        if checkpointed:
            x_t = checkpoint(p_step, denoiser, schedule, x_t, i, step_noise, use_reentrant=False)
        else:
            x_t = p_step(denoiser, schedule, x_t, i, step_noise)
    return x_t


def inpaint(denoiser: Denoiser, schedule: Schedule, x: Tensor, start: Tensor, keep: Tensor, noise: Tensor) -> Tensor:
    """Denoise `start` from level K - 1, the noised x pasted where `keep` before every call and x itself at the end.

    x, start: (B,3,H,W); keep: (B,1,H,W) bool; noise: (B,2K,3,H,W), in the order of use. RePaint (Lugmayr et al. 2022)
    without resampling, as ACE's refinement has it.
    """
    K = noise.shape[1] // 2
    draws = iter(noise.unbind(1))
    x_t = q_sample(schedule, start, K - 1, next(draws))
    for i in reversed(range(K)):
        x_t = torch.where(keep, q_sample(schedule, x, i, next(draws)), x_t)
        x_t = p_step(denoiser, schedule, x_t, i, next(draws) if i else None)
    return torch.where(keep, x, x_t)
