"""DiME's perceptual distance: VGG-19's first eight convolutions out of torchvision's
weight file."""

import io

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.strict import expand
from counterfactory.models.wrapping.load import build

SHAPES = {
    0: (64, 3),
    2: (64, 64),
    5: (128, 64),
    7: (128, 128),
    10: (256, 128),
    12: (256, 256),
    14: (256, 256),
}
SHAPES[16] = (256, 256)  # conv3_4; torchvision counts every layer of `features`, pooling at 4 and 9


def test_it_is_the_mean_squared_difference_after_relu3_4() -> None:
    noise = torch.Generator().manual_seed(0)
    state = {}
    for index, (out, channels) in SHAPES.items():
        state[f"features.{index}.weight"] = (
            torch.randn(out, channels, 3, 3, generator=noise) * (2 / channels / 9) ** 0.5
        )
        state[f"features.{index}.bias"] = torch.randn(out, generator=noise) * 0.1
    file = io.BytesIO()
    torch.save(state, file)
    model = build(expand("vgg19-mse", "model"), file.getvalue(), torch.device("cpu"))

    def features(x: Tensor) -> Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean[:, None, None]) / std[:, None, None]
        for index in SHAPES:
            x = F.max_pool2d(x, 2) if index in (5, 10) else x
            x = F.relu(
                F.conv2d(
                    x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
                )
            )
        return x

    a, b = torch.rand(2, 3, 3, 16, 16, generator=noise)
    expected = (features(a) - features(b)).square().mean((1, 2, 3))
    torch.testing.assert_close(model(a, b), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.min()) > 0.01
    assert torch.equal(model(a, a), torch.zeros(3))
    leaf = a.clone().requires_grad_()
    model(leaf, b).sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.flatten(1).any(1).all())
