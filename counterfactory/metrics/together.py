"""Pairs of attributes that go together in the data, so that an answer may change both."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import atanh, tanh

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.rates import Z95
from counterfactory.metrics.sums import Sums

Floats = NDArray[np.float64]
TOGETHER = 0.8  # |phi| from which a pair is reported
LEAST = 8  # rows with each value of both attributes; with fewer, chance makes pairs
SHOWN = 3  # pairs that a sentence names


@dataclass(frozen=True)
class TogetherSums(Sums):
    """Counts of rows for each pair of C columns, (C,C) each, over the rows where both are known:
    n rows; ones[i,j], those where column i is 1; both[i,j], those where i and j are 1."""

    n: Floats
    ones: Floats
    both: Floats


@dataclass(frozen=True)
class Pair:
    """Two columns, their phi in [-1,1] with its 95 % interval, and the number of rows.

    of_class: whether `a` is a class of the classifier; otherwise both are attributes.
    """

    a: str
    b: str
    phi: float
    low: float
    high: float
    n: int
    of_class: bool = False


def update(values: Floats) -> TogetherSums:
    """Return the counts of a batch; values: (B,C) of 0, 1, or NaN where one is not known."""
    known = (~np.isnan(values)).astype(np.float64)
    ones = np.nan_to_num(values)
    return TogetherSums(known.T @ known, ones.T @ known, ones.T @ ones)


def phi(sums: TogetherSums, extra: float = 0.0) -> Floats:
    """Return the correlation of every pair of columns, (C,C); 0 where one of the two is constant.

    extra: what is added to each cell of a pair's 2x2 table.
    """
    n, both = sums.n + 4 * extra, sums.both + extra
    a, b = sums.ones + 2 * extra, sums.ones.T + 2 * extra
    scale = np.sqrt(a * (n - a) * b * (n - b))
    found = np.zeros_like(both)
    np.divide(n * both - a * b, scale, out=found, where=scale > 0)
    return np.clip(found, -1, 1)


def class_columns(labels: Floats, classes: Sequence[str]) -> tuple[list[str], Floats]:
    """Return the names and values (B,C) of the columns that stand for the class.

    labels: (B,) class indices, NaN where not known. Two classes are one column, the second class;
    more are one column each.
    """
    first = 1 if len(classes) == 2 else 0
    columns = (labels[:, None] == np.arange(first, len(classes))).astype(np.float64)
    columns[np.isnan(labels)] = np.nan
    return list(classes[first:]), columns


def find_pairs(
    sums: TogetherSums, names: Sequence[str], classes: int = 0, expected: Collection[str] = ()
) -> list[Pair]:
    """Return the pairs with |phi| >= TOGETHER, the strongest first.

    names: of the C columns. classes: how many columns, from the first on, are classes; two classes
    are no pair. expected: attributes that may go with the class, because they define it; one with
    the class's name is among them. The interval is Fisher's z of the table with half a row more in
    each cell, so that it has a width where phi is 1. Pairs in which an attribute has a value in
    fewer than LEAST rows are left out.
    """
    values, shrunk = phi(sums), phi(sums, 0.5)
    rarer = np.minimum(sums.ones, sums.n - sums.ones)
    told = (np.abs(values) >= TOGETHER - 1e-9) & (np.minimum(rarer, rarer.T) >= LEAST)
    defining = {name.casefold() for name in expected}
    pairs = []
    for i, j in np.argwhere(np.triu(told, 1)):
        of_class = bool(i < classes)
        own = names[j].casefold() in {*defining, names[i].casefold()}
        if j < classes or (of_class and own):
            continue
        value, n = float(values[i, j]), int(sums.n[i, j])
        centre, half = atanh(float(shrunk[i, j])), Z95 / (n - 3) ** 0.5
        low, high = min(tanh(centre - half), value), max(tanh(centre + half), value)
        pairs.append(Pair(names[i], names[j], value, low, high, n, of_class))
    return sorted(pairs, key=lambda pair: (-abs(pair.phi), pair.a, pair.b))


def describe(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Return what the pairs mean and what to do, one for attributes and one for the class; none
    without pairs.
    """
    found = []
    if attributes := [pair for pair in pairs if not pair.of_class]:
        found.append(
            (
                f"{_name(attributes)} go together: an answer may change both",
                "run `interventions` to see which decides, set `method.core: true` to keep only"
                " what decides, or train the generator on a set where they are balanced",
            )
        )
    if of_class := [pair for pair in pairs if pair.of_class]:
        found.append(
            (
                f"{_name(of_class)} go together: the classifier may have learned either",
                "run `interventions` to see which decides, and look at rows where they differ",
            )
        )
    return found


def _name(pairs: Sequence[Pair]) -> str:
    named = [
        f"{'class ' if pair.of_class else ''}{pair.a} and {pair.b} (phi {pair.phi:.2f})"
        for pair in pairs[:SHOWN]
    ]
    more = len(pairs) - SHOWN
    return ", ".join(named) + (f" and {more} other pair{'s'[: more > 1]}" if more > 0 else "")
