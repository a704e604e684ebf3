"""AIP_R, the control of AIP (Yang et al., section 4.1.4): the same loop, whose updates have AIP's
lengths and random directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from counterfactory.methods.aip import AIP, length
from counterfactory.methods.contract import row_noise


@dataclass(frozen=True, kw_only=True)
class AIPRandom(AIP):
    """AIP with the gradients' norms but random directions; each row draws from its own
    generator.
    """

    name: ClassVar[str] = "aip-random"
    version: ClassVar[int] = 1

    def directions(
        self, grad_z: Tensor, grad_a: Tensor, generators: list[Generator]
    ) -> tuple[Tensor, Tensor]:
        """Return random vectors with the gradients' lengths, for z and for a."""
        return random_direction(grad_z, generators), random_direction(grad_a, generators)


def random_direction(grad: Tensor, generators: list[Generator]) -> Tensor:
    """Return a vector of each row's length, in a uniformly random direction."""
    if not generators:
        return grad
    noise = row_noise(generators, grad.shape[1:], grad.device).to(grad)
    across = (-1,) + (1,) * (grad.ndim - 1)
    return noise * (length(grad) / length(noise).clamp(min=1e-12)).view(across)
