"""The loss of each role; `objective` weights its terms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from configs.strict import UserError, nearest

# Terms of each role's loss, and their weights where the config's `objective` has none.
TERMS: dict[str, dict[str, float]] = {
    "classifier": {
        "jitter": 0.0,  # share of the loss on noisy, blurred, re-lit copies
        # how far, in [0,1], every pixel of half of the images is pushed against the label
        "adversarial": 0.0,
        "smoothing": 0.0,  # of the labels
        # how far images are moved, turned and scaled at random: 1 is at most 4 px in 64, 8 degrees,
        # 8 %
        "warp": 0.0,
    },
    "attributes": {"jitter": 0.0, "warp": 0.0},
    "autoencoder": {
        "pixel": 1.0,  # mean |x - x'|
        # the same of the differences between neighbours, at full, half and quarter size
        "edges": 1.0,
        "kl": 1e-5,  # per nat and image
        # per nat and image, besides the KL, which includes it once: beta is 1 + this / kl
        "total_correlation": 0.0,
        # mean difference of the encoder's own features of x and x', in their standard deviations
        "features": 0.0,
        # binary cross-entropy of a linear head on the sampled latent, mean over `labels`
        "attributes": 0.0,
    },
    "attgan": {
        "reconstruction": 100.0,  # mean |x - dec(z, a)|
        # binary cross-entropy of the reader on edited images, mean over `labels`
        "attributes": 10.0,
        "adversarial": 1.0,  # the critic's score of edited images
        "critic_attributes": 1.0,  # the reader's: the same on real images
        "penalty": 10.0,  # the critic's: (norm of its gradient - 1)^2
        "critic_steps": 5.0,  # steps of the critic for one of the generator
        # share of the reader's images that are noisy, blurred, re-lit
        "jitter": 0.0,
        # share of the reader's images with a hidden part, so that no single part is enough
        "hide": 0.0,
        # how far, in [0,1], every pixel of half of the reader's images is pushed against its
        # attributes
        "push": 0.0,
        # share of the images edited towards their own attributes with one changed
        "single": 0.0,
        # share of x - dec(z, a) that is added to edited images in training; 1: as in later use
        "residual": 0.0,
    },
    "semantic": {
        "pixel": 1.0,  # mean |x - x'|
        "edges": 1.0,  # as the autoencoder's
        # missed share of a region's variance: a mouth counts as much as the background
        "regions": 0.2,
        "kl": 1e-5,  # per nat and image
        # binary cross-entropy of a linear head on the styles, mean over `labels`
        "attributes": 0.0,
    },
    "attribution": {
        # of the logistic regressions: the weight of the fit against that of small weights
        "c": 1.0,
        "ridge": 1.0,  # of the ridge regressions: the weight of small weights
    },
    "causal": {
        # per nat of information flow from C to the decision; the rest is the ELBO's nats per row
        "flow": 50.0,
        "noise": 0.3,  # standard deviation of the decoder's Gaussian, in those of R's directions
        "kl": 1.0,
        "draws": 50,  # values of C that the flow is estimated with
        "others": 20,  # values of S for each of them
    },
    "simsiam": {
        "crop": 0.4,  # the largest part of a side that a view omits
        # share of the views in other colours: without them only colours are learnt
        "colour": 0.8,
        "jitter": 0.8,  # share of the views in other light, blurred and noisy
    },
    "denoiser": {"snr_cap": 5.0},  # cap of the weight by signal-to-noise ratio; 0: no weighting
}


def weights_of(role: str, objective: dict[str, float]) -> dict[str, float]:
    """Return the weights of the role's terms, with those of the config in place of the defaults;
    UserError for an unknown term.
    """
    known = TERMS[role]
    for key in objective:
        if key not in known:
            raise UserError(f"objective: unknown key {key!r}: {nearest(key, known)}")
    return {**known, **objective}


def jitter(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return images (B,3,H,W) in [0,1], some of them (each with probability `share`) with other
    light, blur, and fine and coarse noise.
    """
    count = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator).to(images.device)

    chosen = draw(0, 1, 1, 1, 1) < share
    coarse = torch.randn(count, 3, 8, 8, generator=generator).to(images.device)
    coarse = F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    fine = torch.randn(images.shape, generator=generator).to(images.device)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    out = torch.lerp(images, blurred, draw(-0.3, 0.9, 1, 1, 1).clamp(min=0))
    out = (out - 0.5) * draw(0.8, 1.2, 1, 1, 1) + 0.5 + draw(-0.08, 0.08, 3, 1, 1)
    out = out + coarse * draw(0, 0.05, 1, 1, 1) + fine * draw(0, 0.06, 1, 1, 1)
    return torch.where(chosen, out.clamp(0, 1), images)


