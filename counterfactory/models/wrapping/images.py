"""Images as foreign networks take them: another side, or one channel."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize(images: Tensor, size: int | None, resample: str = "bilinear") -> Tensor:
    """Return images (B,3,H,W) at size x size; unchanged where size is None or already theirs.

    resample: bilinear or bicubic, antialiased where images shrink, as in PIL; or nearest.
    """
    if size is None or images.shape[-2:] == (size, size):
        return images
    if resample == "nearest":
        return F.interpolate(images, (size, size), mode="nearest-exact")
    shrinks = images.shape[-1] > size or images.shape[-2] > size
    return F.interpolate(
        images, (size, size), mode=resample, align_corners=False, antialias=shrinks
    )


def gray(images: Tensor) -> Tensor:
    """Return images (B,3,H,W) as (B,1,H,W), with the weights of PIL's mode L (ITU-R 601).

    Where an image is gray already, all channels have equal weight: the value is the same, and its
    gradient is gray, too.
    """
    if images.shape[1] == 1:
        return images
    with torch.no_grad():
        colour = (images != images[:, :1]).flatten(1).any(1).view(-1, 1, 1, 1)
        luma = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        share = torch.where(colour, luma, torch.full_like(luma, 1 / 3))
    return (images * share).sum(1, keepdim=True)


@torch.no_grad()
def channels_of(network: nn.Module, size: int | None = None) -> int:
    """Return the number of image channels that a network takes: 3 or 1.

    It is 1 where an archive, a config or the first layer indicates it and the network fails on 3
    channels and not on 1. size: side of the network's input.
    """
    sides = _sides_of_gray(network)
    if isinstance(sides, int):
        return sides
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()  # so that a try does not change batch norm
    try:
        with torch.random.fork_rng(devices=[]):
            for side in [size, *sides] if sides and size else sides:
                for channels in (3, 1):
                    if _takes(network, channels, int(side or 0)):
                        return channels
    finally:
        for layer, training in modes.items():
            layer.training = training
    return 3


def _sides_of_gray(network: nn.Module) -> int | list[int]:
    """Return image sides for trying whether a network takes gray images.

    Returns the number of channels where an archive states it, and an empty list where nothing
    indicates gray images.
    """
    if isinstance(told := getattr(network, "fixed_channels", None), int):
        return 1 if told == 1 else 3
    config: Any = getattr(network, "config", None)
    usual = [28, 32, 64, 224]
    if getattr(config, "num_channels", None) == 1 or getattr(network, "channels", None) == 1:
        return usual
    for layer in network.modules():
        kind, weight = _kind(layer), getattr(layer, "weight", None)
        if kind == "Conv2d" and isinstance(weight, Tensor) and weight.ndim == 4:
            return usual if getattr(layer, "in_channels", weight.shape[1]) == 1 else []
    for layer in network.modules():
        weight = getattr(layer, "weight", None)
        if _kind(layer) == "Linear" and isinstance(weight, Tensor) and weight.ndim == 2:
            side = isqrt(weight.shape[1])  # of an image that is one row of values
            return [side] if side**2 == weight.shape[1] else []
    return []


def _takes(network: nn.Module, channels: int, side: int) -> bool:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        network(torch.zeros(1, channels, side, side, device=device))
    except Exception:  # a foreign network may raise anything
        return False
    return True


def _kind(layer: nn.Module) -> str:
    """Return the name of a layer's class, also in TorchScript."""
    if isinstance(layer, nn.Conv2d):
        return "Conv2d"
    return "Linear" if isinstance(layer, nn.Linear) else getattr(layer, "original_name", "")
