"""Floating-point operations, as torch itself counts them."""

from __future__ import annotations

from collections.abc import Callable

from metrics.estimate import Measure

MEASURES = (Measure("tflops", "", "set", "all", "lower", "TFLOP per row"),)


def tflops(work: Callable[[], object]) -> float:
    """Tera floating-point operations of a call, forward and backward (a multiply and an add are two).

    Of matrix products, convolutions and attention only, which is what torch.utils.flop_counter counts; elementwise
    operations and foreign runtimes (ONNX) count nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12
