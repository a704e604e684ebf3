"""Filters and sorts of a review, against the rows that the run was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.review.choose import Wanted, choose, sorts_of
from pipelines.review.index import read_rows
from pipelines.review.verdicts import Book, describe, summarize
from storage.verdicts import Verdict
from tests.pipelines.conftest import PIXELS

Rows = Any


def bright(picture: np.ndarray, name: str) -> bool:
    r, c = PIXELS[name]
    return bool(picture[r, c, 1] > 128)


def found(run: Any, standing: Any = None, reviewer: str = "ann", **wanted: str) -> list[int]:
    rows = read_rows(run.store, run.config)
    return choose(rows, Wanted(**wanted), standing or {}, reviewer).tolist()


def where(run: Any, test: Callable[[dict[str, Any], Any, Any], bool]) -> list[int]:
    return [
        i
        for i, (row, (x, y)) in enumerate(zip(run.rows, run.pictures, strict=True))
        if test(row, x, y)
    ]


def test_filters_choose_the_rows_that_they_name(judged: Any) -> None:
    hair = "Blond_Hair"
    wanted: dict[tuple[tuple[str, str], ...], Callable[..., bool]] = {
        (("direction", "0-1"),): lambda row, x, y: row["source"] == 0,
        (("direction", "1-1"),): lambda row, x, y: False,
        (("label", "1"),): lambda row, x, y: row["label"] == 1,
        (("flipped", "no"),): lambda row, x, y: not row["flipped"],
        (("changed", hair),): lambda row, x, y: bright(x, hair) != bright(y, hair),
        (("group", f"has:{hair}"),): lambda row, x, y: bright(x, hair),
        (("group", f"lacks:{hair}"),): lambda row, x, y: not bright(x, hair),
        (("search", "row-3"),): lambda row, x, y: row["id"].startswith("row-3"),
        (("flipped", "yes"), ("direction", "1-0")): lambda row, x, y: (
            row["flipped"] and row["source"] == 1
        ),
    }
    for given, test in wanted.items():
        assert found(judged, **dict(given)) == where(judged, test), given
    assert found(judged) == list(range(40))


def test_the_judges_answers_choose_rows(judged: Any) -> None:
    # validity 9 in odd rows and 2 in even ones, of the first 30
    assert found(judged, judge="target") == list(range(1, 30, 2))
    assert found(judged, judge="source") == list(range(0, 30, 2))
    assert found(judged, judge="unsure") == []
    truth = where(judged, lambda row, x, y: bright(y, "Smiling") == bool(row["target"]))
    assert found(judged, judge="oracle") == [i for i in range(30) if (i % 2 == 1) != (i in truth)]
    assert len(found(judged, judge="oracle")) > 3


def standing_of(run: Any, *given: tuple[int, str, str]) -> dict[str, dict[str, Verdict]]:
    out: dict[str, dict[str, Verdict]] = {}
    for place, who, verdict in given:
        name = run.rows[place]["cf_id"]
        out.setdefault(name, {})[who] = Verdict(name, who, verdict)
    return out


def test_verdicts_choose_rows(judged: Any) -> None:
    said = standing_of(
        judged,
        (0, "ann", "valid"),
        (1, "ann", "spurious"),
        (1, "bob", "valid"),
        (3, "bob", "valid"),
    )
    said["gone"] = {"ann": Verdict("gone", "ann", "valid")}  # of a row that is no more
    assert found(judged, said, verdict="any") == [0, 1]
    assert found(judged, said, verdict="none") == [2, *range(3, 40)]
    assert found(judged, said, verdict="spurious") == [1]
    assert found(judged, said, verdict="differ") == [1]
    assert found(judged, said, "bob", verdict="valid") == [1, 3]
    # the judge says source of row 0 and target of row 1
    assert found(judged, said, judge="mine") == [0, 1]


def test_rows_are_sorted_and_those_without_a_value_come_last(judged: Any) -> None:
    assert found(judged, sort="validity")[:15] == list(range(0, 30, 2))
    assert found(judged, sort="-validity")[:15] == list(range(1, 30, 2))
    assert found(judged, sort="-validity")[30:] == list(range(30, 40))
    assert found(judged, sort="-stored") == list(range(40))[::-1]
    by_name = [judged.rows[i]["cf_id"] for i in found(judged, sort="sample")]
    assert by_name == sorted(by_name)
    changes = [np.abs(x.astype(int) - y).mean() for x, y in judged.pictures]
    order = found(judged, sort="l1")
    assert [changes[i] for i in order] == sorted(changes)
    assert dict(sorts_of(read_rows(judged.store, judged.config))).keys() == {
        *("stored", "sample", "p_after", "l1", "judge", "validity")
    }


def test_the_cores_size_chooses_rows(judged: Any) -> None:
    rows = read_rows(judged.store, judged.config)
    share = [None if i % 4 == 0 else i / 40 for i in range(40)]
    rows.table = rows.table.append_column("core_share", pa.array(share, pa.float32()))
    wanted = Wanted(core_min="25", core_max="50", sort="-core_share")
    assert choose(rows, wanted, {}, "").tolist() == [
        i for i in range(40)[::-1] if i % 4 and 10 <= i <= 20
    ]
    assert ("core_share", "size of the core") in sorts_of(rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("direction", "0-1-2"),
        ("direction", "x"),
        ("label", "-1"),
        ("flipped", "maybe"),
        ("changed", "Hat"),
        ("group", "has:Hat"),
        ("group", "near:Bangs"),
        ("judge", "all"),
        ("core_min", "-1"),
        ("core_max", "nan"),
        ("core_max", "1e9"),
        ("verdict", "good"),
        ("sort", "colour"),
    ],
)
def test_a_wrong_filter_is_refused(judged: Any, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        found(judged, **{name: value})


def test_the_summary_counts_and_compares(judged: Any) -> None:
    book = Book(judged.store)
    rows = read_rows(judged.store, judged.config)
    assert describe(summarize(rows, book), []) == ["review: none of 40 rows has a verdict"]
    flips = [i for i, row in enumerate(judged.rows[:30]) if row["flipped"]]
    for number, i in enumerate(flips):
        name = judged.rows[i]["cf_id"]
        # as the judge says, but for every sixth row
        right = "valid" if i % 2 else "spurious"
        wrong = "spurious" if i % 2 else "valid"
        book.give("ann", name, wrong if number % 6 == 5 else right, None, f"ann-{i}")
        if number < 10:
            book.give("bob", name, "unrealistic" if number == 0 else right, None, f"bob-{i}")
    told = summarize(rows, book)
    assert (told["reviewed"], told["several"]) == (len(flips), 10)
    # the first row and the sixth are ties: nobody's label
    assert told["unanimous"] == 0.8
    review = told["references"][1]
    wrong_ones = sum(number % 6 == 5 for number in range(10, len(flips)))
    assert review["n"] == len(flips) - 2
    assert review["accuracy"] == (review["n"] - wrong_ones) / review["n"]
    assert told["reviewers"]["bob"] == {
        "valid": sum(i % 2 for i in flips[1:10]),
        "spurious": sum(i % 2 == 0 for i in flips[1:10]),
        "unrealistic": 1,
    }
    # of bob's ten rows: two of a kind agree in eight
    assert 0.4 < told["alpha"] < 0.8
    lines = describe(told, ["a judge"])
    assert lines[0].startswith(f"review: {len(flips)} of 40 rows have verdicts; by the majority")
    assert any("10 rows with several reviewers: Krippendorff's alpha" in line for line in lines)
    assert any("the judge against the reviewers: right on" in line for line in lines)
    assert lines[-1] == "  the judge is a judge"
