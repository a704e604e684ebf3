"""Denoising diffusion (Ho et al. 2020, DDPM) with a few of its trained steps: noising, one step
back, and all steps back.

Images are in [-1,1] here. A level i counts respaced steps: level 0 has the least noise, level N - 1
the most.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from counterfactory.models.interfaces import Denoiser


@dataclass(frozen=True)
class Schedule:
    """A diffusion process shortened to N of its T trained steps, with one value per level.

    trained: the trained step. alpha_bar: the signal's share of the variance. alpha_bar_before: that
    of the next cleaner level (1 at level 0). beta: the variance that this level adds.
    """

    trained: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    alpha_bar_before: tuple[float, ...]
    beta: tuple[float, ...]

    def posterior_variance(self, i: int) -> float:
        """Return the variance of q(x_{t-1} | x_t, x_0), DDPM eq. 7."""
        return (1 - self.alpha_bar_before[i]) / (1 - self.alpha_bar[i]) * self.beta[i]


def respace(alphas_cumprod: Tensor, steps: int) -> Schedule:
    """Return the schedule of `steps` evenly spread trained steps, both ends included, with the
    betas that connect them.

    alphas_cumprod: (T,). Nichol & Dhariwal 2021, section 4: beta_i = 1 - alpha_bar_{S_i} /
    alpha_bar_{S_{i-1}}. ValueError where `steps` is not between 1 and T.
    """
    if not 1 <= steps <= len(alphas_cumprod):
        raise ValueError(
            f"expected 1 to {len(alphas_cumprod)} respaced steps (the denoiser's trained steps),"
            f" got {steps}"
        )
    # Summed up and rounded to even as in guided-diffusion's `space_timesteps`: otherwise a quarter
    # of all pairs (T, steps) would differ from it in at least one step.
    stride, place, trained = (len(alphas_cumprod) - 1) / max(steps - 1, 1), 0.0, []
    for _ in range(steps):
        trained.append(round(place))
        place += stride
    alpha_bar = alphas_cumprod.double().cpu()[trained].tolist()
    before = [1.0, *alpha_bar[:-1]]
    beta = [1 - now / then for now, then in zip(alpha_bar, before, strict=True)]
    return Schedule(tuple(trained), tuple(alpha_bar), tuple(before), tuple(beta))


def q_sample(schedule: Schedule, x0: Tensor, i: int, noise: Tensor) -> Tensor:
    """Return x_t ~ q(x_t | x_0): x0 noised to level i; DDPM eq. 4."""
    return sqrt(schedule.alpha_bar[i]) * x0 + sqrt(1 - schedule.alpha_bar[i]) * noise


def predicted_x0(schedule: Schedule, x_t: Tensor, i: int, eps: Tensor) -> Tensor:
    """Return the clean image that a noise prediction implies, clipped to [-1,1]; DDPM eq. 15."""
    return ((x_t - sqrt(1 - schedule.alpha_bar[i]) * eps) / sqrt(schedule.alpha_bar[i])).clamp(
        -1, 1
    )


def posterior_mean(schedule: Schedule, x0: Tensor, x_t: Tensor, i: int) -> Tensor:
    """Return the mean of q(x_{t-1} | x_t, x_0); DDPM eq. 7."""
    a, before, beta = schedule.alpha_bar[i], schedule.alpha_bar_before[i], schedule.beta[i]
    return sqrt(before) * beta / (1 - a) * x0 + sqrt(1 - beta) * (1 - before) / (1 - a) * x_t


def p_mean_deviation(
    denoiser: Denoiser, schedule: Schedule, x_t: Tensor, i: int
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return the clean image that the denoiser predicts from x_t, and the mean and standard
    deviation of p(x_{t-1} | x_t).

    The deviation is one number where the variance is fixed, and a tensor like x_t where the
    denoiser has learnt it.
    """
    eps, v = denoiser(x_t, torch.full((len(x_t),), schedule.trained[i], device=x_t.device))
    x0 = predicted_x0(schedule, x_t, i, eps)
    mean, variance = posterior_mean(schedule, x0, x_t, i), schedule.posterior_variance(i)
    if v is None:
        return x0, mean, sqrt(variance)
    # The learned variance is between the posterior's and beta, in logarithms: Nichol & Dhariwal
    # 2021, eq. 15. The posterior's is 0 at level 0, where their code uses that of the next level.
    least = variance or (
        schedule.posterior_variance(1) if len(schedule.beta) > 1 else schedule.beta[0]
    )
    return x0, mean, (0.5 * (v * log(schedule.beta[i]) + (1 - v) * log(least))).exp()


