"""The story of two audits and a retraining, in numbers of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from configs.strict import UserError
from pipelines.report.job import report
from pipelines.report.story import main_place, tell
from storage.uri import open_store
from tests.pipelines.report.proven import prove, span


def rate(value: float, n: int = 150) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def arm(**shares: float) -> dict[str, Any]:
    groups = {name: rate(value) for name, value in shares.items()}
    worst = min(groups, key=lambda name: groups[name]["value"])
    return {"seeds": {"0": {"groups": groups, "worst": {"group": worst, **groups[worst]}}}}


TABLE = {
    "test_rows": 600,
    "arms": {
        "before": arm(dark=0.02, blond=0.98),
        "line": arm(dark=0.97, blond=0.956),
    },
}


def test_the_story_has_the_tables_numbers(make_run: Callable[..., Any]) -> None:
    first, second = make_run(name="first"), make_run(name="second")
    hair = [{"name": "hair", "share": span(0.91), "changed": 0.4}]
    mouth = [{"name": "mouth", "share": span(0.82), "changed": 0.1}]
    prove(first.store, places=hair)
    prove(second.store, places=mouth)
    assert main_place(first.store) == ("hair", pytest.approx(0.91))
    stores = (first.store, second.store)
    story = tell(stores, {"files": 1, "rows": 1234}, TABLE, ("before", "line"))
    said = story.headline.replace("\N{THIN SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert said == (
        "Hair decided 91 %; after retraining, mouth decides 82 %. Worst group: 2 % right before,"
        " 96 % after."
    )
    assert [step.title[0] for step in story.steps] == list("1234")
    assert story.steps[1].figure == "1,234"
    assert "(dark; then blond) of 600 test rows" in story.steps[2].text
    assert [line[0] for line in story.groups] == ["dark", "blond"]
    folder = first.store.uri.rpartition("/")[0]
    page = open_store(folder).read(
        report(list(stores), out=f"{folder}/loop.html", story=story).rpartition("/")[2]
    )
    assert b'href="#story"' in page
    assert page.count(b"From one audit to the next") == 2
    assert "Hair decided" in page.decode()


def test_a_run_without_places_is_one_line(make_run: Callable[..., Any]) -> None:
    run = make_run()
    prove(run.store, places=[])
    with pytest.raises(UserError, match=r"expected places in interventions/table.json, got none"):
        main_place(run.store)
