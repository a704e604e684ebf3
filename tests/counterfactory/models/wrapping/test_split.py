"""Networks cut in two: the halves are the whole wherever the cut is, and one that something goes
around is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from counterfactory.models.classifiers import ConvNet, ResNet
from counterfactory.models.wrapping.split import head_of, last_maps, maps_of
from counterfactory.models.wrapping.wrap import ClassifierWrapper


def net_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = (
        ConvNet(outputs=2, width=4, stages=3)
        if kind == "conv"
        else ResNet(outputs=2, widths=(4, 6, 8))
    )
    return made.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    [
        ("conv", "body.2", (4, 16, 16)),
        ("conv", "body", (16, 4, 4)),
        ("res", "stem", (4, 16, 16)),
        ("res", "blocks.1", (6, 8, 8)),
    ],
)
@torch.no_grad()
def test_the_halves_are_the_whole(
    kind: str, layer: str, shape: tuple[int, ...], images: Tensor
) -> None:
    net = net_of(kind)
    maps, head = maps_of(net, layer, images), head_of(net, layer, images)
    assert maps.shape[1:] == shape
    assert isinstance(head, GraphModule)  # what lies before the layer is not run
    torch.testing.assert_close(head(maps), net(images))
    torch.testing.assert_close(head(maps.flip(0)), net(images).flip(0))


@torch.no_grad()
def test_last_maps_are_the_last_of_more_than_one_cell(images: Tensor) -> None:
    assert last_maps(net_of("conv"), images) == "body"
    assert last_maps(net_of("res"), images) == "norm"
    pooled = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Flatten()
    )
    assert last_maps(pooled, images) == "0"
    with pytest.raises(
        ValueError, match=r"expected a layer of Sequential that gives maps \(B,D,h,w\), got none"
    ):
        last_maps(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), images)


@torch.no_grad()
def test_a_network_that_cannot_be_traced_is_run_whole(images: Tensor) -> None:
    class Foreign(nn.Module):
        """What public models do: a look at the input's values, and an object with the scores."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = net_of("conv")

        def forward(self, x: Tensor) -> dict[str, Any]:
            if x.isnan().any():
                raise ValueError
            return {"logits": self.inner(x)}

    net = Foreign().eval()
    maps, head = maps_of(net, "inner.body.5", images), head_of(net, "inner.body.5", images)
    assert not isinstance(head, GraphModule)
    torch.testing.assert_close(
        head(maps.repeat(2, 1, 1, 1))["logits"], net(images)["logits"].repeat(2, 1)
    )
    assert not any(layer._forward_hooks for layer in net.modules())


@torch.no_grad()
def test_layers_that_cut_nothing_are_refused(images: Tensor) -> None:
    net = net_of("res")
    with pytest.raises(
        ValueError,
        match=r"everything passes through, got 'blocks\.1\.conv1', which something goes around",
    ):
        head_of(net, "blocks.1.conv1", images)
    with pytest.raises(
        ValueError, match=r"expected maps \(B,D,h,w\) from 'head' of ResNet, got \(3, 2\)"
    ):
        maps_of(net, "head", images)
    with pytest.raises(
        ValueError,
        match=r"expected the name of a layer of ResNet \(it ends with .*head\), got 'nowhere'",
    ):
        maps_of(net, "nowhere", images)


@torch.no_grad()
def test_a_classifier_gives_maps_of_what_it_looks_at_and_scores_of_them(images: Tensor) -> None:
    net = ConvNet(outputs=1, width=4, stages=3).eval()
    classifier = ClassifierWrapper(
        net, classes=["no", "yes"], head="sigmoid", size=24, mean=[0.5], std=[0.5]
    )
    maps, head = classifier.split(images, "last")
    assert maps.shape == (3, 16, 3, 3)
    torch.testing.assert_close(head(maps), classifier(images))
    assert head(maps).shape == (3, 2)