def p_step(
    denoiser: Denoiser, schedule: Schedule, x_t: Tensor, i: int, noise: Tensor | None
) -> Tensor:
    """Return x_{t-1} ~ p(x_{t-1} | x_t): one ancestral step from level i; DDPM algorithm 2.

    noise: standard normal, like x_t. At level 0 the result is the mean and noise is not used.
    """
    _, mean, deviation = p_mean_deviation(denoiser, schedule, x_t, i)
    return mean if i == 0 or noise is None else mean + deviation * noise


def purify(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    noise: Tensor,
    *,
    through: int | None = None,
    checkpointed: bool = False,
) -> Tensor:
    """Return x noised to level K - 1 and denoised in K ancestral steps (F_tau of ACE, section 3.2);
    x: (B,3,H,W).

    noise: (B,K,3,H,W), in the order of use. The result is differentiable in x, through all K
    denoiser calls or only the last `through`; earlier steps then count as noising alone, which
    scales x and adds a term that does not depend on x. checkpointed: activations inside a call are
    not stored but computed again in the backward pass, which costs one more forward call for each
    call with a gradient.
    """
    K = noise.shape[1]
    cut = 0 if through is None else max(0, K - through)
    x_t = q_sample(schedule, x, K - 1, noise[:, 0])
    for i in reversed(range(K)):
        if i == K - 1 - cut and cut:
            x_t = x_t + sqrt(schedule.alpha_bar[i]) * (x - x.detach())
        step_noise = noise[:, K - i] if i else None
        if i > K - 1 - cut:
            with torch.no_grad():
                x_t = p_step(denoiser, schedule, x_t, i, step_noise)
        elif checkpointed:
            x_t = checkpoint(p_step, denoiser, schedule, x_t, i, step_noise, use_reentrant=False)
        else:
            x_t = p_step(denoiser, schedule, x_t, i, step_noise)
    return x_t + (x - x.detach()) if cut == K else x_t


def inpaint(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, start: Tensor, keep: Tensor, noise: Tensor
) -> Tensor:
    """Return `start` denoised from level K - 1; where `keep`, the noised x is pasted before every
    call, and x itself at the end.

    x, start: (B,3,H,W). keep: (B,1,H,W) bool. noise: (B,2K,3,H,W), in the order of use. This is
    RePaint (Lugmayr et al. 2022) without resampling, as in ACE's refinement.
    """
    K = noise.shape[1] // 2
    draws = iter(noise.unbind(1))
    x_t = q_sample(schedule, start, K - 1, next(draws))
    for i in reversed(range(K)):
        x_t = torch.where(keep, q_sample(schedule, x, i, next(draws)), x_t)
        x_t = p_step(denoiser, schedule, x_t, i, next(draws) if i else None)
    return torch.where(keep, x, x_t)


def keep_mask(x: Tensor, changed: Tensor, *, gamma: float, kernel: int) -> Tensor:
    """Return where hardly anything changed nearby, (B,1,H,W) bool: ACE section 3.3, the complement
    of CECAS eq. 8.

    The change is |changed - x| summed over channels, divided by its maximum over the image; its
    maximum over a kernel x kernel window must be below gamma.
    """
    change = (changed - x).abs().sum(1, keepdim=True)
    # Without any change, the mask is true everywhere.
    m = change / change.flatten(1).amax(1)[:, None, None, None].clamp_min(1e-12)
    return F.max_pool2d(m, kernel, stride=1, padding=kernel // 2) < gamma


def to_signal(images: Tensor) -> Tensor:
    """Return images in [0,1] as the denoiser's signal in [-1,1]."""
    return images * 2 - 1


def to_image(signal: Tensor) -> Tensor:
    """Return the denoiser's signal in [-1,1] as images in [0,1]."""
    return (signal + 1) / 2
