"""The queries that every method takes, the answers that it returns, and the rules that all methods
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from counterfactory.models.interfaces import Classifier


class Method(Protocol):
    """The interface of a method's class; its settings are its constructor's keyword arguments.

    name, version: identify the method's answers, wherever its code is stored. The version is raised
    when the same settings lead to other answers. A class that declares no name is identified by its
    dotted path. access: what the method uses of the classifier: "gradient", "scores" or "labels".
    needs: the names of the models that it is called with, besides the classifier.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    access: ClassVar[str]

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, *args: Any, **models: Any) -> Any:
        """Return answers to queries of the method's kind of data; the models are passed by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Queries:
    """A batch of queries to a method, for any kind of data.

    source: (B,) int64, the predicted class. target: (B,) int64, the wanted class. seed: (B,) int64,
    computed from the row's id. ValueError where a shape or dtype differs.
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
        """Return every query k times in a row, for methods that return k answers to each query."""
        return self.chosen(torch.arange(len(self), device=self.source.device).repeat_interleave(k))

    def chosen(self, rows: Tensor) -> Self:
        """Return the queries at the given places, (n,) int64."""
        columns: dict[str, Any] = {}
        for name in (column.name for column in fields(self)):
            value: Tensor | None = getattr(self, name)
            columns[name] = None if value is None else value[rows]
        return type(self)(**columns)


@dataclass(frozen=True, kw_only=True)
class ImageQueries(Queries):
    """A batch of queries about images.

    images: (B,3,H,W) float32 in [0,1], on the 8-bit grid. masks: (B,H,W) int64, the region that
    every pixel shows, or None where the data have no masks; a method that requires them sets
    `needs_masks = True`. ValueError where a shape or dtype differs.
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
    """A batch of counterfactuals, one per query and in the queries' order; or k per query, where
    the k answers of one query follow each other.

    flipped: (B,) bool, judged on the stored counterfactual. steps: (B,) int64, optimisation steps
    taken. forward, backward: (B,) int64, model evaluations spent on the row (see Budget). reasons:
    per row, None where it flipped, else the reason why it did not.

    Only where the method has them: latent_before, latent_after: (B,D). edits: per row, what was
    exchanged, in plain values that JSON can store. condition_before, condition_after: (B,A), the
    attributes that the decoder received.
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
    """A batch of counterfactual images.

    counterfactual: shaped like the queries' images, on the 8-bit grid. mask: (B,1,H,W) in [0,1], 1
    where the image was allowed to change; None where the method has no mask.
    """

    counterfactual: Tensor
    mask: Tensor | None = None


def to_8bit(images: Tensor) -> Tensor:
    """Return images in [0,1] rounded to the 256 levels that are stored (rounded, never
    truncated).
    """
    return images.clamp(0, 1).mul(255).round().div(255)


def row_generators(seed: Tensor) -> list[torch.Generator]:
    """Return one CPU generator per row, so that a row's noise does not depend on its batch; seed:
    (B,) int64.
    """
    return [torch.Generator().manual_seed(int(s) & 0x7FFF_FFFF_FFFF_FFFF) for s in seed.tolist()]


def row_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Return standard normal noise (B, *shape); row b is drawn from generators[b]."""
    noise = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
    # Copied from pinned memory, because otherwise the copy waits until the device has no work left.
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)


@dataclass
class Budget:
    """The number of model evaluations spent on each row: forward and backward, (B,) int64 each.

    Every call of any network that a row takes part in counts as one, and so does every backward
    pass through a network. A row is charged what it would cost alone, so that its count does not
    depend on its batch.
    """

    forward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    backward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, rows: int) -> Budget:
        return cls(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))

    def spend(self, rows: Tensor, *, forward: int = 0, backward: int = 0) -> None:
        """Add evaluations to the counts of rows; rows: (n,) indices into the batch."""
        rows = rows.cpu()
        if forward:
            self.forward[rows] += forward
        if backward:
            self.backward[rows] += backward


def target_log_prob(classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability of each row's target class; (B,)."""
    return classifier(images).log_softmax(1).gather(1, target[:, None])[:, 0]


def stored_verdict(classifier: Classifier, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each image, rounded to 8 bits, is classified as its target, (B,) bool, and the
    target's probability, (B,).

    A row whose scores are not finite is not flipped, and its probability is NaN.
    """
    with torch.no_grad():
        probabilities = classifier(to_8bit(images)).softmax(1)
    # argmax treats a NaN as the largest value, so the flip also requires finite scores.
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
    """Return which images, rounded to 8 bits, have their target as the prediction and pass the
    threshold; (n,) bool.

    p: (n,) p(target) of the images before rounding; only images that pass with it are rounded and
    classified again. rows: (n,) their places in the batch, for the budget.
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
    """Return the answers: round each row's best try to 8 bits and judge the result. Every method
    ends with this call.

    images: (B,3,H,W). reasons: per row, why it failed, used only where it did. steps: (B,). kept:
    further fields of ImageAnswers. A try that is not finite is replaced by its query.
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
