"""Feature networks that other packages define; each is imported here and only when it is made."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

FULL = "pip install 'counterfactory[full]' where torch has a matching torchvision"


def inception(*, pretrained: bool = False) -> nn.Module:
    """The Inception of the FID papers, as torch-fidelity converted it: images (B,3,H,W) in [0,1] to
    (B,2048).

    It looks at 8-bit values and enlarges to 299 as TensorFlow did, so no size, mean or std is to be
    set. pretrained: let the package fetch its weights; else they are to be given. ValueError where
    the package cannot be imported.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"expected the package torch-fidelity, got {error}: {FULL}") from None

    class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """The extractor on images in [0,1], made without weights where none are to be fetched."""

        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = super().forward(
                images.mul(255).round().clamp(0, 255).to(torch.uint8)
            )[0]
            return features

    # the constructor reads a file or fetches one: this one is empty, and load_state_dict knows
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    return Inception(
        "inception-v3-compat",
        ["2048"],
        feature_extractor_weights_path=None if pretrained else nothing,
    )


def efficientnet_lite(*, name: str = "efficientnet-lite0") -> nn.Module:
    """EfficientNet-Lite, an ImageNet classifier; its features are what goes into the layer `_fc`,
    (B,1280).

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
