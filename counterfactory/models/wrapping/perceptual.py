"""Perceptual distances: LPIPS from its package, shift-tolerant LPIPS whose weights a package ships,
and DiME's own distance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterfactory.models.wrapping.features import FULL

CHANNELS = (64, 192, 384, 256, 256)  # output channels of AlexNet's five stages


def lpips_alex(*, pretrained: bool = True) -> nn.Module:
    """Return LPIPS 0.1 (Zhang et al. 2018) with AlexNet, for images in [-1,1]; see `lpips_of`."""
    return lpips_of("alex", pretrained)


def lpips_vgg(*, pretrained: bool = True) -> nn.Module:
    """Return LPIPS 0.1 (Zhang et al. 2018) with VGG-16, for images in [-1,1]; see `lpips_of`."""
    return lpips_of("vgg", pretrained)


def lpips_of(net: str, pretrained: bool) -> nn.Module:
    """Return the network of the package lpips; ValueError where the package cannot be imported.

    pretrained: whether the package downloads the trunk and reads its own linear layers. Otherwise
    the caller loads all weights, as torch saves them.
    """
    try:
        from lpips import LPIPS
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"expected the package lpips, got {error}: {FULL}") from None
    network: nn.Module = LPIPS(
        net=net, pretrained=pretrained, pnet_rand=not pretrained, verbose=False
    )
    return network


class BlurPool(nn.Module):
    """A 3x3 binomial filter with stride 2 (Zhang 2019, arXiv 1904.11486) and reflection padding of
    two pixels.
    """

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", torch.outer(row, row).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B,C,H,W) filtered, with about half its height and width."""
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1]
        )


class ShiftTolerantAlexNet(nn.Module):
    """ST-LPIPS (Ghildyal & Liu 2022, arXiv 2207.13686): LPIPS over an AlexNet that pools with blur.

    Layers have the names of the authors' weight file, which also holds the blur filters.
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = CHANNELS
        self.net = nn.ModuleDict(
            {
                "slice1": numbered(0, nn.Conv2d(3, a, 11, 1, 2), BlurPool(a), nn.ReLU()),
                "slice2": numbered(
                    3, nn.MaxPool2d(3, 1), BlurPool(a), nn.Conv2d(a, b, 5, 1, 2), nn.ReLU()
                ),
                "slice3": numbered(
                    7, nn.MaxPool2d(3, 1), BlurPool(b), nn.Conv2d(b, c, 3, 1, 1), nn.ReLU()
                ),
                "slice4": numbered(11, nn.Conv2d(c, d, 3, 1, 1), nn.ReLU()),
                "slice5": numbered(13, nn.Conv2d(d, e, 3, 1, 1), nn.ReLU()),
            }
        )
        for k, width in enumerate(CHANNELS):
            linear = nn.Module()
            linear.model = numbered(1, nn.Conv2d(width, 1, 1, bias=False))
            setattr(self, f"lin{k}", linear)
        self.scaling_layer = nn.Module()  # ImageNet's mean and deviation, for images in [-1,1]
        self.scaling_layer.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        )
        self.scaling_layer.register_buffer(
            "scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the five stages' outputs, with unit length at each place; images (B,3,H,W) in
        [-1,1].
        """
        scaling = self.scaling_layer
        x, out = (images - scaling.shift) / scaling.scale, []  # type: ignore[operator]
        for stage in self.net.values():
            x = stage(x)
            out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,): weighted squared differences, averaged over places and summed over
        stages.
        """
        total = a.new_zeros(len(a))
        for k, (p, q) in enumerate(zip(self.maps(a), self.maps(b), strict=True)):
            weight: Tensor = self.get_parameter(f"lin{k}.model.1.weight")
            total = total + F.conv2d((p - q).square(), weight).mean((1, 2, 3))
        return total


class VGG19Distance(nn.Module):
    """DiME's perceptual distance (Jeanneret et al. 2022): mean squared difference of VGG-19's
    features after relu3_4.

    Layers have the names of torchvision's weight file, and only its first eight convolutions are
    used. Input images are normalised by ImageNet's mean and deviation.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, convolutions in ((64, 2), (128, 2), (256, 4)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B,); a and b (B,3,H,W), normalised."""
        distances: Tensor = (self.features(a) - self.features(b)).square().flatten(1).mean(1)
        return distances


def numbered(first: int, *layers: nn.Module) -> nn.Sequential:
    """Return a sequence of layers named by consecutive numbers from `first`."""
    out = nn.Sequential()
    for number, layer in enumerate(layers, first):
        out.add_module(str(number), layer)
    return out