def hidden(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return images (B,3,H,W) in [0,1], some of them (each with probability `share`) with a box of
    one colour over up to half of each side (DeVries & Taylor 2017).

    Draws nothing where share is 0.
    """
    if not share:
        return images
    count, _, *sides = images.shape
    inside = torch.ones(count, 1, 1, 1, dtype=torch.bool)
    for axis, side in enumerate(sides):
        length = torch.randint(side // 6, side // 2 + 1, (count, 1), generator=generator)
        middle = torch.randint(side, (count, 1), generator=generator)
        within = (torch.arange(side)[None] - middle).abs() * 2 <= length
        inside = inside & (within[:, None, :, None] if axis == 0 else within[:, None, None, :])
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < share
    colour = torch.rand(count, 3, 1, 1, generator=generator).to(images)
    return torch.where((inside & chosen).to(images.device), colour, images)


def warp(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return each image moved, turned and scaled a little, with its border repeated. Draws and
    changes nothing where strength is 0.
    """
    if not strength:
        return images

    def draw(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit * strength

    angle, scale = draw(math.radians(8)), 1 + draw(0.08)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin, draw(0.125), sin, cos, draw(0.125)], 1).view(-1, 2, 3)
    grid = F.affine_grid(rows.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def classifier(
    net: nn.Module, images: Tensor, labels: Tensor, w: dict[str, float], g: torch.Generator
) -> Tensor:
    """Return the cross-entropy; labels (B,) class indices."""
    images = jitter(warp(images, w["warp"], g), w["jitter"], g)
    if w["adversarial"]:
        images = push(net, images, labels, w["adversarial"], g)
    scores = net(normal(images)).float()
    return F.cross_entropy(scores, labels, label_smoothing=w["smoothing"])


def push(
    net: nn.Module, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator
) -> Tensor:
    """Return the images with a random half of them moved against their labels by one signed step,
    within eps of the original.

    This is fast adversarial training (Wong et al. 2020): a classifier that resists the step has
    gradients that show what it uses. The other half stays unchanged, so that the classifier can
    learn from it while every step still succeeds.
    """
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)[
        :, None, None, None
    ]
    start = (torch.rand(images.shape, generator=generator).to(images.device) * 2 - 1) * eps
    moved = (images + start).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(normal(moved)).float(), labels), moved)
    step = (start + 1.25 * eps * gradient.sign()).clamp(-eps, eps)
    return torch.where(chosen, (images + step).clamp(0, 1), images).detach()


def attributes(
    net: nn.Module, images: Tensor, labels: Tensor, w: dict[str, float], g: torch.Generator
) -> Tensor:
    """Return the binary cross-entropy of all attributes; labels (B,A) of 0 and 1."""
    scores = net(normal(jitter(warp(images, w["warp"], g), w["jitter"], g))).float()
    return F.binary_cross_entropy_with_logits(scores, labels)


