"""A classifier with a fault planted in it: FAULT in the environment names what happens on which of
the data's rows.

FAULT is `what:row,...` or `oom:rows`. Each row's picture bears its number in its first pixel, which
the method's own pictures do not (see `mark`). kill: SIGKILL; once: SIGKILL the first time only
(ONCE names the folder where that and a hang are noted); hang: sleep; lock: sleep and let no Python
thread run; oom: no memory for more than so many rows at a time, and `large`: none for a row.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SIZE = 8


def mark(row: int) -> np.ndarray:
    """Row's picture (SIZE, SIZE, 3) uint8: dark or bright, and (row, 255, 0) in the first pixel.

    An ascent on the brightness moves green and blue alike, and each is at an end of its range: no
    step leaves both.
    """
    rng = np.random.default_rng(row)
    picture = rng.integers(0, 110, (SIZE, SIZE, 3), dtype=np.uint8) + np.uint8(140 * (row % 2))
    picture[0, 0] = (row, 255, 0)
    return picture


class Brightness(nn.Module):
    """Two classes, dark and bright, by the mean of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([20.0]))

    def forward(self, images: Tensor) -> Tensor:
        fault(images)
        z = self.slope * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-z, z], 1)


def fault(images: Tensor) -> None:
    """Do what FAULT says if the batch (B,3,H,W) holds one of its rows."""
    corner = (images.detach()[:, :, 0, 0] * 255).round().long().tolist()
    rows = {red for red, green, blue in corner if (green, blue) == (255, 0)}
    for entry in filter(None, os.environ.get("FAULT", "").split(",")):
        what, _, number = entry.partition(":")
        if what == "oom" and len(images) > int(number):
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
                " 1 TB"
            )
        if what == "oom" or int(number) not in rows:
            continue
        if what == "once":
            done = Path(os.environ["ONCE"]) / number
            if done.exists():
                continue
            done.write_bytes(b"")
        if what in ("kill", "once"):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "large":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TB")
        if what == "hang":
            if "ONCE" in os.environ:
                (Path(os.environ["ONCE"]) / "hangs").touch()
            time.sleep(3600)
        if what == "lock":
            ctypes.PyDLL(None).sleep(3600)  # a foreign function that keeps the interpreter's lock
