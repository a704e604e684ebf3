"""Adversarial training's pushed images, against what they promise."""

import torch
from torch.nn import functional as F

from counterfactory.models.classifiers import ConvNet
from pipelines.train.losses import classifier, normal, push, weights_of


def setting() -> tuple[ConvNet, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = ConvNet(width=8, outputs=2).eval()
    return net, torch.rand(32, 3, 32, 32), torch.randint(2, (32,))


def test_pushed_images_stay_near_and_cost_more() -> None:
    net, images, labels = setting()
    eps = 0.02
    moved = push(net, images, labels, eps, torch.Generator().manual_seed(1))
    change = (moved - images).flatten(1).abs().amax(1)
    assert change.max() <= eps + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    touched = change > 0
    assert 4 < touched.sum() < 28  # about half
    each = [F.cross_entropy(net(normal(x)), labels, reduction="none") for x in (images, moved)]
    assert (each[1] > each[0])[touched].float().mean() > 0.95
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_term_is_off_by_default_and_makes_the_loss_larger() -> None:
    net, images, labels = setting()
    generator = torch.Generator().manual_seed(1)
    loss = classifier(net, images, labels, weights_of("classifier", {}), generator)
    assert torch.allclose(loss, F.cross_entropy(net(normal(images)), labels), atol=1e-6)
    with_term = classifier(
        net, images, labels, weights_of("classifier", {"adversarial": 0.02}), generator
    )
    assert with_term > loss
