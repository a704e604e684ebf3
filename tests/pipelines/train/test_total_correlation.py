"""The total correlation of beta-TCVAE against the sums written out, what it is on latents whose
structure is known, and its weight in an autoencoder's loss."""

import numpy as np
import pytest
import torch

from counterfactory.models.autoencoder import Autoencoder
from pipelines.train.losses import autoencoder, total_correlation, weights_of


def written_out(z: np.ndarray, mean: np.ndarray, log_variance: np.ndarray) -> float:
    """KL(q(z) || prod q(z_d)) over a mixture of M Gaussians, in probabilities, pair by pair and
    coordinate by coordinate."""
    count, size = z.shape
    total = 0.0
    for i in range(count):
        joint, apart = 0.0, [0.0] * size
        for j in range(count):
            density = 1.0
            for d in range(size):
                deviation = np.exp(log_variance[j, d] / 2)
                one = np.exp(-(((z[i, d] - mean[j, d]) / deviation) ** 2) / 2) / (
                    deviation * np.sqrt(2 * np.pi)
                )
                density *= one
                apart[d] += one / count
            joint += density / count
        total += np.log(joint) - sum(np.log(value) for value in apart)
    return total / count


def test_it_is_the_sum_written_out() -> None:
    rng = np.random.default_rng(1)
    z, mean, log_variance = (rng.normal(size=(5, 3)) for _ in range(3))
    got = total_correlation(*(torch.from_numpy(value) for value in (z, mean, log_variance)))
    assert float(got) == pytest.approx(written_out(z, mean, log_variance), abs=1e-9)


def test_coordinates_that_go_together_have_more_than_independent_ones() -> None:
    """Two coordinates of one Gaussian: minus half the log of 1 - correlation squared, in closed
    form.
    """
    g = torch.Generator().manual_seed(2)
    one, other = torch.randn(2, 700, generator=g, dtype=torch.float64)
    narrow = torch.full((700, 2), -4.0, dtype=torch.float64)  # variance 0.018
    noise = (narrow / 2).exp() * torch.randn(700, 2, generator=g, dtype=torch.float64)
    for share in (0.0, 0.8):
        mean = torch.stack([one, share * one + (1 - share**2) ** 0.5 * other], 1)
        correlation = share / (1 + np.exp(-4.0))
        got = float(total_correlation(mean + noise, mean, narrow))
        assert got == pytest.approx(-np.log(1 - correlation**2) / 2, abs=0.15)


def test_its_weight_enters_the_loss_and_its_gradient_the_encoder() -> None:
    torch.manual_seed(0)
    net, images = Autoencoder(size=16, latent=4, widths=(8, 8)), torch.rand(6, 3, 16, 16)
    labels = torch.zeros(6, 0)

    def loss(weight: float) -> torch.Tensor:
        weights = weights_of("autoencoder", {"total_correlation": weight})
        return autoencoder(net, images, labels, weights, torch.Generator().manual_seed(3))

    mean, log_variance = net.posterior(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    wanted = total_correlation(mean + (log_variance / 2).exp() * noise, mean, log_variance)
    more = loss(0.5) - loss(0.0)
    assert float(more.detach()) == pytest.approx(0.5 * float(wanted.detach()), rel=1e-3)
    (grad,) = torch.autograd.grad(more, net.moments.weight)
    assert float(grad.abs().max()) > 0
