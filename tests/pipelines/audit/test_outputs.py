"""JUnit XML and Prometheus' text format, whatever names are in the data."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from pipelines.audit.compare import Comparison
from pipelines.audit.outputs import junit, prometheus

ODD = 'a "b" <c> & \\ \x1b[31m\ud800\nline'
LABEL = r'[a-z_]+="(\\.|[^"\\])*"'
LINE = re.compile(rf"counterfactory_audit_[a-z_]+\{{{LABEL}(,{LABEL})*\}} \S+")


def findings(**given: Any) -> dict[str, Any]:
    tests = [
        Comparison("attribute", ODD, 30, 40, 0.5, 0.1, p=1e-5, adjusted=1e-4, alarm=True),
        Comparison("distance", "dark", 30, 40, 0.02, 0.03, p=0.4, adjusted=0.4),
        Comparison("distance", "bright", 3, 4, note="not tested: 3 flips"),
    ]
    return {
        "name": "watch",
        "id": "2026-11-22",
        "verdict": "alarm",
        "text": ODD,
        "rows": {"candidates": 90, "drawn": 40, "answered": 40, "flipped": 30, "without_id": 0},
        "figures": [{"kind": "attribute", "name": ODD, "n": 30, "value": 0.5}],
        "tests": [test.to_json() for test in tests],
        **given,
    }


def test_junit_is_xml_with_a_case_for_each_test() -> None:
    root = ElementTree.fromstring(junit(findings()))
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    cases = suite.findall("testcase")
    assert [len(case) for case in cases] == [1, 0, 1]
    failure = cases[0].find("failure")
    assert failure is not None
    assert str(failure.get("message")).endswith("10 % -> 50 % (p 0.0001)")
    assert "\\x1b[31m" in str(cases[0].get("name"))
    assert "<c>" in str(suite.findtext("system-out"))


def test_every_metric_is_a_line_that_prometheus_reads() -> None:
    text = prometheus(findings(), "2026-11-22T02:00:00+00:00").decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert 'counterfactory_audit_alarm{name="watch"} 1' in lines
    assert 'counterfactory_audit_timestamp_seconds{name="watch"} 1795312800.0' in lines
    assert sum(line.startswith("counterfactory_audit_p{") for line in lines) == 2
    assert text.endswith("\n")
    for name in re.findall(r"^# TYPE (\S+) gauge$", text, re.M):
        assert f"# HELP {name} " in text


def test_a_first_audit_has_no_comparison() -> None:
    first = findings(tests=[], verdict="reference", text="first")
    assert ElementTree.fromstring(junit(first))[0].get("tests") == "0"
    text = prometheus(first, "2026-11-22T02:00:00+00:00").decode()
    assert "counterfactory_audit_p" not in text
    assert 'counterfactory_audit_alarm{name="watch"} 0' in text
