"""What every method takes and gives, and the few rules they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from counterfactory.models.interfaces import Classifier


class Method(Protocol):
    """What the factory asks of a method's class; settings are its constructor's keyword arguments.

    name, version: what its answers are known by, wherever its code lies; the version is raised when
    the same settings give other answers. A class that declares none is known by its dotted path.
    access: what it needs of the classifier: "gradient", "scores" or "labels". needs: the names of
    the models that it is called with besides the classifier.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    access: ClassVar[str]

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, *args: Any, **models: Any) -> Any:
        """Answers to queries of the method's kind of data; called with its models by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Queries:
    """A batch of questions to a method, of whatever kind of data.

    source: (B,) int64, the predicted class; target: (B,) int64, the wanted class; seed: (B,) int64,
    made from the row's id. ValueError on another shape or dtype.
    """

    source: Tensor
    target: Tensor
    seed: Tensor

    def __post_init__(self) -> None:
        for name in ("source", "target", "seed"):
            value: Tensor = getattr(self, name)
            if value.shape != self.source.shape[:1] or value.dtype != torch.int64:
                got = f"{tuple(value.shape)} {value.dtype}"
                raise ValueError(
                    f"expected {name} of shape ({len(self)},) and dtype int64, got {got}"
                )

    def __len__(self) -> int:
        return len(self.source)

    def repeated(self, k: int) -> Self:
        """Every query k times, one after the other, for methods that give k answers to each."""
        return self.chosen(torch.arange(len(self), device=self.source.device).repeat_interleave(k))

    def chosen(self, rows: Tensor) -> Self:
        """The queries at some places (n,) int64."""
        columns: dict[str, Any] = {}
        for name in (column.name for column in fields(self)):
            value: Tensor | None = getattr(self, name)
            columns[name] = None if value is None else value[rows]
        return type(self)(**columns)


@dataclass(frozen=True, kw_only=True)
class ImageQueries(Queries):
    """Questions about images.

    images: (B,3,H,W) float32 in [0,1], on the 8-bit grid; masks: (B,H,W) int64, which region every
    pixel shows, where the data say so (a method that cannot do without has `needs_masks = True`).
    ValueError on another shape or dtype.
    """

    images: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise ValueError(f"expected images of shape (B,3,H,W) and dtype float32, got {got}")
        if len(self.images) != len(self.source):
            raise ValueError(
                f"expected source of shape ({len(self.images)},) and dtype int64, got"
                f" {tuple(self.source.shape)} {self.source.dtype}"
            )
        super().__post_init__()
        if self.masks is not None:
            wanted = (len(self.images), *self.images.shape[2:])
            if self.masks.shape != wanted or self.masks.dtype != torch.int64:
                got = f"{tuple(self.masks.shape)} {self.masks.dtype}"
                raise ValueError(f"expected masks of shape {wanted} and dtype int64, got {got}")


@dataclass(kw_only=True)
class Answers:
    """A batch of counterfactuals, one per query and in the queries' order; or k per query, those of
    one query together.

    flipped: (B,) bool, judged on what is stored; steps: (B,) int64, optimisation steps spent;
    forward, backward: (B,) int64, model evaluations spent on the row (see Budget); reasons: per
    row, None where it flipped, else why it did not. Where the method has them: latents (B,D);
    edits, per row what was exchanged, as plain values that JSON holds; condition (B,A): the
    attributes that a decoder was given.
    """

    flipped: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    reasons: list[str | None]
    latent_before: Tensor | None = None
    latent_after: Tensor | None = None
    edits: list[dict[str, Any] | None] | None = None
    condition_before: Tensor | None = None
    condition_after: Tensor | None = None


@dataclass(kw_only=True)
class ImageAnswers(Answers):
    """Counterfactual images.

    counterfactual: like the queries' images, on the 8-bit grid; mask: (B,1,H,W) in [0,1], 1 where
    the row was allowed to change, where the method has one.
    """

    counterfactual: Tensor
    mask: Tensor | None = None


def to_8bit(images: Tensor) -> Tensor:
    """Round images in [0,1] to the 256 levels that are stored (rounding, never truncation)."""
    return images.clamp(0, 1).mul(255).round().div(255)


def row_generators(seed: Tensor) -> list[torch.Generator]:
    """One CPU generator per row, so that a row's noise does not depend on its batch; seed: (B,)
    int64.
    """
    return [torch.Generator().manual_seed(int(s) & 0x7FFF_FFFF_FFFF_FFFF) for s in seed.tolist()]


def row_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Standard normal noise (B, *shape), row b drawn from generators[b]."""
    noise = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
    # from pinned memory, or the copy would wait for all that the device has still to do
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)