def autoencoder(
    net: Any, images: Tensor, labels: Tensor, w: dict[str, float], g: torch.Generator
) -> Tensor:
    """Return the loss: rebuilding from a sampled latent (pixels, edges), the KL divergence from the
    normal, and the further terms that have a weight: total correlation, features, attribute head.
    """
    mean, log_variance = net.posterior(images)
    noise = torch.randn(mean.shape, generator=g).to(mean.device)
    latents = mean + (log_variance / 2).exp() * noise
    rebuilt = net.decode(latents).float()
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
    loss: Tensor = (
        w["pixel"] * (rebuilt - images).abs().mean()
        + w["edges"] * edges(rebuilt - images)
        + w["kl"] * kl
    )
    if w["total_correlation"]:
        loss = loss + w["total_correlation"] * total_correlation(latents, mean, log_variance)
    if w["features"]:
        loss = loss + w["features"] * feature_distance(net, rebuilt, images)
    if w["attributes"]:
        loss = loss + w["attributes"] * F.binary_cross_entropy_with_logits(
            net.probe(latents).float(), labels
        )
    return loss


def total_correlation(latents: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return how far the batch's latents are from independent coordinates: KL(q(z) || prod_d
    q(z_d)), in nats.

    Estimated by minibatch-weighted sampling (Chen et al. 2018, beta-TCVAE): q(z) is the mixture of
    the batch's M posteriors. The data set's size N would add (D-1) log N, which has no gradient.
    latents, mean, log_variance: (M,D).
    """
    gap = latents[:, None] - mean[None]
    # (M,M,D): of z_i under j
    log_q = -(gap.square() / log_variance.exp() + log_variance + math.log(2 * math.pi)) / 2
    log_m = math.log(len(latents))
    joint = log_q.sum(2).logsumexp(1) - log_m
    apart = (log_q.logsumexp(1) - log_m).sum(1)
    return (joint - apart).mean()


def feature_distance(net: Any, rebuilt: Tensor, images: Tensor) -> Tensor:
    """Return a perceptual distance in the features of the autoencoder's own encoder. The encoder's
    weights are constants here, so the distance does not train the features themselves.
    """
    with torch.no_grad():
        wanted = net.features(images)
    frozen = {f"net.{name}": value.detach() for name, value in net.named_parameters()}
    got = functional_call(Features(net), frozen, (rebuilt,))
    terms = [
        ((a - b).float() / b.float().std()).abs().mean() for a, b in zip(got, wanted, strict=True)
    ]
    return torch.stack(terms).mean()


class Features(nn.Module):
    """An autoencoder's `features` as a forward, for functional_call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        """See Autoencoder.features."""
        net: Any = self.net
        out: list[Tensor] = net.features(images)
        return out


def edges(error: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring errors over three sizes: blur and shifted
    outlines increase it most.
    """
    total = error.new_zeros(())
    for _ in range(3):
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total / 3


def denoiser(
    net: nn.Module,
    images: Tensor,
    alphas: Tensor,
    prediction: str,
    w: dict[str, float],
    g: torch.Generator,
) -> Tensor:
    """Return the mean squared error of the prediction at uniformly drawn steps, weighted by the
    signal-to-noise ratio.

    In the scale of x0 the weight is min(SNR, cap) as in Hang et al. 2023. For v and x0 it is at
    least 1 (Salimans & Ho 2022), so that the noisiest steps, which decide the composition, count.
    For epsilon such a least weight would explode.
    """
    x0 = images * 2 - 1
    t = torch.randint(len(alphas), (len(x0),), generator=g).to(x0.device)
    eps = torch.randn(x0.shape, generator=g).to(x0)
    a = alphas[t].view(-1, 1, 1, 1)
    signal, noise = a.sqrt().to(x0), (1 - a).sqrt().to(x0)
    x_t = signal * x0 + noise * eps
    goal = {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "sample": x0}[prediction]
    error: Tensor = (net(x_t, t).float() - goal).square().mean((1, 2, 3))
    if w["snr_cap"]:
        snr = (a / (1 - a)).flatten()
        scale = {"epsilon": 1 / snr, "v_prediction": 1 / (snr + 1), "sample": torch.ones_like(snr)}[
            prediction
        ]
        floor = 0.0 if prediction == "epsilon" else 1.0
        error = error * (snr.clamp(floor, w["snr_cap"]) * scale).to(error)
    return error.mean()


def normal(images: Tensor) -> Tensor:
    """Return images in [-1,1], the input of our classifiers; their configs have mean and std 0.5
    for it.
    """
    return (images - 0.5) / 0.5
