"""C and S: the information flow against numbers computed otherwise, the split's shapes, the
wrapper, a classifier's last layer."""

import math

import numpy as np
import pytest
import torch
from scipy.special import xlogy
from torch import Tensor, nn

from counterfactory.models.causal import (
    CausalVAE,
    CausalWrapper,
    elbo,
    features_of_sample,
    flow,
    information,
)
from counterfactory.models.classifiers import ConvNet, ResNet
from counterfactory.models.wrapping.head import head_of
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.wrap import ClassifierWrapper


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plain(nn.Module):
    """A decoder that is the identity, so that R is (c, s)."""

    def __init__(self, causal: int, spurious: int) -> None:
        super().__init__()
        self.causal, self.spurious = causal, spurious
        self.register_buffer("mean", torch.zeros(causal + spurious))

    def decode(self, codes: Tensor) -> Tensor:
        return codes


def by_quadrature(a: float, b: float) -> float:
    """I(c; y) in nats for P(y = 1 | c, s) = sigmoid(a c + b s), c and s standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    weights = weights / weights.sum()
    given = (1 / (1 + np.exp(-(a * nodes[:, None] + b * nodes[None, :])))) @ weights

    def entropy(p: np.ndarray) -> np.ndarray:
        return np.asarray(-(xlogy(p, p) + xlogy(1 - p, 1 - p)))

    return float(entropy(weights @ given) - weights @ entropy(given))


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.5), (1.0, 1.0), (0.5, 3.0)])
def test_the_flow_is_the_mutual_information_under_interventions(a: float, b: float) -> None:
    def head(r: Tensor) -> Tensor:
        logit = a * r[:, 0] + b * r[:, 1]
        return torch.stack([torch.zeros_like(logit), logit], 1)

    net: CausalVAE = Plain(1, 1)  # type: ignore[assignment]
    got = [
        float(flow(net, head, seeded(), of=of, draws=4000, others=400))
        for of in ("causal", "spurious")
    ]
    assert got == pytest.approx([by_quadrature(a, b), by_quadrature(b, a)], abs=0.02)


def test_the_flow_of_a_cause_that_decides_is_all_and_of_another_nothing() -> None:
    def head(r: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(r)), 1e4 * r[:, 0]], 1)

    net: CausalVAE = Plain(1, 2)  # type: ignore[assignment]
    assert float(flow(net, head, seeded(), draws=4000, others=2)) == pytest.approx(
        math.log(2), abs=1e-3
    )
    few, many = (
        float(flow(net, head, seeded(), of="spurious", draws=500, others=n)) for n in (25, 400)
    )
    assert few == pytest.approx(1 / 50, rel=0.2)  # the bias that the docstring tells
    assert many == pytest.approx(1 / 800, rel=0.2)


def test_information_of_a_table() -> None:
    # two causes, two others, two answers
    given = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.2, 0.8], [0.2, 0.8]]])
    rows, all_ = np.array([[0.8, 0.2], [0.2, 0.8]]), np.array([0.5, 0.5])
    wanted = float((rows * np.log(rows / all_)).sum(1).mean())
    assert float(information(given)) == pytest.approx(wanted, abs=1e-6)
    certain = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert float(information(certain)) == pytest.approx(math.log(2))


def test_the_bound_is_exact_for_a_linear_gaussian() -> None:
    """Posterior, encoder and decoder known in closed form: the ELBO is then ln p(R), here up to its
    constant.
    """
    net = CausalVAE(features=2, directions=2, causal=1, spurious=1)
    noise = 0.5
    shrink, left = 1 / (1 + noise**2), math.log(noise**2 / (1 + noise**2))

    class Exact(nn.Module):
        def forward(self, r: Tensor) -> Tensor:
            return torch.cat([r * shrink, torch.full_like(r, left)], 1)

    net.encoder, net.decoder = Exact(), nn.Identity()
    r = torch.tensor([[0.3, -1.0]]).expand(20_000, 2)
    total = 1 + noise**2
    log_p = float((-0.5 * r[0].square() / total - 0.5 * math.log(total)).sum())
    constant = -0.5 * 2 * math.log(noise**2)  # what `elbo` leaves out of the Gaussian's logarithm
    assert float(elbo(net, r, seeded(), noise=noise).mean()) == pytest.approx(
        log_p - constant, abs=0.02
    )


def test_whitening_is_undone_and_features_that_never_vary_stay_finite() -> None:
    torch.manual_seed(0)
    r = torch.randn(500, 3) @ torch.tensor([[5.0, 1, 0], [0, 0.1, 0], [0, 0, 0]]) + 2
    net = CausalVAE(features=3, directions=3, causal=1, spurious=2)
    net.standardise(r)
    white = net.normal(r)
    torch.testing.assert_close(
        torch.cov(white.T, correction=0)[:2, :2], torch.eye(2), atol=1e-3, rtol=0
    )
    assert float(white[:, 2].abs().max()) < 1e-2
    net.decoder = nn.Identity()
    torch.testing.assert_close(net.decode(white), r, atol=1e-4, rtol=1e-4)
    assert CausalVAE(features=3, directions=16).std.shape == (3,)


def test_split_and_answers_are_rowwise() -> None:
    torch.manual_seed(0)
    net = CausalVAE(features=6, causal=2, spurious=3, answers=4, guess=5).eval()
    r = torch.randn(7, 6)
    c, s = net.split(r)
    assert (c.shape, s.shape, net(r).shape) == ((7, 2), (7, 3), (7, 4))
    torch.testing.assert_close(net(r)[2:3], net(r[2:3]))
    assert net.sampled(r, seeded()).shape == (7, 5)


@pytest.mark.parametrize(
    "settings", [{"features": 0}, {"features": 4, "causal": 0}, {"features": 4, "answers": 1}]
)
def test_sizes_that_are_none_are_told(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected features"):
        CausalVAE(**settings)


def classifier(seed: int = 0, **other: object) -> ClassifierWrapper:
    torch.manual_seed(seed)
    net = ConvNet(outputs=2, width=4, dropout=0.1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(0.3)
    return ClassifierWrapper(net, classes=["a", "b"], **other).eval()  # type: ignore[arg-type]


def wrapped(of: ClassifierWrapper) -> CausalWrapper:
    torch.manual_seed(1)
    net = CausalVAE(features=32, causal=1, spurious=4)
    with torch.no_grad():
        net.standardise(of.features(torch.rand(64, 3, 16, 16, generator=seeded(5))))
        net.sample.copy_(net.normal(features_of_sample(of, torch.device("cpu")))[0])
    return CausalWrapper(net).eval()


def test_the_wrapper_is_a_spurious_model_whose_rows_do_not_meet() -> None:
    of = classifier()
    model = wrapped(of)
    images = torch.rand(6, 3, 16, 16, generator=seeded(), requires_grad=True)
    scores = model(images, of)
    assert scores.shape == (6, 1, 2)
    torch.testing.assert_close(scores[1:3], model(images[1:3], of), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(scores[4].sum(), images)
    assert float(gradient[4].abs().max()) > 0
    assert float(gradient[[0, 1, 2, 3, 5]].abs().max()) == 0


def test_another_classifier_is_found_out() -> None:
    model = wrapped(classifier())
    with pytest.raises(
        ValueError, match="expected the classifier that the causal model was trained with"
    ):
        model(torch.rand(2, 3, 16, 16), classifier(seed=9))
    with pytest.raises(ValueError, match="expected a classifier with penultimate features"):
        model(torch.rand(2, 3, 16, 16), nn.Flatten())
    bare = ClassifierWrapper(nn.Flatten(), classes=["a", "b"])
    with pytest.raises(ValueError, match="or `layer`, the name of the layer whose input they are"):
        model(torch.rand(2, 3, 16, 16), bare)
    small = ClassifierWrapper(ConvNet(outputs=2, width=2), classes=["a", "b"]).eval()
    with pytest.raises(ValueError, match=r"expected features \(B,32\)"):
        model(torch.rand(2, 3, 16, 16), small)


@pytest.mark.parametrize("layer", [None, "head"])
def test_the_last_layer_decides_on_features_as_the_classifier_does(layer: str | None) -> None:
    images = torch.rand(4, 3, 16, 16, generator=seeded())
    for of in (classifier(layer=layer), classifier(layer=layer, head="sigmoid", output=1)):
        features = of.features(images)
        torch.testing.assert_close(head_of(of, images)(features), of(images))
    other = ClassifierWrapper(
        ResNet(outputs=2, widths=(4, 8)), classes=["a", "b"], layer=layer
    ).eval()
    torch.testing.assert_close(head_of(other, images)(other.features(images)), other(images))


def test_a_network_without_such_a_layer_is_told() -> None:
    with pytest.raises(ValueError, match=r"expected a last layer .* got none"):
        head_of(classifier(layer="body.3"), torch.rand(4, 3, 16, 16))


def test_a_hugging_face_classifier_gives_features_by_its_layers_name() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config).eval()
    of = ClassifierWrapper(net, classes=["a", "b"], layer="classifier", size=16)
    images = torch.rand(3, 3, 16, 16, generator=seeded())
    assert of.features(images).shape == (3, 8)
    torch.testing.assert_close(head_of(of, images)(of.features(images)), of(images))


def test_the_role_is_built_from_its_config() -> None:
    spec = {
        "role": "causal",
        "target": "counterfactory.models.causal.CausalVAE",
        "settings": {"features": 5, "spurious": 2},
    }
    assert isinstance(build(spec, None, torch.device("cpu")), CausalWrapper)
    spec = {
        "role": "classifier",
        "target": "counterfactory.models.classifiers.ConvNet",
        "classes": ["a", "b"],
        "layer": "head",
    }
    made = build({**spec, "settings": {"outputs": 2, "width": 2}}, None, torch.device("cpu"))
    assert made.layer == "head"
