"""The demo's question: does the audit name the reason that each classifier learnt?"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.demo import demo
from storage.uri import open_store

pytestmark = pytest.mark.slow


ROWS = 32  # of the demo's 96, and a coarser COUT: the question is the audit's


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo as users run it, but in one process; its page and both score tables."""
    out = tmp_path_factory.mktemp("demo")
    page = demo(str(out), ["engine.kind=local", f"data.rows=:{ROWS}", "score.cout_tolerance=0.01"])
    found = {
        name: json.loads((out / name / "score" / "table.json").read_text())
        for name in ("demo-plain", "demo-biased")
    }
    return {"page": page, **found}


def test_the_biased_classifiers_audit_names_hair_colour(tables: dict[str, Any]) -> None:
    audit = tables["demo-biased"]["audit"]
    assert audit["depends_on"] == "Blond_Hair"
    assert "spurious" in audit["verdict"]


def test_the_plain_classifiers_audit_does_not(tables: dict[str, Any]) -> None:
    audit = tables["demo-plain"]["audit"]
    assert audit["depends_on"] == "Smiling"
    assert "Blond_Hair" not in audit["verdict"]


@pytest.mark.parametrize("name", ["demo-plain", "demo-biased"])
def test_most_rows_flip(tables: dict[str, Any], name: str) -> None:
    rate = next(m for m in tables[name]["metrics"] if m["metric"] == "flip_rate")
    assert rate["n"] == ROWS
    assert rate["value"] >= 0.9


def test_the_judge_calls_itself_no_vision_language_model(tables: dict[str, Any]) -> None:
    text = Path(tables["page"]).read_text()
    assert "Judged by oracle-judge (not a VLM): demo-plain" in text
    assert "by a vision-language model" not in text
    live = json.loads((Path(tables["page"]).parent / "demo-biased/judge/live.json").read_text())
    assert live["parsed"] == ROWS
    # the answers of the biased classifier do not smile, and those of the plain one do
    plain = json.loads((Path(tables["page"]).parent / "demo-plain/judge/live.json").read_text())
    validity = [found["controls"]["pair"]["validity"] for found in (live, plain)]
    assert validity[0] <= 3 < 8 <= validity[1]


def test_one_page_tells_of_both(tables: dict[str, Any]) -> None:
    path = Path(tables["page"])
    text = path.read_text()
    assert tables["demo-biased"]["audit"]["verdict"] in text or "Blond_Hair" in text
    assert open_store(path.parent).exists("report.html")
    assert path.stat().st_size < 6_000_000
