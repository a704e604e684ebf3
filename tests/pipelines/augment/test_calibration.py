"""Whether a judge may label: its agreement with the oracle and with reviewers, and the refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from counterfactory.metrics.rates import wilson
from pipelines.augment.calibration import (
    CALIBRATION,
    LEAST,
    calibrate,
    describe,
    expect_calibrated,
    warnings_of,
)
from pipelines.augment.job import augment
from pipelines.augment.labels import Labels
from pipelines.augment.reviewed import majority, read_reviewed
from pipelines.judge.job import ANSWERS, SCORES
from pipelines.score.job import score
from storage.seal import read_sealed
from storage.tables import to_parquet
from storage.verdicts import Verdict, VerdictLog, now_after

EVERYTHING = {"splits": ["train", "test"], "balance": False}


@pytest.fixture
def scored(make_run: Callable[..., Any]) -> Any:
    run = make_run(rows=160, shards=4)
    score(run.store, run.config)
    return run


def judge_says(run: Any, validity: Callable[[int, dict[str, Any]], int]) -> None:
    """Store a judge's table with this validity of the i-th row."""
    rows = []
    for i, row in enumerate(run.rows):
        scores = dict.fromkeys(CRITERIA, 5) | {"validity": validity(i, row)}
        names = {name: row[name] for name in ("cf_id", "id", "flipped")}
        rows.append({**names, **scores, "judge": sum(scores.values()) / 4})
    run.store.replace(SCORES, to_parquet(pa.Table.from_pylist(rows, schema=ANSWERS)))


def review(run: Any, reviewer: str, verdicts: dict[str, str]) -> None:
    log = VerdictLog(run.store)
    for name, verdict in verdicts.items():
        log.add(Verdict(name, reviewer, verdict, at=now_after("")))


def shown(run: Any) -> list[bool]:
    """Whether each row's counterfactual shows its target: the oracle looks at one pixel."""
    return [
        bool(y[0, 0, 1] > 128) == bool(row["target"])
        for row, (_, y) in zip(run.rows, run.pictures, strict=True)
    ]


def test_the_judge_is_compared_with_the_oracle(scored: Any) -> None:
    truth = shown(scored)
    # wrong in every tenth row, and not sure in every eighth
    judge_says(scored, lambda i, row: 5 if i % 8 == 7 else 9 if truth[i] != (i % 10 == 3) else 2)
    flips = [i for i, row in enumerate(scored.rows) if row["flipped"]]
    sure = [i for i in flips if i % 8 != 7]
    hits = sum(i % 10 != 3 for i in sure)
    table = calibrate(scored.store, scored.config)
    assert table == read_sealed(scored.store, CALIBRATION)
    told = table["references"][0]
    assert (told["reference"], told["n"], told["unsure"]) == (
        "oracle",
        len(sure),
        len(flips) - len(sure),
    )
    assert told["accuracy"] == hits / len(sure)
    assert (told["low"], told["high"]) == wilson(hits, len(sure))
    assert 0.6 < told["alpha"] < 0.9
    assert table["calibrated"] is (len(sure) >= LEAST)
    (line,) = describe(table)
    assert line.startswith(f"the judge against the oracle: right on {100 * told['accuracy']:.1f} %")
    assert f"of {len(sure)} flipped rows" in line


