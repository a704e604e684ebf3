"""A run with three answers to each row, from scores to the report: what counts answers, and what
counts rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor, nn

from configs.schema import RunConfig
from counterfactory.metrics.flips import any_flipped, first_of
from counterfactory.metrics.rates import RateSums, compute, wilson
from pipelines.augment.answers import select_apart
from pipelines.augment.job import augment
from pipelines.judge.job import build_prompts
from pipelines.report.data import read_run
from pipelines.report.gallery import choose, with_answers
from pipelines.report.job import report
from pipelines.report.show import show
from pipelines.score.answers import rows_of
from pipelines.score.job import score
from pipelines.score.measures import row_measures
from pipelines.sweep.pairs import pairs
from storage.verify import verify
from tests.pipelines.conftest import Oracle, Pixel

ROWS, EACH = 20, 3


class Squares(nn.Module):
    """A perceptual distance: the mean square."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3))


@pytest.fixture
def scored(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Any]]:
    """The run, and its table."""
    run = make_run(rows=ROWS, answers=EACH)
    built: dict[str, Any] = {"classifier": Pixel("Blond_Hair", 12), "second": Pixel("Smiling", 5)}
    built |= {
        "oracle": Oracle(),
        "perceptual": Squares(),
        "features": lambda x: x[:, 1, :2, :2].flatten(1),
    }
    monkeypatch.setattr(
        "actors.score.load_models", lambda config, names, device: {n: built[n] for n in names}
    )
    raw = run.config.model_dump()
    raw["models"]["perceptual"] = {"role": "perceptual", "target": "tiny.squares", "label": "tiny"}
    raw["models"]["features"] = {"role": "features", "target": "tiny.features", "label": "tiny"}
    run.config = RunConfig.model_validate(raw)
    return run, score(run.store, run.config)


def figure(table: dict[str, Any], metric: str, subset: str) -> dict[str, Any]:
    (found,) = [e for e in table["subsets"] if (e["metric"], e["subset"]) == (metric, subset)]
    return dict(found)


def test_rates_are_of_answers_and_their_intervals_of_rows(
    scored: tuple[Any, dict[str, Any]],
) -> None:
    run, table = scored
    flips = np.array([r["flipped"] for r in run.rows]).reshape(ROWS, EACH)
    assert table["rows"] == ROWS * EACH
    assert table["answers"] == {"rows": ROWS, "each": EACH}
    told = figure(table, "flip_rate", "all")
    assert (told["n"], told["value"]) == (ROWS * EACH, pytest.approx(flips.mean()))
    assert (told["low"], told["high"]) == pytest.approx(wilson(flips.mean() * ROWS, ROWS))
    agrees = figure(table, "second_agrees", "flipped")
    assert agrees["n"] == flips.sum()
    hit = int(flips.any(1).sum())  # rows that have a flipped answer: the subset's
    expected = compute(
        RateSums(int(flips.sum()), round(agrees["value"] * flips.sum()), int(flips.sum()) - hit)
    )
    assert (agrees["low"], agrees["high"]) == pytest.approx((expected.low, expected.high))
    some = figure(table, "flip_rate[any]", "all")
    assert (some["n"], some["value"]) == (ROWS, hit / ROWS)
    assert (some["low"], some["high"]) == pytest.approx(wilson(hit, ROWS))
    correct = np.array([r["correct"] is True for r in run.rows]).reshape(ROWS, EACH)[:, 0]
    assert figure(table, "flip_rate[any]", "correct")["n"] == correct.sum()
    assert not [
        e for e in table["subsets"] if e["metric"] == "flip_rate[any]" and "flipped" in e["subset"]
    ]
    notes = {e["metric"]: e["note"] for e in table["metrics"] if not e["by"]}
    assert notes["flip_rate"] == "n answers, 3 to each of 20 rows; every interval is over rows"
    assert notes["forward"] == "per answer, of which a row has 3"
    assert sum(way["n"] for way in table["directions"]) == ROWS * EACH


