"""Sums that add field by field."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class Sums:
    """What a metric is computed from: the sums of two batches are the sums of both, field by
    field.
    """

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
