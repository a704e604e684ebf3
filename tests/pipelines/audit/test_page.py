"""The page of an audit: every name is text, and the history has the audits up to this one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines.audit.compare import Comparison
from pipelines.audit.ledger import Record, Stratum
from pipelines.audit.page import LATEST, render_page

MARKUP = "<script>alert(1)</script>"


def record(number: int) -> Record:
    return Record(
        number=number,
        id=f"day-{number}",
        at="2026-11-22T02:00:00+00:00",
        classifier="c" * 16,
        measured={},
        folder="rows",
        rows=40,
        nameless=1,
        strata=[Stratum({"group": MARKUP}, 90, 40)],
        ids="",
    )


def findings(number: int, verdict: str = "clean", tests: Any = ()) -> dict[str, Any]:
    rate = {"kind": "attribute", "name": MARKUP, "n": 30}
    return {
        "name": "watch",
        "id": f"day-{number}",
        "verdict": verdict,
        "text": f"moved {MARKUP} 1 % -> 2 %",
        "decides": MARKUP,
        "classifier": "c" * 16,
        "reference": {"id": "day-0", "same_classifier": True},
        "level": 0.01,
        "least_difference": 0.1,
        "rows": {"candidates": 90, "drawn": 40, "answered": 40, "flipped": 30, "without_id": 1},
        "strata": [{"values": {"group": MARKUP}, "rows": 90, "drawn": 40, "weight": 2.25}],
        "figures": [{**rate, "value": 0.1 * (number % 9), "low": 0.0, "high": 0.9}],
        "tests": [test.to_json() for test in tests],
    }


@pytest.fixture
def page() -> str:
    tests = [
        Comparison("attribute", MARKUP, 30, 40, 0.5, 0.1, p=1e-5, adjusted=1e-4, alarm=True),
        Comparison("distance", "a", 3, 40, note="not tested: 3 flips"),
        Comparison("distance", "b", 3, 40, note="not tested: 3 flips"),
    ]
    earlier = [(record(n), findings(n)) for n in range(2)]
    return render_page(record(2), findings(2, "alarm", tests), earlier)


def test_names_from_the_data_are_text(page: str) -> None:
    assert MARKUP not in page
    assert "&lt;script&gt;" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")


def test_the_history_is_newest_first_and_marks_alarms(page: str) -> None:
    assert re.findall(r'<th scope="row">(day-\d)</th>', page) == ["day-2", "day-1", "day-0"]
    assert page.count('class="alarm now"') == 1
    assert page.count('<circle cx="') == 3
    assert "moved &lt;script&gt;alert(1)&lt;/script&gt; 1 % → 2 %" in page
    assert "+40 points" in page


def test_a_reason_is_said_once_for_all_that_was_not_tested(page: str) -> None:
    assert page.count("Not tested, with 3 flips: distance of a, distance of b.") == 1


def test_a_long_history_is_cut() -> None:
    earlier = [(record(n), findings(n)) for n in range(LATEST + 4)]
    last = record(LATEST + 4)
    text = render_page(last, findings(LATEST + 4), earlier)
    assert text.count('<th scope="row">day-') == LATEST
    assert "5 older audits are not shown" in text