def test_diversity_is_what_numpy_makes_of_it(scored: tuple[Any, dict[str, Any]]) -> None:
    run, table = scored
    after = np.stack([y for _, y in run.pictures]).reshape(ROWS, EACH, -1) / 255
    flips = np.array([r["flipped"] for r in run.rows]).reshape(ROWS, EACH)
    gaps = np.square(after[:, :, None] - after[:, None]).mean(-1)  # (rows, k, k)
    upper = np.triu(np.ones((EACH, EACH), bool), 1)
    of_all = [gap[upper].mean() for gap in gaps]
    valid = [
        gap[np.ix_(f, f)][np.triu(np.ones((f.sum(),) * 2, bool), 1)]
        for gap, f in zip(gaps, flips, strict=True)
    ]
    of_flipped = [gap.mean() for gap in valid if len(gap)]
    assert 0 < len(of_flipped) < ROWS
    told = figure(table, "lpips_diversity[tiny]", "all")
    assert (told["n"], told["value"]) == (ROWS, pytest.approx(np.mean(of_all), abs=1e-7))
    told = figure(table, "lpips_diversity[tiny]", "flipped")
    assert (told["n"], told["value"]) == (
        len(of_flipped),
        pytest.approx(np.mean(of_flipped), abs=1e-7),
    )
    correct = [r["correct"] is True for r in run.rows][::EACH]
    told = figure(table, "lpips_diversity[tiny]", "correct")
    assert told["value"] == pytest.approx(np.mean(np.array(of_all)[correct]), abs=1e-7)
    assert [e["subset"] for e in table["metrics"] if e["metric"].startswith("lpips_diversity")] == [
        "all"
    ]


def test_shards_change_nothing_and_originals_count_once(
    scored: tuple[Any, dict[str, Any]], make_run: Callable[..., Any]
) -> None:
    run, table = scored
    other = make_run(rows=ROWS, answers=EACH, shards=7)
    again = score(other.store, run.config)
    for ours, theirs in zip(table["subsets"], again["subsets"], strict=True):
        assert ours["n"] == theirs["n"], ours["metric"]
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-6, abs=1e-9), ours["metric"]
    names = {e["metric"] for e in table["subsets"]}
    assert {"fid[tiny]", "kid[tiny]", "cd"} <= names
    x = np.stack([x for x, _ in run.pictures])[::EACH, :2, :2, 1].reshape(ROWS, -1) / 255
    flipped = [r["flipped"] for r in run.rows]
    y = (
        np.stack([y for _, y in run.pictures])[flipped][:, :2, :2, 1].reshape(sum(flipped), -1)
        / 255
    )
    rows = np.array([r["row"] for r in run.rows])[flipped]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / 4 + 1) ** 3)

    # neither with itself nor with another answer to its row
    other_rows = rows[:, None] != rows[None, :]
    apart = np.arange(ROWS)[:, None] != rows[None, :]
    inside = kernel(x, x)[~np.eye(ROWS, dtype=bool)].mean() + kernel(y, y)[other_rows].mean()
    told = figure(table, "kid_apart[tiny]", "flipped")
    assert told["value"] == pytest.approx(inside - 2 * kernel(x, y)[apart].mean(), abs=1e-5)
    assert told["n"] == len(y)
    inside = sum(kernel(a, a)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y))
    usual = figure(table, "kid[tiny]", "flipped")
    assert usual["value"] == pytest.approx(inside - 2 * kernel(x, y).mean(), abs=1e-5)


def test_judge_and_show_tell_answers_from_rows(scored: tuple[Any, dict[str, Any]]) -> None:
    run, _ = scored
    assert build_prompts(run.store, run.config)["prompts"] == ROWS * EACH
    text = show(run.store)
    assert "60 counterfactuals, 3 to each of 20 rows, 3 of 3 shards" in text
    flips = np.array([r["flipped"] for r in run.rows]).reshape(ROWS, EACH)
    assert f"flipped     {flips.sum()} of 60" in text
    assert f"an answer of {flips.any(1).sum()} of 20 rows" in text
    wrong = sum(r["correct"] is False for r in run.rows if not r["k"])
    assert f"misjudged   {wrong} rows" in text
    assert verify(run.store) == []


