"""Feature networks and perceptual distances: what the wrappers make of any network, against
hand-made values.
"""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.wrapping.wrap import FeatureWrapper, PerceptualWrapper, flat

IMAGES = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def nets() -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(
        body=nn.Conv2d(3, 5, 3),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(5, 2),
    )
    return nn.Sequential(layers)


def test_the_input_of_a_named_layer_is_the_feature_vector() -> None:
    net = nets()
    wrapped = FeatureWrapper(net, layer="head", size=16, mean=[0.4], std=[0.3])
    small = F.interpolate(IMAGES, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(wrapped(IMAGES), net.body((small - 0.4) / 0.3).mean((2, 3)))
    assert not net.head._forward_pre_hooks
    torch.testing.assert_close(
        FeatureWrapper(net, layer="pool")(IMAGES), net.body(IMAGES).mean((2, 3))
    )


def test_without_a_layer_the_method_features_then_the_output() -> None:
    class Both(nn.Module):
        def features(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2, 3))[:, None]

    class Layered(nn.Module):
        """As torchvision's AlexNet: `features` is a layer here."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x.amax((2, 3))

    torch.testing.assert_close(FeatureWrapper(Both())(IMAGES), IMAGES.mean((2, 3)))
    torch.testing.assert_close(FeatureWrapper(Layered())(IMAGES), IMAGES.amax((2, 3)))


def test_whatever_a_network_returns_becomes_vectors() -> None:
    maps = torch.rand(2, 4, 3, 3)
    vectors = maps.mean((2, 3))
    for output in (vectors, maps, (vectors, None), vectors.double()):
        torch.testing.assert_close(flat(output), vectors)
    torch.testing.assert_close(
        flat(SimpleNamespace(pooler_output=vectors[:, :, None, None])), vectors
    )
    torch.testing.assert_close(flat(SimpleNamespace(pooler_output=None, logits=vectors)), vectors)
    with pytest.raises(ValueError, match=r"expected features \(B,D\) from the network, got dict"):
        flat({})


def test_a_layer_that_is_not_there_is_told() -> None:
    with pytest.raises(
        ValueError,
        match=r"expected the name of a layer of Sequential \(it ends with .*head\), got 'haed'",
    ):
        FeatureWrapper(nets(), layer="haed")(IMAGES)


def test_distances_are_one_per_pair_and_see_normalised_images() -> None:
    class Far(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().sum((1, 2, 3), keepdim=True)

    other = IMAGES.flip(0)
    got = PerceptualWrapper(Far(), size=None, mean=[0.5], std=[0.5])(IMAGES, other)
    torch.testing.assert_close(got, 2 * (IMAGES - other).abs().sum((1, 2, 3)))

    class Whole(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean()

    with pytest.raises(ValueError, match="expected 3 distances from the network"):
        PerceptualWrapper(Whole(), size=None, mean=[], std=[])(IMAGES, other)