def test_an_uncalibrated_judge_labels_nothing_unless_it_is_allowed(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(rows=60, models=("classifier",))
    score(run.store, run.config)
    judge_says(run, lambda i, row: 9)
    flips = [row["cf_id"] for row in run.rows if row["flipped"]]
    review(run, "ann", dict.fromkeys(flips[:20], "valid"))
    asked = {**EVERYTHING, "label": "judge"}
    with pytest.raises(UserError, match=r"augment\.label: judge: .* got 0 with the oracle and 20"):
        augment(run.store, run.with_settings(augment=asked))
    assert not run.store.exists(CALIBRATION)  # a refusal changes nothing
    counts = augment(run.store, run.with_settings(augment={**asked, "uncalibrated": True}))
    assert run.store.exists(CALIBRATION)
    assert counts["kept"] == len(flips)
    assert counts["warnings"] == [
        "warning: the labels are of a judge that is not calibrated (docs/judge.md)"
    ]


def test_a_judge_that_people_agree_with_may_label(make_run: Callable[..., Any]) -> None:
    run = make_run(rows=160, models=("classifier",))
    score(run.store, run.config)
    judge_says(run, lambda i, row: 9 if i % 3 else 1)
    flips = [(i, row["cf_id"]) for i, row in enumerate(run.rows) if row["flipped"]]
    verdicts = {name: "valid" if i % 3 else "spurious" for i, name in flips[:LEAST]}
    review(run, "ann", verdicts | {name: "unrealistic" for _, name in flips[LEAST:]})
    counts = augment(run.store, run.with_settings(augment={**EVERYTHING, "label": "judge"}))
    assert (counts["kept"], counts["warnings"]) == (len(flips), [])
    told = read_sealed(run.store, CALIBRATION)["references"][1]
    assert (told["n"], told["accuracy"], told["alpha"]) == (LEAST, 1, 1)
    # and one that they contradict is allowed, with a warning
    review(run, "ann", {name: "spurious" for i, name in flips[:LEAST] if i % 9 == 1})
    counts = augment(run.store, run.with_settings(augment={**EVERYTHING, "label": "judge"}))
    (warning,) = counts["warnings"]
    assert "wrong too often to train with: the judge against the reviewers: right on" in warning


def test_a_table_without_rows_is_not_calibrated() -> None:
    table = {"calibrated": False, "references": []}
    assert describe(table) == []
    with pytest.raises(UserError, match=r"augment\.uncalibrated"):
        expect_calibrated(table)
    assert len(warnings_of(table)) == 1


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["valid"], "valid"),
        (["valid", "spurious"], None),
        (["valid", "spurious", "valid"], "valid"),
        (["valid", "valid", "spurious", "unrealistic"], None),
        ([], None),
    ],
)
def test_a_majority_is_more_than_half(verdicts: list[str], expected: str | None) -> None:
    assert majority(dict(enumerate(verdicts))) == expected  # type: ignore[arg-type]


def test_labels_follow_the_reviewers(scored: Any) -> None:
    asked = scored.with_settings(augment={**EVERYTHING, "label": "review"})
    with pytest.raises(UserError, match=r"augment\.label: expected the verdicts of reviewers"):
        augment(scored.store, asked)
    names = [row["cf_id"] for row in scored.rows if row["flipped"]]
    target = {row["cf_id"]: row["target"] for row in scored.rows}
    kinds = ("valid", "spurious", "unrealistic")
    review(scored, "ann", {name: kinds[i % 3] for i, name in enumerate(names[:30])})
    # in a tie over every other row
    review(scored, "bob", {name: kinds[i % 3] for i, name in enumerate(names[:30]) if i % 2})
    review(
        scored, "bob", {name: kinds[(i + 1) % 3] for i, name in enumerate(names[:30]) if not i % 2}
    )
    reviewed = read_reviewed(scored.store)
    assert reviewed[names[0]] is None
    counts = augment(scored.store, asked)
    found = {}
    for file in counts["files"]:
        with scored.store.parquet(file) as opened:
            found |= {r["id"]: r["label"] for r in opened.read(["id", "label"]).to_pylist()}
    assert found == {
        name: target[name] if i % 3 == 0 else 1 - target[name]
        for i, name in enumerate(names[:30])
        if i % 2 and i % 3 < 2
    }
    assert counts["rejected"]["no reviewers' majority for a label"] == len(names) - len(found)
    assert "by the people who reviewed it" in scored.store.read("augment/README.md").decode()


def test_the_rule_of_review_reads_the_verdict() -> None:
    for label, shown in ((None, 4), (4, 4), (3, 3), (2, 4)):
        row = {"source": 4, "target": 2, "label": label}
        for verdict, expected in (("valid", 2), ("spurious", shown), ("unrealistic", None)):
            assert Labels("review").of({**row, "review": verdict}) == (expected, None)
    assert Labels("review").of({**row, "review": None}) == (None, None)
