"""Networks in ONNX files, run by OpenCV on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Onnx(nn.Module):
    """The network of an ONNX file with one input and one output, as a torch module without
    gradients.

    data: the file's bytes. ValueError where OpenCV is missing or cannot read the file.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        try:
            import cv2
        except ImportError as error:
            hint = "pip install 'counterfactory[features]'"
            raise ValueError(
                f"expected the package opencv-python-headless, got {error}: {hint}"
            ) from None
        cv2.setNumThreads(torch.get_num_threads())
        try:
            self.net = cv2.dnn.readNetFromONNX(np.frombuffer(data, dtype=np.uint8))
        except cv2.error as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(
                f"expected an ONNX file that OpenCV can run, got {len(data)} bytes: {text}"
            ) from None

        self.channels = self._channels()

    def _channels(self) -> int | None:
        """Return the input channels of the first convolution, or None where there is none."""
        for name in self.net.getLayerNames():
            layer = self.net.getLayer(self.net.getLayerId(name))
            if layer.type == "Convolution" and layer.blobs:
                return int(layer.blobs[0].shape[1])
        return None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B,...) float32 for normalised images (B,3,H,W)."""
        rows = []
        # one at a time: a file exported for one image returns noise for several
        for row in x.detach().float().cpu().numpy():
            self.net.setInput(np.ascontiguousarray(row[None]))
            # a copy, because OpenCV overwrites its output
            rows.append(np.array(self.net.forward(), dtype=np.float32))
        out = np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)
        return torch.from_numpy(out).to(x.device)
