"""DenseNet-121 against torchvision's names and sizes and a straight-line transcription of the
paper's figure.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from counterfactory.models.densenet import DenseNet121
from counterfactory.models.wrapping.load import build


@pytest.fixture(scope="module")
def net() -> DenseNet121:
    torch.manual_seed(0)
    net = DenseNet121(outputs=3).eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return net


def test_it_has_torchvisions_size_and_names() -> None:
    with torch.device("meta"):
        net = DenseNet121()
    assert sum(p.numel() for p in net.parameters()) == 7_978_856
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    # norms with their buffers, convolutions, the last layer
    assert len(shapes) == 121 * 5 + 120 + 2
    assert shapes["features.conv0.weight"] == (64, 3, 7, 7)
    assert shapes["features.denseblock1.denselayer6.conv2.weight"] == (32, 128, 3, 3)
    assert shapes["features.denseblock2.denselayer12.norm1.running_mean"] == (128 + 11 * 32,)
    assert shapes["features.transition3.conv.weight"] == (512, 1024, 1, 1)
    assert shapes["features.denseblock4.denselayer16.conv1.weight"] == (128, 512 + 15 * 32, 1, 1)
    assert shapes["features.norm5.num_batches_tracked"] == ()
    assert shapes["classifier.weight"] == (1000, 1024)


def transcribed(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Table 1 of the paper, one line after the other, from the weights' names alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        unit = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return F.relu(
            unit * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]
        )

    x = norm(F.conv2d(x, state["features.conv0.weight"], stride=2, padding=3), "features.norm0")
    x = F.max_pool2d(x, 3, 2, 1)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            new = F.conv2d(norm(x, f"{at}.norm1"), state[f"{at}.conv1.weight"])
            new = F.conv2d(norm(new, f"{at}.norm2"), state[f"{at}.conv2.weight"], padding=1)
            x = torch.cat([x, new], 1)
        if block < 4:
            at = f"features.transition{block}"
            x = F.avg_pool2d(F.conv2d(norm(x, f"{at}.norm"), state[f"{at}.conv.weight"]), 2)
    return norm(x, "features.norm5").mean((2, 3))


def test_it_computes_what_the_paper_says(net: DenseNet121) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    state = net.state_dict()
    with torch.no_grad():
        features = net.features(images)
        torch.testing.assert_close(features, transcribed(state, images), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            net(images), F.linear(features, state["classifier.weight"], state["classifier.bias"])
        )


def test_one_of_several_attributes_is_the_decision_and_features_are_penultimate(
    net: DenseNet121,
) -> None:
    spec = {
        "role": "classifier",
        "target": "counterfactory.models.densenet.DenseNet121",
        "settings": {"outputs": 3},
        "classes": ["not smiling", "smiling"],
        "head": "sigmoid",
        "output": 1,
        "mean": [0.5],
        "std": [0.5],
    }
    model = build(spec, None, torch.device("cpu"))
    model.network.load_state_dict(net.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    scores, logits = model(images), net(images * 2 - 1)
    torch.testing.assert_close(scores, torch.stack([torch.zeros(2), logits[:, 1]], 1))
    assert model.features(images).shape == (2, 1024)
