"""Classifiers that can only be asked: images of 8 bits go in, probabilities come back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from counterfactory.models.wrapping.answers import Answers
from counterfactory.models.wrapping.errors import BlackBoxError
from counterfactory.models.wrapping.images import gray, resize

LEAST = 1e-7  # a probability below it counts as this one, so that its logarithm is finite
SUMS = 5e-3  # of a row of probabilities: half precision of many classes is within it
OUTPUTS = ("probabilities", "logits", "sigmoid", "labels")


class Adapter(Protocol):
    """Something that answers about images.

    rows: the most images of one call, None where there is no limit.
    """

    rows: int | None

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return its outputs (N,K), or (N,) for labels; images (N,H,W,C) uint8."""
        ...

    def version(self) -> str | None:
        """Return the version that it states, or None."""
        ...


class BlackBox(nn.Module):
    """An adapter as a Classifier without gradients. Its images are rounded to 8 bits, and its
    scores are log p, with p at least LEAST.

    outputs: one of OUTPUTS, what the adapter returns. column: of `sigmoid` and of a single logit,
    where there are several outputs. rows: images of one call; calls: at a time. answers: earlier
    answers, where they are kept; take: is called with the number of images before they are asked,
    and may refuse.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        classes: Sequence[str],
        outputs: str = "probabilities",
        column: int | None = None,
        size: int | None = None,
        channels: int | None = None,
        rows: int = 32,
        calls: int = 1,
    ) -> None:
        super().__init__()
        self.adapter, self.classes, self.outputs, self.column = (
            adapter,
            tuple(classes),
            outputs,
            column,
        )
        self.size, self.channels, self.calls = size, channels or 3, calls
        self.rows = min(rows, adapter.rows or rows)
        self.answers: Answers | None = None
        self.take: Callable[[int], None] = lambda images: None
        self.asked = 0  # images that the adapter was asked about
        self.notes: tuple[str, ...] = ()
        self._pool: ThreadPoolExecutor | None = None
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return log p (B,K) float32 for images (B,3,H,W) in [0,1]; NaN for an image that is not
        finite, which is not asked.

        BlackBoxError where there is no answer or a wrong one.
        """
        there = images.isfinite().flatten(1).all(1).cpu()
        scores = torch.full((len(images), len(self.classes)), torch.nan)
        if bool(there.any()):
            found = self.probabilities(self.pixels(images.cpu()[there]))
            scores[there] = torch.from_numpy(np.log(found.clip(LEAST, 1)))
        return scores.to(images.device)

    def pixels(self, images: Tensor) -> np.ndarray:
        """Return the adapter's images (B,size,size,C) uint8 for images (B,3,H,W) in [0,1]."""
        sized = resize(images.float(), self.size)
        shown = gray(sized) if self.channels == 1 else sized
        whole = shown.clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(whole.permute(0, 2, 3, 1).numpy())

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return p (B,K) float32 for images (B,H,W,C) uint8, from earlier answers where they are
        known.
        """
        if self.answers is None:
            return self._ask_all(pixels, lambda places, rows: None)
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
        known, answers = self.answers.known(keys), self.answers
        new = list(dict.fromkeys(key for key in keys if key not in known))
        places = {key: place for place, key in reversed(list(enumerate(keys)))}

        def keep(part: slice, rows: np.ndarray) -> None:
            answers.keep(new[part], rows)

        if new:
            found = self._ask_all(pixels[[places[key] for key in new]], keep)
            known.update(zip(new, found, strict=True))
        return np.stack([known[key] for key in keys])

    def _ask_all(self, pixels: np.ndarray, keep: Callable[[slice, np.ndarray], None]) -> np.ndarray:
        """Return p of every image, asked in calls of `rows` images, `calls` at a time; each
        call's answers are kept as they come.
        """
        parts = [slice(at, at + self.rows) for at in range(0, len(pixels), self.rows)]

        def ask(part: slice) -> np.ndarray:
            found = self.ask(pixels[part])
            keep(part, found)
            return found

        if len(parts) == 1 or self.calls == 1:
            return np.concatenate([ask(part) for part in parts])
        self._pool = self._pool or ThreadPoolExecutor(self.calls, thread_name_prefix="ask")
        waiting = [self._pool.submit(ask, part) for part in parts]
        try:
            return np.concatenate([one.result() for one in waiting])
        finally:
            for one in waiting:
                one.cancel()

    def ask(self, pixels: np.ndarray) -> np.ndarray:
        """Return p (n,K) float32 of one call for images (n,H,W,C) uint8, without earlier
        answers.
        """
        self.take(len(pixels))
        self.asked += len(pixels)
        return probabilities_of(
            self.adapter.predict(pixels), len(pixels), self.classes, self.outputs, self.column
        )


def probabilities_of(
    found: Any, rows: int, classes: Sequence[str], outputs: str, column: int | None = None
) -> np.ndarray:
    """Return p (rows,K) float32 from an adapter's outputs; BlackBoxError where rows, outputs,
    values or sums are not those of `outputs`.
    """
    values = np.asarray(found)
    if outputs == "labels":
        return _from_labels(values, rows, len(classes))
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise BlackBoxError(f"expected numbers, got {str(values.dtype)[:40]}") from None
    if values.ndim == 0 or len(values) != rows:
        got = f"{len(values)} of shape {values.shape}" if values.ndim else "one number"
        raise BlackBoxError(f"expected answers to {rows} images, got {got}")
    values = values.reshape(rows, -1)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(1)).sum())
        raise BlackBoxError(f"expected finite numbers, got NaN or infinity for {bad} of {rows}")
    if outputs == "sigmoid":
        chosen = _column(values, column)
        _expect_fractions(chosen, "sigmoid")
        return np.stack([1 - chosen, chosen], 1).astype(np.float32)
    if outputs == "logits" and (column is not None or (values.shape[1] == 1 and len(classes) == 2)):
        chosen = _column(values, column)
        values = np.stack([np.zeros_like(chosen), chosen], 1)
    if values.shape[1] != len(classes):
        hint = ": set outputs: sigmoid for one probability" if values.shape[1] == 1 else ""
        raise BlackBoxError(
            f"expected {len(classes)} outputs for the classes {', '.join(classes)[:200]}, got"
            f" {values.shape[1]}{hint}"
        )
    if outputs == "logits":
        powers = np.exp(values - values.max(1, keepdims=True))
        values = powers / powers.sum(1, keepdims=True)
    _expect_fractions(values, "logits")  # true of what logits became
    worst = values.sum(1)[np.abs(values.sum(1) - 1).argmax()]
    if abs(worst - 1) > SUMS:
        raise BlackBoxError(
            f"expected probabilities that sum to 1, got a sum of {worst:.4g}: set outputs: sigmoid"
            " (with output) or logits"
        )
    return values.astype(np.float32)


def _column(values: np.ndarray, column: int | None) -> np.ndarray:
    if column is None and values.shape[1] != 1:
        raise BlackBoxError(
            f"expected 1 output (or `output`, which one to read), got {values.shape[1]}"
        )
    if not 0 <= (column or 0) < values.shape[1]:
        raise BlackBoxError(f"expected output within 0..{values.shape[1] - 1}, got {column}")
    chosen: np.ndarray = values[:, column or 0]
    return chosen


def _expect_fractions(values: np.ndarray, other: str) -> None:
    if values.min() < -SUMS or values.max() > 1 + SUMS:
        worst = values.min() if values.min() < -SUMS else values.max()
        hint = "logits" if other == "sigmoid" else other
        raise BlackBoxError(
            f"expected probabilities within 0..1, got {worst:.4g}: set outputs: {hint}"
        )


def _from_labels(values: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Return p of 0 and 1 for indices of classes (rows,)."""
    if values.size != rows:
        raise BlackBoxError(f"expected a label for each of {rows} images, got {values.size}")
    flat = values.reshape(rows)
    whole = np.issubdtype(flat.dtype, np.number) and bool((flat == np.floor(flat)).all())
    if not whole or flat.min() < 0 or flat.max() >= classes:
        raise BlackBoxError(f"expected indices of classes, 0..{classes - 1}, got {str(flat)[:60]}")
    chosen: np.ndarray = np.eye(classes, dtype=np.float32)[flat.astype(np.int64)]
    return chosen
