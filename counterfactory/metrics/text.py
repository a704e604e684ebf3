"""How far a counterfactual text is from its query, in words, and how likely a language model finds
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from counterfactory.metrics.estimate import NOTHING, Estimate, Measure

Floats = NDArray[np.float64]
ORDERS = 4  # BLEU-4
MEASURES = (
    Measure("edit_distance", "edit_distance", "mean", "all", "lower", "tokens"),
    Measure("words_kept", "words_kept", "mean", "all", "higher", "share of the query's words"),
    Measure("bleu", "", "set", "all", "higher", "BLEU-4 against the query"),
    Measure("perplexity", "", "set", "all", "lower", "per token"),
)


def edit_distance(query: Sequence[str], answer: Sequence[str]) -> int:
    """Fewest tokens to insert, delete or replace (Levenshtein 1966)."""
    row = list(range(len(answer) + 1))
    for i, q in enumerate(query, 1):
        corner, row[0] = row[0], i
        for j, a in enumerate(answer, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (q != a))
    return row[-1]


def words_kept(query: Sequence[str], answer: Sequence[str]) -> float | None:
    """Share of the query's words that the answer holds, each as often as it stood there, wherever;
    None: no words.
    """
    return sum((Counter(query) & Counter(answer)).values()) / len(query) if query else None


@dataclass(frozen=True)
class BleuSums:
    """n rows; n-grams of orders 1 to 4 that answers share with their queries, and that they have,
    (4,) int64 each; the answers' and the queries' tokens."""

    n: int
    shared: NDArray[np.int64]
    had: NDArray[np.int64]
    answer: int
    query: int

    @classmethod
    def zero(cls) -> BleuSums:
        return cls(0, np.zeros(ORDERS, np.int64), np.zeros(ORDERS, np.int64), 0, 0)

    def __add__(self, other: BleuSums) -> BleuSums:
        return BleuSums(
            self.n + other.n,
            self.shared + other.shared,
            self.had + other.had,
            self.answer + other.answer,
            self.query + other.query,
        )


def bleu_update(query: Sequence[str], answer: Sequence[str]) -> BleuSums:
    """Count one pair's n-grams, the shared ones at most as often as the query has them."""
    grams = [(_grams(query, n), _grams(answer, n)) for n in range(1, ORDERS + 1)]
    shared = np.array([sum((q & a).values()) for q, a in grams], dtype=np.int64)
    had = np.array([sum(a.values()) for _, a in grams], dtype=np.int64)
    return BleuSums(1, shared, had, len(answer), len(query))


def bleu(sums: BleuSums) -> Estimate:
    """BLEU-4 of all rows as one corpus, within [0,1], without smoothing: 0 where an order has no
    shared n-gram; no interval (Papineni et al., ACL 2002)."""
    if sums.n == 0:
        return NOTHING
    if sums.answer == 0 or not sums.shared.all():
        return Estimate(0.0, None, None, sums.n, "no interval")
    brevity = min(0.0, 1 - sums.query / sums.answer)
    value = exp(brevity + float(np.log(sums.shared / sums.had).mean()))
    return Estimate(value, None, None, sums.n, "no interval")


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class PerplexitySums:
    """n rows; their tokens and negative log-likelihood (nats), and both in each of R replicates,
    (R,).
    """

    n: int
    tokens: float
    nll: float
    drawn_tokens: Floats
    drawn_nll: Floats

    @classmethod
    def zero(cls, replicates: int) -> PerplexitySums:
        return cls(0, 0.0, 0.0, np.zeros(replicates), np.zeros(replicates))

    def __add__(self, other: PerplexitySums) -> PerplexitySums:
        return PerplexitySums(
            self.n + other.n,
            self.tokens + other.tokens,
            self.nll + other.nll,
            self.drawn_tokens + other.drawn_tokens,
            self.drawn_nll + other.drawn_nll,
        )


def perplexity_update(nll: Floats, tokens: Floats, weights: Floats) -> PerplexitySums:
    """Sum a batch: nll (B,), each text's summed negative log-likelihood in nats; tokens (B,);
    weights (B,R).
    """
    return PerplexitySums(
        len(nll), float(tokens.sum()), float(nll.sum()), tokens @ weights, nll @ weights
    )


def perplexity(sums: PerplexitySums) -> Estimate:
    """exp of the mean negative log-likelihood of a token over all rows, with the percentile
    interval of resampled rows; None, with a note, where it is too large for a float."""
    if sums.n == 0 or sums.tokens == 0:
        return NOTHING
    rate = sums.nll / sums.tokens
    if rate > log(1e300):
        return Estimate(None, None, None, sums.n, "beyond 1e300")
    if sums.n == 1 or not (sums.drawn_tokens > 0).any():
        return Estimate(exp(rate), None, None, sums.n, f"n = {sums.n}: no interval")
    drawn = sums.drawn_tokens > 0
    low, high = np.quantile(sums.drawn_nll[drawn] / sums.drawn_tokens[drawn], [0.025, 0.975])
    return Estimate(
        exp(rate), exp(min(float(low), rate)), exp(min(max(float(high), rate), log(1e300))), sums.n
    )
