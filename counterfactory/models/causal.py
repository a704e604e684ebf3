"""A split of penultimate features R into causal factors C and spurious factors S: the h and g of
CECAS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

Head = Callable[[Tensor], Tensor]


class CausalVAE(nn.Module):
    """A VAE of a classifier's penultimate features whose latent is (C, S), and a classifier g of S
    alone.

    C is trained to predict the classifier's output (`flow`). C and S together are trained to
    rebuild R (O'Shaughnessy et al. 2020, "Generative causal explanations of black-box classifiers";
    CECAS, section 4.1).

    features: size of R; directions: number of its principal directions that are used, with equal
    weight (`mean`, `basis` and `std` whiten R inside); causal, spurious: sizes of C and S; answers:
    number of classes that g separates; hidden: width of the encoder's and decoder's hidden layers;
    guess: width of g's hidden layer, 0 for a linear g.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor
    sample: Tensor

    def __init__(
        self,
        *,
        features: int,
        directions: int = 16,
        causal: int = 1,
        spurious: int = 12,
        answers: int = 2,
        hidden: int = 64,
        guess: int = 0,
    ) -> None:
        super().__init__()
        if min(features, directions, causal, spurious, hidden) < 1 or guess < 0 or answers < 2:
            raise ValueError(
                "expected features, directions, causal, spurious and hidden of at least 1, guess"
                " of at least 0 and answers of at least 2, got"
                f" {(features, directions, causal, spurious, hidden, guess, answers)}"
            )
        self.causal, self.spurious, codes = causal, spurious, causal + spurious
        directions = min(directions, features)
        self.encoder: nn.Module = mlp(directions, hidden, 2 * codes)
        self.decoder: nn.Module = mlp(codes, hidden, directions)
        self.g: nn.Module = nn.Linear(spurious, answers)
        if guess:
            self.g = nn.Sequential(nn.Linear(spurious, guess), nn.SiLU(), nn.Linear(guess, answers))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.eye(features)[:, :directions].clone())
        self.register_buffer("std", torch.ones(directions))
        # features of one known picture, which identify the classifier
        self.register_buffer("sample", torch.zeros(directions))

    def standardise(self, features: Tensor) -> None:
        """Set mean, principal directions and their standard deviations from R (N,F)."""
        self.mean.copy_(features.mean(0))
        variance, basis = torch.linalg.eigh(torch.cov(features.T.double(), correction=0))
        kept = len(self.std)
        self.basis.copy_(basis.flip(1)[:, :kept])
        spread = variance.flip(0)[:kept].clamp(min=0).sqrt()
        # a direction that hardly varies stays near 0
        self.std.copy_(spread.clamp(min=max(1e-3 * float(spread[0]), 1e-4)))

    def normal(self, features: Tensor) -> Tensor:
        """Return R (B,F) along its principal directions (B,D), in their standard deviations;
        ValueError where F differs.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"expected features (B,{len(self.mean)}), as the classifier gave that h was trained"
                f" with, got {tuple(features.shape)}"
            )
        return (features - self.mean) @ self.basis / self.std

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B,C+S) of the codes of R (B,F)."""
        mean, log_variance = self.encoder(self.normal(features)).chunk(2, 1)
        return mean, log_variance.clamp(-12, 6)

    def sampled(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return codes (B,C+S) of R (B,F), drawn from the posterior."""
        mean, log_variance = self.posterior(features)
        return (
            mean
            + torch.randn(mean.shape, generator=generator).to(mean) * (0.5 * log_variance).exp()
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return R (B,F) of codes (B,C+S), C first."""
        features: Tensor = (self.decoder(codes) * self.std) @ self.basis.T + self.mean
        return features

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return C (B,causal) and S (B,spurious) of R (B,F): the posterior's means."""
        mean, _ = self.posterior(features)
        return mean[:, : self.causal], mean[:, self.causal :]

    def forward(self, features: Tensor) -> Tensor:
        """Return g(S): scores (B,answers) from only the spurious factors of R (B,F)."""
        scores: Tensor = self.g(self.split(features)[1])
        return scores


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers and SiLU."""
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(hidden, outputs))


def elbo(
    net: CausalVAE, features: Tensor, generator: torch.Generator, *, noise: float, kl: float = 1.0
) -> Tensor:
    """Return the evidence lower bound (B,) of R's directions (B,D) in nats per row, up to a
    constant.

    noise: standard deviation of the decoder's Gaussian, relative to that of the directions; kl:
    weight of the divergence from the normal.
    """
    mean, log_variance = net.posterior(features)
    eps = torch.randn(mean.shape, generator=generator).to(mean)
    rebuilt = net.decoder(mean + eps * (0.5 * log_variance).exp())
    likelihood = -0.5 * ((rebuilt - net.normal(features)) / noise).square().sum(1)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    bound: Tensor = likelihood - kl * divergence
    return bound


def flow(
    net: CausalVAE,
    head: Head,
    generator: torch.Generator,
    *,
    of: Literal["causal", "spurious"] = "causal",
    draws: int = 100,
    others: int = 25,
) -> Tensor:
    """Return the information flow from C (or, with of="spurious", from S) to the classifier's
    decision, in nats.

    It is I(C; Y) where C and S are set to independent draws of the normal (Ay & Polani 2008;
    O'Shaughnessy et al. 2020, eq. 3 and its estimate in their appendix): `draws` values of the one
    factor and, for each, `others` values of the other. It is at most ln K. Where the factor has no
    effect, the estimate is too high by about (K-1) / (2 others).
    """
    size = net.causal + net.spurious
    codes = torch.randn(draws, others, size, generator=generator).to(net.mean)
    held = slice(0, net.causal) if of == "causal" else slice(net.causal, size)
    codes[:, :, held] = codes[:, :1, held]
    scores = head(net.decode(codes.flatten(0, 1)))
    return information(scores.softmax(1).view(draws, others, -1))


def information(probabilities: Tensor) -> Tensor:
    """Return I(C; Y) in nats of p(y | c_i, s_ij) (N,M,K): the mean over i of KL(p(y | c_i) from
    p(y)).
    """
    given = probabilities.mean(1)
    return entropy(given.mean(0)) - entropy(given).mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis."""
    nats: Tensor = -torch.special.xlogy(probabilities, probabilities.clamp(min=1e-12)).sum(-1)
    return nats


class CausalWrapper(nn.Module):
    """A CausalVAE as a SpuriousModel with one question: that of g."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        # classifiers that passed the check
        self.known: WeakSet[nn.Module] = WeakSet()

    def forward(self, images: Tensor, classifier: Any) -> Tensor:
        """Return g(S) as scores (B,1,K); images (B,3,H,W) in [0,1]. ValueError as in `expect`."""
        self.expect(classifier)
        scores: Tensor = self.network(classifier.features(images))
        return scores[:, None]

    @torch.no_grad()
    def expect(self, classifier: Any) -> None:
        """Raise ValueError where the classifier is not the one that h was trained on, or has no
        penultimate features.

        Another classifier has other features for one known picture, and the output of g would be
        meaningless. Each classifier is checked once.
        """
        if classifier in self.known:
            return
        if not callable(getattr(classifier, "features", None)):
            raise ValueError(
                "expected a classifier with penultimate features for the causal model, got"
                f" {type(classifier).__name__}"
            )
        sample = self.network.sample
        away = float(
            (self.network.normal(features_of_sample(classifier, sample.device)) - sample)
            .abs()
            .mean()
        )
        if not away < FOREIGN:
            raise ValueError(
                "expected the classifier that the causal model was trained with, got another: its"
                f" features of one picture are {away:.2f} standard deviations away: `counterfactory"
                " train causal` makes a model of it"
            )
        self.known.add(classifier)


FOREIGN = 0.1  # mean distance, in standard deviations, that is more than rounding


def features_of_sample(classifier: Any, device: torch.device) -> Tensor:
    """Return the classifier's features R (1,F) of a fixed synthetic picture: three ramps."""
    ramp = torch.linspace(0, 1, 64, device=device)
    down, across = ramp[:, None].expand(64, 64), ramp[None, :].expand(64, 64)
    features: Tensor = classifier.features(torch.stack([down, across, (down + across) / 2])[None])
    return features
