"""Wrappers: sizes, normalisation, heads and predictions, against what one would compute by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.denoiser import alphas_cumprod
from counterfactory.models.wrapping.images import resize
from counterfactory.models.wrapping.wrap import (
    AttributeWrapper,
    AutoencoderWrapper,
    ClassifierWrapper,
    DenoiserWrapper,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 3, 24, 24, generator=GENERATOR)


class Means(nn.Module):
    """Linear scores of the mean colour; what it was shown is kept."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(outputs, 3, generator=torch.Generator().manual_seed(1))
        )
        self.seen: Tensor | None = None

    def features(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.features(x) @ self.weight.T


def test_softmax_scores_are_the_networks_own_after_mean_std_and_resize() -> None:
    net = Means(4)
    wrapped = ClassifierWrapper(
        net, classes=list("abcd"), size=16, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    )
    small = F.interpolate(IMAGES, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    by_hand = (small - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    scores = wrapped(IMAGES)
    torch.testing.assert_close(net.seen, by_hand)
    torch.testing.assert_close(scores, by_hand.mean((2, 3)) @ net.weight.T)
    torch.testing.assert_close(wrapped.features(IMAGES), by_hand.mean((2, 3)))
    assert wrapped.classes == ("a", "b", "c", "d")


def test_resize_antialiases_only_when_shrinking() -> None:
    assert resize(IMAGES, None) is IMAGES
    assert resize(IMAGES, 24) is IMAGES
    torch.testing.assert_close(
        resize(IMAGES, 48), F.interpolate(IMAGES, (48, 48), mode="bilinear", align_corners=False)
    )
    # antialiasing averages them away
    stripes = torch.tensor([0.0, 1.0]).repeat(12).expand(1, 3, 24, 24)
    assert float((resize(stripes, 8)[..., 1:-1] - 0.5).abs().max()) < 0.15


def test_one_mean_serves_all_channels() -> None:
    net = Means(2)
    ClassifierWrapper(net, classes=["a", "b"], mean=[0.5], std=[0.25])(IMAGES)
    torch.testing.assert_close(net.seen, (IMAGES - 0.5) / 0.25)


@pytest.mark.parametrize(("outputs", "output"), [(1, None), (5, 3)])
def test_sigmoid_head_is_two_scores_with_its_probability(outputs: int, output: int | None) -> None:
    net = Means(outputs)
    wrapped = ClassifierWrapper(net, classes=["no", "yes"], head="sigmoid", output=output)
    logit = net(IMAGES)[:, output or 0]
    torch.testing.assert_close(wrapped(IMAGES).softmax(1)[:, 1], logit.sigmoid())
    assert wrapped(IMAGES).shape == (3, 2)


def test_wrong_output_counts_are_told() -> None:
    with pytest.raises(ValueError, match="expected 3 outputs for the classes a, b, c, got 4"):
        ClassifierWrapper(Means(4), classes=list("abc"))(IMAGES)
    with pytest.raises(ValueError, match="expected 1 output for a sigmoid head"):
        ClassifierWrapper(Means(2), classes=["n", "y"], head="sigmoid")(IMAGES)
    with pytest.raises(ValueError, match=r"expected output within 0\.\.1, got 7"):
        ClassifierWrapper(Means(2), classes=["n", "y"], head="sigmoid", output=7)(IMAGES)
    with pytest.raises(ValueError, match="expected 2 outputs, one per attribute, got 3"):
        AttributeWrapper(Means(3), attributes=["a", "b"])(IMAGES)


def test_attributes_are_independent_probabilities() -> None:
    net = Means(3)
    wrapped = AttributeWrapper(net, attributes=["x", "y", "z"], mean=[0.5], std=[0.5])
    torch.testing.assert_close(
        wrapped(IMAGES), (((IMAGES - 0.5) / 0.5).mean((2, 3)) @ net.weight.T).sigmoid()
    )


def test_autoencoder_wrapper_wants_both_halves_and_its_size() -> None:
    with pytest.raises(ValueError, match="expected an autoencoder with a method `encode`"):
        AutoencoderWrapper(nn.Linear(1, 1))

    class Halves(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            return x.flatten(1)

        def decode(self, z: Tensor) -> Tensor:
            return z.unflatten(1, (3, 24, 24)) + 0.5

    wrapped = AutoencoderWrapper(Halves(), size=24)
    assert float(wrapped.decode(wrapped.encode(IMAGES)).max()) == 1.0
    with pytest.raises(ValueError, match="expected images of 32 x 32 px"):
        AutoencoderWrapper(Halves(), size=32).encode(IMAGES)


class Fixed(nn.Module):
    """A denoiser that gives a stored tensor."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_each_prediction_of_the_truth_gives_the_true_noise(prediction: str) -> None:
    bar = alphas_cumprod("squaredcos_cap_v2", 100)
    x0, eps, t = (
        IMAGES * 2 - 1,
        torch.randn(IMAGES.shape, generator=GENERATOR),
        torch.tensor([3, 50, 97]),
    )
    a = bar[t].view(-1, 1, 1, 1).float()
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    truth = {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0, "sample": x0}[
        prediction
    ]
    got, weight = DenoiserWrapper(Fixed(truth), alphas_cumprod=bar, prediction=prediction)(x_t, t)
    assert weight is None
    torch.testing.assert_close(got, eps, atol=1e-4, rtol=1e-4)


def test_learned_variance_is_split_off_and_scaled() -> None:
    both = torch.cat([torch.full_like(IMAGES, 2.0), torch.full_like(IMAGES, -0.5)], 1)
    eps, weight = DenoiserWrapper(Fixed(both), alphas_cumprod=alphas_cumprod("linear", 10))(
        IMAGES, torch.zeros(3).long()
    )
    assert torch.equal(eps, torch.full_like(IMAGES, 2.0))
    assert weight is not None
    assert torch.equal(weight, torch.full_like(IMAGES, 0.25))
    with pytest.raises(ValueError, match="expected 3 or 6 output channels"):
        DenoiserWrapper(Fixed(both[:, :4]), alphas_cumprod=alphas_cumprod("linear", 10))(
            IMAGES, torch.zeros(3).long()
        )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_are_those_of_diffusers(schedule: str) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=500, beta_schedule=schedule).alphas_cumprod
    ours = alphas_cumprod(schedule, 500)
    assert ours.dtype == torch.float64
    assert bool((ours.diff() < 0).all())
    torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=1e-3)
