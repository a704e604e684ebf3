"""Networks in ONNX files, run on the CPU by ONNX Runtime, or by OpenCV where that is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterfactory.models.wrapping.exported import ByItself, InBatches

KINDS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class SeveralInputs(ValueError):  # noqa: N818 (it describes the file)
    """A file whose inputs are more than its images, or others."""


def onnx_network(data: bytes, output: str | None = None) -> nn.Module:
    """Return the network of an ONNX file with one input, as a torch module without gradients, for
    batches of any size.

    data: the file's bytes. output: the name of the output to read; None: the first one. ValueError
    where neither ONNX Runtime nor OpenCV is there, or where the file cannot be read.
    """
    try:
        import onnxruntime
    except ImportError:
        if output is not None:
            raise ValueError(
                "expected the package onnxruntime for settings.output, got none: pip install"
                " 'counterfactory[onnx]'"
            ) from None
        return Onnx(data)
    try:
        network = Runtime(onnxruntime, data, output)
    except SeveralInputs:
        # files older than ONNX 1.4 name their weights as inputs, which OpenCV tells apart
        if output is None and find_spec("cv2"):
            return Onnx(data)
        raise
    if network.fixed_rows is None:
        made: nn.Module = ByItself(network)
    else:
        made = InBatches(network, network.fixed_rows)
    for name in ("fixed_channels", "fixed_side"):
        if (value := getattr(network, name)) is not None:
            setattr(made, name, value)
    return made


class Runtime(nn.Module):
    """The network of an ONNX file in a session of ONNX Runtime.

    runtime: the package. fixed_rows, fixed_channels, fixed_side: those that the file is made for,
    None where they are free.
    """

    def __init__(self, runtime: Any, data: bytes, output: str | None) -> None:
        super().__init__()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # else it prints what the error has
        try:
            self.session = runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it raises classes of its own for every fault
            text = " ".join(str(error).split())[:200]
            raise ValueError(
                f"expected an ONNX file that ONNX Runtime can run, got {len(data)} bytes: {text}"
            ) from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in KINDS:
            got = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
            raise SeveralInputs(
                f"expected an ONNX file with one input of images, got {got[:200]}: OpenCV (pip"
                " install 'counterfactory[features]') reads older files"
            )
        names = [one.name for one in self.session.get_outputs()]
        if output is not None and output not in names:
            raise ValueError(f"expected settings.output out of {', '.join(names)}, got {output!r}")
        self.input, self.kind, self.output = (
            inputs[0].name,
            KINDS[inputs[0].type],
            output or names[0],
        )
        shape = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        shape = shape if len(shape) == 4 else [None] * 4
        self.fixed_rows, self.fixed_channels = shape[:2]
        self.fixed_side = shape[2] if shape[2] == shape[3] else None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B,...) float32 for normalised images (B,C,H,W)."""
        values = x.detach().float().cpu().numpy()
        if self.kind is np.uint8:
            values = values.round().clip(0, 255)
        try:
            (found,) = self.session.run([self.output], {self.input: values.astype(self.kind)})
        except Exception as error:  # it raises classes of its own for every fault
            raise RuntimeError(" ".join(str(error).split())[:300]) from None
        return torch.from_numpy(np.asarray(found, dtype=np.float32)).to(x.device)


class Onnx(nn.Module):
    """The network of an ONNX file with one input and one output, in OpenCV.

    data: the file's bytes. ValueError where OpenCV is missing or cannot read the file.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        try:
            import cv2
        except ImportError as error:
            hint = "pip install 'counterfactory[onnx]'"
            raise ValueError(
                "expected the package onnxruntime, or opencv-python-headless of the extra"
                f" features, got {error}: {hint}"
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
