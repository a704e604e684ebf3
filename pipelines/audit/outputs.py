"""What other programs read of an audit: JUnit XML for CI, and a text file for Prometheus."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pipelines.audit.findings import ALARM, name_test, tell_test
from pipelines.engine.terminal import printable

PREFIX = "counterfactory_audit"
# XML 1.0 has no place for these characters, escaped or not
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(findings: dict[str, Any]) -> bytes:
    """Return the findings as JUnit XML: a test case for each comparison, an alarm is a failure."""
    tests = findings["tests"]
    failed = sum(test["alarm"] for test in tests)
    skipped = sum(not test["tested"] for test in tests)
    head = f"{findings['name']} {findings['id']}"
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name={_attribute(findings["name"])} tests="{len(tests)}"'
        f' failures="{failed}">',
        f'<testsuite name={_attribute(head)} tests="{len(tests)}" failures="{failed}"'
        f' errors="0" skipped="{skipped}">',
    ]
    for test in tests:
        names = f"classname={_attribute(test['kind'])} name={_attribute(name_test(test))}"
        told = _attribute(tell_test(test))
        if test["alarm"]:
            lines.append(f'<testcase {names}><failure type="alarm" message={told}/></testcase>')
        elif not test["tested"]:
            lines.append(f"<testcase {names}><skipped message={told}/></testcase>")
        else:
            lines.append(f"<testcase {names}/>")
    lines += [f"<system-out>{escape(_plain(findings['text']))}</system-out>"]
    lines += ["</testsuite>", "</testsuites>", ""]
    return "\n".join(lines).encode()


def prometheus(findings: dict[str, Any], at: str) -> bytes:
    """Return the findings in Prometheus' text format; at: when the audit began, ISO 8601."""
    own = {"name": findings["name"]}
    rows = findings["rows"]
    out: list[str] = []
    began = datetime.fromisoformat(at).timestamp()
    _metric(out, "alarm", "1 where the latest audit found a difference", [(own, _alarm(findings))])
    _metric(out, "timestamp_seconds", "When the latest audit began", [(own, began)])
    _metric(
        out,
        "rows",
        "Rows of the latest audit",
        [
            ({**own, "state": state}, rows[state])
            for state in ("candidates", "drawn", "answered", "flipped")
        ],
    )
    _metric(
        out,
        "rate",
        "Share of rows that flip, and of flips that change an attribute",
        [
            ({**own, "kind": line["kind"], "of": line["name"]}, line["value"])
            for line in findings["figures"]
            if line["value"] is not None
        ],
    )
    tested = [test for test in findings["tests"] if test["tested"]]
    labels = [{**own, "kind": test["kind"], "of": test["name"]} for test in tested]
    _metric(
        out,
        "difference",
        "Figure less that of the reference",
        [(label, test["difference"]) for label, test in zip(labels, tested, strict=True)],
    )
    _metric(
        out,
        "p",
        "p-value, corrected for all tests of the audit",
        [(label, test["adjusted"]) for label, test in zip(labels, tested, strict=True)],
    )
    return ("\n".join(out) + "\n").encode()


def _alarm(findings: dict[str, Any]) -> int:
    return int(findings["verdict"] == ALARM)


def _metric(
    out: list[str], name: str, text: str, lines: list[tuple[dict[str, str], float]]
) -> None:
    """Append a gauge; nothing where it has no line."""
    if not lines:
        return
    out += [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} gauge"]
    for labels, value in lines:
        told = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        out.append(f"{PREFIX}_{name}{{{told}}} {value!r}")


def _label(text: str) -> str:
    """Return a label's value with the three characters escaped that the format reserves."""
    plain = _plain(text)
    return plain.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _attribute(text: str) -> str:
    return quoteattr(_plain(text))


def _plain(text: str) -> str:
    return NOT_XML.sub("?", printable(text))
