"""AttGAN's training (He et al. 2019): the generator rebuilds each image under its own attributes.
Under other attributes, the image must pass a critic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import TrainConfig
from configs.strict import UserError
from counterfactory.models.wrapping.wrap import channels_last, is_ours
from pipelines.train import card as train_card
from pipelines.train import holdout as train_holdout
from pipelines.train import losses as train_losses
from pipelines.train.data import Samples, bits
from pipelines.train.losses import hidden, jitter, normal
from pipelines.train.trainer import Fitted, Trainer, expect_labels


class AttGANTrainer(Trainer):
    """Trainer of a generator and a critic that compete with each other."""

    names = "labels"

    def columns(self) -> list[str]:
        return expect_labels(self.config)

    def derived(self) -> dict[str, Any]:
        return self.side() | {"attributes": len(self.config.labels)}

    def fit(self, net: nn.Module, samples: Samples, labels: Tensor) -> Fitted:
        return fit(self.config, net, samples, labels, self.log)

    def holdout(self, model: Any) -> dict[str, Any]:
        samples = self.held(self.config.labels)
        truth = bits(samples, self.config.labels)
        return self.logged(holdout(model, samples, truth, self.device))


BETAS = (0.5, 0.999)
Weights = dict[str, float]


def fit(
    config: TrainConfig, net: Any, samples: Samples, labels: Tensor, log: Callable[[str], None]
) -> tuple[dict[str, Tensor], str, float]:
    """Train both networks; return the generator's weights to store, the last log line and the
    seconds.

    A step is one of the generator after `critic_steps` of the critic, each on its own batch. After
    every tenth of the steps, writes the current weights to `out`.part.
    """
    device = next(net.parameters()).device
    w = train_losses.weights_of("attgan", config.objective)
    generator = torch.Generator().manual_seed(config.seed)
    form = torch.channels_last if is_ours(net) else torch.contiguous_format
    batches = (
        (images.contiguous(memory_format=form), has)
        for images, has in drawn(config, samples, labels, generator, device)
    )
    net.train()
    critic = net.critic().to(device).train()
    for network in (net, critic):
        channels_last(network)
    judging = [*critic.parameters(), *net.reader.parameters()]
    making = [*net.encoder.parameters(), *net.decoder.parameters()]
    judges, makes = (
        torch.optim.Adam(part, lr=config.lr, betas=BETAS) for part in (judging, making)
    )
    average = train_card.Average(net, config.ema) if config.ema else None
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    started, totals, line = time.monotonic(), dict[str, float](), ""
    for step in range(1, config.steps + 1):
        for optimizer in (makes, judges):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * pace(step, config.steps)
        # Both grow over the first third. Against the full push, the reader learns nothing at first.
        # With the full residual, hair keeps its colour: slightly less of it does not change what
        # the reader sees.
        now = {
            **w,
            **{name: w[name] * min(1.0, 3 * step / config.steps) for name in ("push", "residual")},
        }
        for _ in range(int(w["critic_steps"])):
            images, has = next(batches)
            with autocast:
                terms = critic_terms(net, critic, images, has, now, generator)
            update(judges, terms, {**w, "realness": 1.0})
            add(totals, terms, w["critic_steps"])
        images, has = next(batches)
        for parameter in judging:
            parameter.requires_grad_(False)  # saves gradients that are not used
        with autocast:
            terms = generator_terms(net, critic, images, has, now, generator)
        update(makes, terms, w)
        for parameter in judging:
            parameter.requires_grad_(True)
        add(totals, terms, 1)
        if average is not None:
            average.update(net)
        if step % config.log_every == 0 or step == config.steps:
            count = (step - 1) % config.log_every + 1
            told = " ".join(f"{name} {value / count:.4f}" for name, value in totals.items())
            if not all(map(math.isfinite, totals.values())):
                raise UserError(
                    f"{config.name}: expected finite losses, got {told} by step {step}: try a"
                    " smaller lr"
                )
            speed = step / (time.monotonic() - started)
            line = f"step {step}/{config.steps} {told}"
            log(
                f"{config.name}: {line} {speed:.2f} steps/s ETA"
                f" {(config.steps - step) / speed:.0f} s"
            )
            totals.clear()
        if step % max(1, config.steps // 10) == 0 and step < config.steps:
            part = Path(config.out).with_name(f"{Path(config.out).name}.part")
            train_card.write(part, train_card.half(average.state if average else net.state_dict()))
    return average.state if average else net.state_dict(), line, time.monotonic() - started


def drawn(
    config: TrainConfig,
    samples: Samples,
    labels: Tensor,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end: images (B,3,S,S) in [0,1], mirrored at random with `flip`, and
    attributes (B,A).
    """
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < config.batch:
            order = torch.cat([order, torch.randperm(len(samples), generator=generator)])
        rows, order = order[: config.batch], order[config.batch :]
        images = samples.images[rows].to(device).float() / 255
        if config.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator).to(device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        yield images, labels[rows].to(device)


def goals(has: Tensor, single: float, generator: torch.Generator) -> Tensor:
    """Return the attributes (B,A) to edit towards: those of other images of the batch, so that they
    occur together as in the data.

    A share `single` of the images gets its own attributes with one changed: a decoder that never
    trained on a single change ignores it.
    """
    goal = has[torch.randperm(len(has), generator=generator).to(has.device)]
    if not single:
        return goal
    chosen = (torch.rand(len(has), 1, generator=generator) < single).to(has.device)
    one = F.one_hot(torch.randint(has.shape[1], (len(has),), generator=generator), has.shape[1]).to(
        has
    )
    return torch.where(chosen, (has - one).abs(), goal)


def critic_terms(
    net: Any, critic: nn.Module, images: Tensor, has: Tensor, w: Weights, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the critic's terms: the negative Wasserstein distance that it measures, the gradient
    penalty, and the reader's cross-entropy.
    """
    with torch.no_grad():
        _, edited = rebuild_and_edit(
            net, images, has, goals(has, w["single"], generator), w["residual"]
        )
    seen = jitter(images, w["jitter"], generator)
    if w["push"]:
        seen = push(net, seen, has, w["push"], generator)
    seen = hidden(seen, w["hide"], generator)
    return {
        "realness": critic(normal(edited)).float().mean() - critic(normal(images)).float().mean(),
        "penalty": penalty(critic, images, edited, generator),
        "critic_attributes": F.binary_cross_entropy_with_logits(net.read(seen), has),
    }


def penalty(critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared difference from 1 of the norm of the score's gradient, between real
    and generated images (Gulrajani et al. 2017).
    """
    where = torch.rand(len(real), 1, 1, 1, generator=generator).to(real.device)
    between = normal(torch.lerp(real, fake.to(real), where)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms: Tensor = torch.linalg.vector_norm(gradient.float().flatten(1), dim=1)
    return (norms - 1).square().mean()


def push(net: Any, images: Tensor, has: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Return the images with a random half of them moved against their attributes by one signed
    step within eps (as losses.push).

    A reader that resists this step does not read an attribute from an invisible pattern.
    """
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)[
        :, None, None, None
    ]
    start = (torch.rand(images.shape, generator=generator).to(images.device) * 2 - 1) * eps
    moved = (images + start).clamp(0, 1).requires_grad_()
    net.reader.eval()  # its batch norm's averages must come from its training images
    (gradient,) = torch.autograd.grad(
        F.binary_cross_entropy_with_logits(net.read(moved), has), moved
    )
    net.reader.train()
    step = (start + 1.25 * eps * gradient.sign()).clamp(-eps, eps)
    return torch.where(chosen, (images + step).clamp(0, 1), images).detach()


def generator_terms(
    net: Any, critic: nn.Module, images: Tensor, has: Tensor, w: Weights, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the generator's terms: the error of images rebuilt under their own attributes; and for
    images edited towards others, the reader's cross-entropy and the critic's score.
    """
    goal = goals(has, w["single"], generator)
    rebuilt, edited = rebuild_and_edit(net, images, has, goal, w["residual"])
    net.reader.eval()  # its batch norm's averages must come from real images
    logits = net.read(hidden(jitter(edited, w["jitter"], generator), w["hide"], generator))
    net.reader.train()
    return {
        "reconstruction": (rebuilt - images).abs().mean(),
        "attributes": F.binary_cross_entropy_with_logits(logits, goal),
        "adversarial": -critic(normal(edited)).float().mean(),
    }


def rebuild_and_edit(
    net: Any, images: Tensor, has: Tensor, goal: Tensor, residual: float
) -> tuple[Tensor, Tensor]:
    """Return images rebuilt under their own attributes, and images edited towards others: dec(z,b).

    residual: the share of the rebuilding's error (images - rebuilt) that is added to the edited
    ones.
    """
    latents, skip = net.encoded(images)
    # One pass for both, so that batch norm sees them together.
    both = net.decode(
        torch.cat([latents, latents]), torch.cat([has, goal]), torch.cat([skip, skip])
    )
    rebuilt, edited = both.chunk(2)
    return rebuilt, (edited + residual * (images - rebuilt)).clamp(0, 1) if residual else edited


def update(optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], w: Weights) -> None:
    """Take one optimizer step down the weighted sum of the terms."""
    value = torch.stack([w[name] * term for name, term in terms.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    optimizer.step()


def add(totals: dict[str, float], terms: dict[str, Tensor], share: float) -> None:
    for name, term in terms.items():
        totals[name] = totals.get(name, 0.0) + float(term.detach()) / share


def pace(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: 1 for the first half of the steps, then
    linear down to 2 %.
    """
    return min(1.0, max(0.02, 2 * (1 - step / steps)))


@torch.no_grad()
def holdout(model: Any, samples: Samples, labels: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the figures on holdout rows: mean absolute error per pixel in [0,1] and PSNR in dB of
    images rebuilt under their own attributes, and the accuracy of each read attribute.
    """
    absolute, psnr, right = 0.0, 0.0, []
    for part, x in train_holdout.batches(samples, device):
        has = labels[part].to(device)
        error = model.decode(model.encode(x), has, model.skip(x)) - x
        absolute += float(error.abs().mean((1, 2, 3)).sum())
        psnr += float(-10 * error.square().mean((1, 2, 3)).clamp(min=1e-10).log10().sum())
        right.append(((model.attributes_of(x) > 0.5) == has.bool()).cpu())
    count, known = len(samples), torch.cat(right)
    read = {
        name: train_holdout.share(known[:, column]) for column, name in enumerate(model.attributes)
    }
    return {
        "rows": count,
        "l1": round(absolute / count, 5),
        "psnr": round(psnr / count, 2),
        "read": read,
    }
