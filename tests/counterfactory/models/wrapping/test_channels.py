"""Networks for gray images, as those of handwritten digits; and the memory format of networks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from counterfactory.models.classifiers import ConvNet
from counterfactory.models.wrapping.images import channels_of, gray
from counterfactory.models.wrapping.load import build
from counterfactory.models.wrapping.wrap import (
    ClassifierWrapper,
    DenoiserWrapper,
    channels_last,
)

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
DIGITS = torch.from_numpy(PIXELS)[:, None].float().div(255)  # (3,1,28,28)
SHOWN = DIGITS.expand(-1, 3, -1, -1).contiguous()  # as the factory decodes them
SPEC: dict[str, Any] = {"role": "classifier", "classes": [str(n) for n in range(10)]}


class LeNet(nn.Module):
    """LeNet for digits of 28 x 28 px."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            *(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 6, 5), nn.MaxPool2d(2))
        )
        self.last = nn.Linear(6 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.maps(x).flatten(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.mark.parametrize("make", [LeNet, perceptron])
@pytest.mark.parametrize("source", ["torch", "export", "traced", "scripted"])
def test_a_network_for_gray_images_is_found_by_itself(make: Any, source: str) -> None:
    torch.manual_seed(0)
    net, out = make().eval(), io.BytesIO()
    spec = {**SPEC, "source": "export", "mean": [0.13], "std": [0.31]}
    if source == "torch":
        torch.save(net.state_dict(), out)
        spec |= {"source": "torch", "target": f"{__name__}.{make.__name__}"}
    elif source == "export":
        torch.export.save(torch.export.export(net, (DIGITS,)), out)
    else:
        made = torch.jit.trace(net, DIGITS) if source == "traced" else torch.jit.script(net)
        torch.jit.save(made, out)
    model = build(spec, out.getvalue(), CPU)
    assert model.channels == 1
    torch.testing.assert_close(model(SHOWN), net((DIGITS - 0.13) / 0.31), atol=1e-4, rtol=1e-4)


def test_a_hugging_face_network_for_gray_images(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1])
    theirs = ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    settings = {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = build({"role": "classifier", "source": "huggingface"}, tmp_path, CPU)
    torch.testing.assert_close(model(SHOWN), theirs(2 * DIGITS - 1).logits, atol=1e-5, rtol=1e-4)


def test_the_setting_wins_and_one_channel_has_one_mean() -> None:
    class Mixed(nn.Module):
        """A network that makes gray of colours itself."""

        def __init__(self) -> None:
            super().__init__()
            self.inside = LeNet()

        def forward(self, images: Tensor) -> Tensor:
            return self.inside(images.mean(1, keepdim=True))

    assert ClassifierWrapper(Mixed(), classes=SPEC["classes"]).channels == 3
    spec = {**SPEC, "target": f"{__name__}.LeNet", "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
    with pytest.raises(ValueError, match=r"expected one mean for a network of one channel, got \["):
        build(spec, None, CPU)
    assert build({**spec, "channels": 3}, None, CPU).channels == 3
    same = build({**spec, "mean": [0.4] * 3}, None, CPU)
    assert same.mean.shape == (1, 1, 1, 1)
    assert channels_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))) == 3
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Unflatten(1, (3, 16)))
    assert channels_of(nn.Sequential(pooled, nn.Linear(16, 2))) == 3


def test_the_try_leaves_a_network_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten())
    net.train()
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert channels_of(net) == 1
    assert net.training
    assert net[1].training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert channels_of(ConvNet(outputs=2, width=8, stages=2)) == 3


def test_colours_become_gray_as_in_pil_and_gray_stays_gray() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    want = np.asarray(Image.fromarray(rgb).convert("L")).astype(np.float32)
    got = gray(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())[0, 0]
    assert float((got - torch.from_numpy(want)).abs().max()) <= 1
    image = torch.cat([SHOWN[:1], torch.rand(1, 3, 28, 28)]).requires_grad_()
    (slope,) = torch.autograd.grad(gray(image).square().sum(), image)
    assert torch.equal(slope[0, 0], slope[0, 1])
    assert torch.equal(slope[0, 0], slope[0, 2])
    assert not torch.equal(slope[1, 0], slope[1, 1])
    torch.testing.assert_close(gray(SHOWN), DIGITS)


def test_a_foreign_classifier_is_shown_images_in_the_usual_format() -> None:
    seen: list[bool] = []

    class Watched(ConvNet):
        """A user's network, although it is made from one of ours."""

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.is_contiguous())
            return super().forward(images)

    model = ClassifierWrapper(Watched(outputs=2, width=8, stages=2), classes=["a", "b"], size=16)
    model(torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    assert seen == [True]


class Foreign(nn.Module):
    """A user's network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Conv2d(3, 3, 3, padding=1), []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(x.is_contiguous())
        return self.layer(x)


def test_only_our_own_networks_are_put_in_channels_last() -> None:
    theirs, ours = Foreign(), ConvNet(outputs=2, width=8, stages=2)
    assert channels_last(theirs).layer.weight.is_contiguous()
    moved = [p for p in channels_last(ours).parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert not any(p.is_contiguous() for p in moved if p.shape[2] > 1)
    denoiser = DenoiserWrapper(theirs, alphas_cumprod=torch.linspace(0.9, 0.1, 5))
    denoiser(
        torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.tensor([1, 2])
    )
    assert theirs.seen == [True]
