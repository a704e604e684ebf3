"""Floating-point operations, by torch's own formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def tflops(work: Callable[[], object]) -> float:
    """Return the tera floating-point operations of a call, forward and backward (a multiply and an
    add are two).

    Counts matrix products, convolutions and attention only, by the formulas of
    torch.utils.flop_counter. Elementwise operations and other runtimes (ONNX) are not counted.
    """
    counter = _Counter()
    with counter:
        work()
    return counter.total / 1e12


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FlopCounterMode without module tracking; its hooks fail under torch.autograd.grad (torch
    2.13).
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas, self.total = flop_registry, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # without autograd, composite operations are not split
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
