"""What every method takes and gives, and the few rules they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.interfaces import Classifier


@dataclass(frozen=True, kw_only=True)
class Queries:
    """A batch of questions to a method.

    images: (B,3,H,W) float32 in [0,1], already on the 8-bit grid; source: (B,) int64, the predicted class;
    target: (B,) int64, the wanted class; seed: (B,) int64, made from the row's id.
    """

    images: Tensor
    source: Tensor
    target: Tensor
    seed: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise ValueError(
                f"expected images of shape (B,3,H,W) and dtype float32, got {tuple(self.images.shape)} {self.images.dtype}"
            )
        for name in ("source", "target", "seed"):
            value: Tensor = getattr(self, name)
            if value.shape != self.images.shape[:1] or value.dtype != torch.int64:
                raise ValueError(
                    f"expected {name} of shape ({len(self.images)},) and dtype int64, got {tuple(value.shape)} {value.dtype}"
                )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(kw_only=True)
class Answers:
    """A batch of counterfactuals, one per query and in the queries' order.

    counterfactual: like the queries' images, on the 8-bit grid; flipped: (B,) bool, judged on that image;
    steps: (B,) int64, optimisation steps spent; forward, backward: (B,) int64, model evaluations spent on the row;
    reasons: per row, None where it flipped, else why it did not; latents and mask where the method has them.
    """

    counterfactual: Tensor
    flipped: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    reasons: list[str | None]
    latent_before: Tensor | None = None
    latent_after: Tensor | None = None
    mask: Tensor | None = None


def to_8bit(images: Tensor) -> Tensor:
    """Round images in [0,1] to the 256 levels that are stored (rounding, never truncation)."""
    return images.clamp(0, 1).mul(255).round().div(255)


def row_generators(seed: Tensor) -> list[torch.Generator]:
    """One CPU generator per row, so that a row's noise does not depend on its batch; seed: (B,) int64."""
    return [torch.Generator().manual_seed(int(s) & 0x7FFF_FFFF_FFFF_FFFF) for s in seed.tolist()]


def row_noise(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), row b drawn from generators[b]."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)


@dataclass
class Budget:
    """Model evaluations spent per row; (B,) int64 each."""

    forward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    backward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, rows: int) -> Budget:
        return cls(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))

    def spend(self, rows: Tensor, *, forward: int = 0, backward: int = 0) -> None:
        """Charge evaluations to rows, a (n,) index into the batch."""
        rows = rows.cpu()
        self.forward[rows] += forward
        self.backward[rows] += backward


def target_log_prob(classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
    """Log-probability of each row's target class; (B,)."""
    return classifier(images).log_softmax(1).gather(1, target[:, None])[:, 0]


def stored_verdict(classifier: Classifier, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Is each image, as stored in 8 bits, classified as its target, and with what probability; (B,) bool, (B,)."""
    with torch.no_grad():
        probabilities = classifier(to_8bit(images)).softmax(1)
    return probabilities.argmax(1) == target, probabilities.gather(1, target[:, None])[:, 0]


Step = Callable[[int, Tensor], None]
"""A method's only side channel: called with (iteration, images) where a caller wants to watch."""