def test_a_training_set_takes_answers_that_differ_and_no_more_than_wanted(
    scored: tuple[Any, dict[str, Any]],
) -> None:
    run, _ = scored
    settings = {"balance": False, "min_apart": 0}
    good = [r for r in run.rows if r["flipped"] and r["split"] == "train"]
    counts = augment(run.store, run.with_settings(augment=settings))
    assert counts["kept"] == len(good)
    assert "of 60 answers to 20 rows" in counts["summary"]
    table = pd.concat([pd.read_parquet(f"{run.store.uri}/{file}") for file in counts["files"]])
    assert {(line.source_id, line.k) for line in table.itertuples()} == {
        (r["id"], r["k"]) for r in good
    }
    assert "split by `source_id`" in run.store.read("augment/README.md").decode()
    counts = augment(run.store, run.with_settings(augment={**settings, "per_row": 1}))
    assert counts["kept"] == len({r["id"] for r in good})
    assert counts["rejected"]["beyond augment.per_row"] == len(good) - counts["kept"]
    far = augment(run.store, run.with_settings(augment={**settings, "min_apart": 0.5}))
    assert far["kept"] == counts["kept"]  # no two answers of this run are so far apart
    assert far["considered"] == far["kept"] + sum(far["rejected"].values())


def test_of_answers_that_are_alike_the_first_stays() -> None:
    shades = {"a0": 10, "a1": 10, "a2": 60, "a3": 61, "b0": 10}

    def images(names: Sequence[str], column: str) -> dict[str, Any]:
        return {name: np.full((4, 4, 3), shades[name], np.uint8) for name in names}

    rows = [{"id": name[0], "cf_id": name, "k": int(name[1])} for name in shades]
    kept, left_out = select_apart(rows, images, 2 / 255, None)
    assert [row["cf_id"] for row in kept] == ["a0", "a2", "b0"]
    assert list(left_out.values()) == [2, 0]
    kept, left_out = select_apart(rows, images, 1 / 255, 2)
    assert [row["cf_id"] for row in kept] == ["a0", "a2", "b0"]
    assert list(left_out.values()) == [1, 1]


def test_cells_of_a_sweep_differ_by_their_rows_means(
    scored: tuple[Any, dict[str, Any]], make_run: Callable[..., Any]
) -> None:
    run, _ = scored
    one = make_run(rows=ROWS, shards=2, name="one")
    score(one.store, run.config)
    measures = [m for m in row_measures(run.config) if m.column in ("l1", "flipped")]
    found = {
        line["metric"]: line
        for line in pairs(["one", "three"], [one.store, run.store], measures, 50)
    }
    gap = [np.abs(x.astype(float) - y).mean() / 255 for x, y in run.pictures]
    first, mean = np.array(gap)[::EACH], np.array(gap).reshape(ROWS, EACH).mean(1)
    assert found["l1"]["n"] == ROWS
    assert found["l1"]["difference"] == pytest.approx((first - mean).mean(), abs=1e-6)
    flips = np.array([r["flipped"] for r in run.rows], float).reshape(ROWS, EACH)
    assert found["flip_rate"]["difference"] == pytest.approx((flips[:, 0] - flips.mean(1)).mean())


def test_the_report_shows_an_original_once_with_all_answers(
    scored: tuple[Any, dict[str, Any]],
) -> None:
    run, _ = scored
    data = read_run(run.store)
    assert (data.each, data.noun, data.tally.rows) == (EACH, "answer", ROWS * EACH)
    cards = with_answers(choose([data], 6))
    assert len({card[0][1].row["id"] for card in cards}) == len(cards) == 6
    for card in cards:
        assert [pick.k for _, pick in card] == [0, 1, 2]
        assert len({pick.row["id"] for _, pick in card}) == 1
        assert any(pick.row["flipped"] for _, pick in card)
    page = Path(report([run.store])).read_text(encoding="utf-8")
    assert "Each row has 3 answers: n counts answers, and intervals are over rows." in page
    assert "60 counterfactuals out, 3 answers to each row" in page
    many = re.findall(r'<article class="card row many".*?</article>', page, re.S)
    assert many
    for text in many:
        assert text.count('alt="original, ') == 1
        assert re.findall(r"answer \d", text) == ["answer 0", "answer 1", "answer 2"]
    ids = re.findall(r'title="row (row-\d+)"', "".join(many))
    assert max(Counter(ids).values()) == 1


def test_which_answers_are_of_one_row() -> None:
    assert rows_of(["a", "b", "c"]) is None
    rows = rows_of(["b", "b", "a", "a", "c"])
    assert rows is not None
    assert first_of(rows).tolist() == [True, False, True, False, True]
    found = any_flipped(np.array([0.0, 1, 0, 0, 1]), rows)
    np.testing.assert_array_equal(found, [1, np.nan, 0, np.nan, 1])