@dataclass
class Budget:
    """Model evaluations spent per row; (B,) int64 each.

    Every network call that a row takes part in counts one, whichever network it is, and so does
    every pass back through one. A row is charged for what it would cost alone, so that its count
    does not depend on its batch.
    """

    forward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    backward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, rows: int) -> Budget:
        return cls(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))

    def spend(self, rows: Tensor, *, forward: int = 0, backward: int = 0) -> None:
        """Charge evaluations to rows, a (n,) index into the batch."""
        rows = rows.cpu()
        if forward:
            self.forward[rows] += forward
        if backward:
            self.backward[rows] += backward


def target_log_prob(classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
    """Log-probability of each row's target class; (B,)."""
    return classifier(images).log_softmax(1).gather(1, target[:, None])[:, 0]


def stored_verdict(classifier: Classifier, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Is each image, as stored in 8 bits, classified as its target, and with what probability; (B,)
    bool, (B,).

    A row whose scores are not finite is not flipped, and its probability is NaN.
    """
    with torch.no_grad():
        probabilities = classifier(to_8bit(images)).softmax(1)
    # argmax takes a NaN for the largest value, so the flip must ask for finite scores as well.
    flipped = (probabilities.argmax(1) == target) & probabilities.isfinite().all(1)
    return flipped, probabilities.gather(1, target[:, None])[:, 0]


def passes_stored(
    classifier: Classifier,
    images: Tensor,
    target: Tensor,
    p: Tensor,
    threshold: float,
    rows: Tensor,
    budget: Budget,
) -> Tensor:
    """Which images pass the threshold as stored in 8 bits, and are their target there; (n,) bool.

    p: (n,) p(target) of the images as they are: only those that pass so are stored and looked at;
    rows: (n,) their places in the batch, for the budget.
    """
    passes = p > threshold
    near = passes.nonzero()[:, 0]
    if len(near):
        flips, stored_p = stored_verdict(classifier, images[near], target[near])
        passes[near] = flips & (stored_p > threshold)
        budget.spend(rows[near], forward=1)
    return passes


def settle(
    classifier: Classifier,
    images: Tensor,
    queries: ImageQueries,
    reasons: Sequence[str],
    budget: Budget,
    *,
    steps: Tensor,
    **kept: Any,
) -> ImageAnswers:
    """Store each row's best try in 8 bits and judge it there: how every method ends.

    images: (B,3,H,W); reasons: per row, why it failed if it did; steps: (B,); kept: what else of
    ImageAnswers the method has. A try that is not finite is replaced by its query.
    """
    finite = images.isfinite().flatten(1).all(1)
    images = images.where(finite[:, None, None, None], queries.images)
    stored = to_8bit(images)
    everything = torch.arange(len(queries))
    flipped, _ = stored_verdict(classifier, stored, queries.target)
    budget.spend(everything, forward=1)
    why: list[str | None] = [
        None if done else reason for done, reason in zip(flipped.tolist(), reasons, strict=True)
    ]
    lost = (~flipped).nonzero()[:, 0]
    if len(lost):
        with torch.no_grad():
            predicted = classifier(images[lost]).argmax(1)
        budget.spend(lost, forward=1)
        for row, before in zip(
            lost.tolist(), (predicted == queries.target[lost]).tolist(), strict=True
        ):
            if not bool(finite[row]):
                why[row] = "non-finite image"
            elif before and not bool(torch.equal(images[row], stored[row])):
                why[row] = "flip lost in 8-bit"
    return ImageAnswers(
        counterfactual=stored,
        flipped=flipped,
        steps=steps.cpu(),
        forward=budget.forward,
        backward=budget.backward,
        reasons=why,
        **kept,
    )
