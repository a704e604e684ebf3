"""Feature networks from other packages; each package is imported only when its network is made."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

FULL = "pip install 'counterfactory[full]' where torch has a matching torchvision"


def inception(*, pretrained: bool = False) -> nn.Module:
    """Return the Inception of the FID papers, as torch-fidelity converted it: images (B,3,H,W) in
    [0,1] to (B,2048).

    It rounds images to 8 bits and enlarges them to 299 px as TensorFlow did, so size, mean and std
    must not be set. pretrained: whether the package downloads its weights; otherwise the caller
    loads them. ValueError where the package cannot be imported.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"expected the package torch-fidelity, got {error}: {FULL}") from None

    class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """The extractor for images in [0,1], made without weights where none are downloaded."""

        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = super().forward(
                images.mul(255).round().clamp(0, 255).to(torch.uint8)
            )[0]
            return features

    # the constructor reads or downloads a file: this file is empty, and load_state_dict skips it
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    return Inception(
        "inception-v3-compat",
        ["2048"],
        feature_extractor_weights_path=None if pretrained else nothing,
    )


def efficientnet_lite(*, name: str = "efficientnet-lite0") -> nn.Module:
    """Return EfficientNet-Lite, an ImageNet classifier; its features are the input of the layer
    `_fc`, (B,1280).

    ValueError where the package efficientnet-lite-pytorch is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        hint = "pip install 'counterfactory[features]'"
        raise ValueError(
            f"expected the package efficientnet-lite-pytorch, got {error}: {hint}"
        ) from None
    network: nn.Module = EfficientNet.from_name(name)
    return network
