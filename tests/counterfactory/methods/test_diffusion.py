"""The diffusion steps: identities of respacing, and diffusers' DDPMScheduler as an independent
reference.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from counterfactory.methods.parts.diffusion import (
    inpaint,
    p_step,
    predicted_x0,
    purify,
    q_sample,
    respace,
)

T = 60


def scheduler(**settings: Any) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=T,
        beta_start=1e-3,
        beta_end=0.05,
        timestep_spacing="linspace",
        clip_sample=True,
        **settings,
    )


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_full_schedule_is_itself() -> None:
    reference = scheduler()
    schedule = respace(reference.alphas_cumprod.double(), T)
    assert schedule.trained == tuple(range(T))
    torch.testing.assert_close(torch.tensor(schedule.beta), reference.betas, atol=1e-6, rtol=1e-4)


def spaced(count: int, steps: int) -> set[int]:
    """The kept steps as guided-diffusion's respace.py finds them for one section."""
    stride = 1 if steps <= 1 else (count - 1) / (steps - 1)
    at, taken = 0.0, []
    for _ in range(steps):
        taken.append(0 + round(at))
        at += stride
    return set(taken)


@pytest.mark.parametrize("count", [100, 500, 1000])
def test_the_kept_steps_are_public_codes(count: int) -> None:
    alpha_bar = torch.linspace(0.999, 0.001, count, dtype=torch.float64)
    for steps in range(1, count + 1, 7):
        assert set(respace(alpha_bar, steps).trained) == spaced(count, steps), steps
    # 2.5 is rounded to even
    assert respace(torch.linspace(0.999, 0.001, 6), 3).trained == (0, 2, 5)


@pytest.mark.parametrize("steps", [2, 7, 25, 59])
def test_respaced_betas_join_the_kept_levels(steps: int) -> None:
    alpha_bar = scheduler().alphas_cumprod.double()
    schedule = respace(alpha_bar, steps)
    assert len(set(schedule.trained)) == steps
    assert (schedule.trained[0], schedule.trained[-1]) == (0, T - 1)
    assert schedule.alpha_bar == tuple(alpha_bar[list(schedule.trained)].tolist())
    torch.testing.assert_close(
        torch.cumprod(1 - torch.tensor(schedule.beta, dtype=torch.float64), 0),
        torch.tensor(schedule.alpha_bar, dtype=torch.float64),
    )
    assert schedule.posterior_variance(0) == 0
    assert all(0 < schedule.posterior_variance(i) < schedule.beta[i] for i in range(1, steps))


@pytest.mark.parametrize("steps", [0, T + 1])
def test_too_few_or_too_many_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to {T} respaced steps .* got {steps}"):
        respace(scheduler().alphas_cumprod, steps)


@pytest.mark.parametrize("level", [0, 1, 30, T - 1])
def test_noising_agrees_with_diffusers(level: int) -> None:
    reference, x0, eps = scheduler(), noise(1, 2, 3, 8, 8).clamp(-1, 1), noise(2, 2, 3, 8, 8)
    schedule = respace(reference.alphas_cumprod.double(), T)
    expected = reference.add_noise(x0, eps, torch.full((2,), level))
    torch.testing.assert_close(q_sample(schedule, x0, level, eps), expected)
    torch.testing.assert_close(predicted_x0(schedule, expected, level, eps), x0, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [T, 12])
@pytest.mark.parametrize("learned", [False, True])
def test_every_step_agrees_with_diffusers(steps: int, learned: bool) -> None:
    reference = scheduler(variance_type="learned_range" if learned else "fixed_small")
    reference.set_timesteps(steps)
    schedule = respace(reference.alphas_cumprod.double(), steps)
    assert reference.timesteps.tolist() == list(reversed(schedule.trained))
    x_t, eps, v = noise(3, 1, 3, 8, 8), 0.8 * noise(4, 1, 3, 8, 8), noise(5, 1, 3, 8, 8).tanh()
    for i in range(steps):
        t, asked = schedule.trained[i], []

        def denoiser(
            x: Tensor, at: Tensor, asked: list[int] = asked
        ) -> tuple[Tensor, Tensor | None]:
            asked += at.tolist()
            return eps, (v + 1) / 2 if learned else None

        denoiser.alphas_cumprod = reference.alphas_cumprod  # type: ignore[attr-defined]
        raw = torch.cat([eps, v], 1) if learned else eps
        expected = reference.step(
            raw, t, x_t, generator=torch.Generator().manual_seed(i)
        ).prev_sample
        got = p_step(denoiser, schedule, x_t, i, noise(i, 1, 3, 8, 8))  # type: ignore[arg-type]
        assert asked == [t]
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_purify_is_its_steps_and_keeps_its_gradient_under_checkpointing(
    make_denoiser: Callable[..., Any],
) -> None:
    denoiser = make_denoiser(learned=True)
    schedule = respace(denoiser.alphas_cumprod, 10)
    x, z = noise(6, 2, 3, 16, 16).tanh(), noise(7, 2, 3, 3, 16, 16)
    x_t = q_sample(schedule, x, 2, z[:, 0])
    for i, eps in ((2, z[:, 1]), (1, z[:, 2]), (0, None)):
        x_t = p_step(denoiser, schedule, x_t, i, eps)
    gradients = []
    for checkpointed in (False, True):
        leaf = x.clone().requires_grad_()
        clean = purify(denoiser, schedule, leaf, z, checkpointed=checkpointed)
        assert torch.equal(clean, x_t)
        gradients += torch.autograd.grad(clean.square().sum(), leaf)
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(*gradients)


def test_inpainting_keeps_and_pastes_before_every_call(make_denoiser: Callable[..., Any]) -> None:
    tiny = make_denoiser()
    schedule, seen = respace(tiny.alphas_cumprod, 10), []

    def denoiser(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        seen.append(x_t.clone())
        eps: tuple[Tensor, Tensor | None] = tiny(x_t, t)
        return eps

    x, start = noise(8, 2, 3, 16, 16).tanh(), noise(9, 2, 3, 16, 16).tanh()
    keep, z = (
        torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5,
        noise(10, 2, 6, 3, 16, 16),
    )
    with torch.no_grad():
        out = inpaint(denoiser, schedule, x, start, keep, z)  # type: ignore[arg-type]
    everywhere = keep.expand_as(x)
    assert torch.equal(out[everywhere], x[everywhere])
    assert not torch.isclose(out[~everywhere], x[~everywhere]).any()
    assert len(seen) == 3
    for call, (level, paste) in enumerate([(2, 1), (1, 3), (0, 5)]):
        a = schedule.alpha_bar[level]
        noised = sqrt(a) * x + sqrt(1 - a) * z[:, paste]
        torch.testing.assert_close(seen[call][everywhere], noised[everywhere])
    a = schedule.alpha_bar[2]
    torch.testing.assert_close(
        seen[0][~everywhere],
        (sqrt(a) * start + sqrt(1 - a) * z[:, 0])[~everywhere],
        msg="the start is noised where free",
    )
