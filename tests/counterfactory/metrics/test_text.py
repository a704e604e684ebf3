"""Text metrics against hand-counted cases and torchmetrics."""

import math

import numpy as np
import pytest
from torchmetrics.text import BLEUScore

from counterfactory.metrics import text
from counterfactory.metrics.means import bootstrap_weights

PAIRS = [
    ("the food was great and the staff was kind", "the food was awful and the staff was rude"),
    ("i will come back soon for the soup", "i will never come back for the soup"),
    ("nice place", "bad place"),
    ("a b c d e f", "a b c d e f g h"),
]


@pytest.mark.parametrize(
    ("query", "answer", "distance"),
    [
        ("", "", 0),
        ("a b c", "", 3),
        ("", "a", 1),
        ("a b c", "a c", 1),
        ("k i t t e n", "s i t t i n g", 3),
    ],
)
def test_edit_distance_by_hand(query: str, answer: str, distance: int) -> None:
    assert text.edit_distance(query.split(), answer.split()) == distance
    assert text.edit_distance(answer.split(), query.split()) == distance


def test_words_kept_by_hand() -> None:
    assert text.words_kept(["the", "a", "the", "b"], ["b", "the", "x"]) == 0.5  # one `the` and `b`
    assert text.words_kept(["a"], ["a", "a"]) == 1.0
    assert text.words_kept([], ["a"]) is None


def test_bleu_by_hand() -> None:
    # 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 2 of 4, 4-grams 1 of 3; answer no shorter than query
    sums = text.bleu_update(["a", "b", "c", "d", "e", "f"], ["a", "b", "c", "d", "x", "f"])
    assert (sums.shared.tolist(), sums.had.tolist()) == ([5, 3, 2, 1], [6, 5, 4, 3])
    assert text.bleu(sums).value == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # an answer of 4 to a query of 5: all n-grams shared, brevity exp(1 - 5/4)
    short = text.bleu_update(["a", "b", "c", "d", "e"], ["a", "b", "c", "d"])
    assert text.bleu(short).value == pytest.approx(math.exp(-0.25))
    # clipped: the query holds `a` once
    assert text.bleu_update(["a"], ["a", "a", "a"]).shared[0] == 1


def test_bleu_of_a_corpus_against_torchmetrics_in_any_split() -> None:
    split = [(q.split(), a.split()) for q, a in PAIRS]
    whole = sum((text.bleu_update(q, a) for q, a in split), text.BleuSums.zero())
    halves = [
        sum((text.bleu_update(q, a) for q, a in part), text.BleuSums.zero())
        for part in (split[:1], split[1:])
    ]
    expected = BLEUScore(n_gram=4)([a for _, a in PAIRS], [[q] for q, _ in PAIRS])
    assert text.bleu(whole).value == pytest.approx(float(expected), abs=1e-6)
    assert text.bleu(halves[0] + halves[1]) == text.bleu(whole)
    assert text.bleu(whole).n == 4


def test_bleu_of_nothing_and_of_nothing_shared() -> None:
    assert text.bleu(text.BleuSums.zero()).note == "n = 0"
    assert text.bleu(text.bleu_update(["a", "b", "c", "d"], ["w", "x", "y", "z"])).value == 0
    assert text.bleu(text.bleu_update(["a"], [])).value == 0


def test_perplexity_by_hand_and_in_shards() -> None:
    rng = np.random.default_rng(0)
    nll, tokens = rng.exponential(20, 70), rng.integers(1, 15, 70).astype(float)
    weights = bootstrap_weights([str(i) for i in range(70)], 200)
    whole = text.perplexity(text.perplexity_update(nll, tokens, weights))
    assert whole.value == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert whole.low < whole.value < whole.high  # type: ignore[operator]
    sums = text.PerplexitySums.zero(200)
    for part in np.array_split(rng.permutation(70), 7):
        sums += text.perplexity_update(nll[part], tokens[part], weights[part])
    again = text.perplexity(sums)
    assert (again.value, again.low, again.high) == pytest.approx(
        (whole.value, whole.low, whole.high), rel=1e-12
    )
    # a uniform model over 8 words finds everything 8-fold perplexing
    even = text.perplexity_update(np.full(3, 5 * math.log(8)), np.full(3, 5.0), weights[:3])
    assert text.perplexity(even).value == pytest.approx(8)


def test_perplexity_of_nothing_one_row_and_too_much() -> None:
    weights = bootstrap_weights(["a"], 5)
    assert text.perplexity(text.PerplexitySums.zero(5)).note == "n = 0"
    one = text.perplexity(text.perplexity_update(np.array([3.0]), np.array([2.0]), weights))
    assert (one.value, one.low) == (pytest.approx(math.exp(1.5)), None)
    huge = text.perplexity(text.perplexity_update(np.array([3e5]), np.array([2.0]), weights))
    assert (huge.value, huge.note) == (None, "beyond 1e300")
