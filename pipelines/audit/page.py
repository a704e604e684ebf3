"""The page of an audit: its findings, every comparison, and the audits before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.audit.findings import ALARM, CLEAN, name_test, show
from pipelines.audit.ledger import Record
from pipelines.report.job import page_environment

HERE = Path(__file__).parent
LATEST = 52  # audits in the history, the latest ones
WORDS = {ALARM: "different", CLEAN: "no difference"}
Audits = Sequence[tuple[Record, dict[str, Any]]]


def render_page(record: Record, findings: dict[str, Any], earlier: Audits) -> str:
    """Return the page as text; the same for the same findings and history.

    earlier: the finished audits before this one, in order.
    """
    audits = [*earlier, (record, findings)][-LATEST:]
    template = page_environment(HERE).get_template("audit.html.j2")
    return template.render(
        title=f"Audit {findings['id']} of {findings['name']}",
        several=False,
        found={**findings, "text": findings["text"].replace(" -> ", " → ")},
        began=record.at.replace("T", " ").replace("+00:00", " UTC"),
        sound={CLEAN: "sound", ALARM: "unsound"}.get(findings["verdict"], ""),
        facts=_facts(findings),
        tests=[_test(test) for test in findings["tests"]],
        untested=_untested(findings["tests"]),
        history=[_line(each, found, record.classifier) for each, found in reversed(audits)],
        hidden=len(earlier) + 1 - len(audits),
        trends=_trends(audits),
        strata=[
            {**line, "told": ", ".join(f"{k} {v}" for k, v in line["values"].items()) or "all rows"}
            for line in findings["strata"]
        ],
    )


def _facts(findings: dict[str, Any]) -> list[tuple[str, str]]:
    rows, reference = findings["rows"], findings["reference"]
    compared = "none: this is the first audit"
    if reference is not None:
        same = "the same" if reference["same_classifier"] else "another"
        compared = f"audit {reference['id']}, of {same} classifier"
    return [
        ("reference", compared),
        ("classifier", findings["classifier"]),
        ("rows", f"{rows['drawn']:,} drawn of {rows['candidates']:,} not audited before"),
        ("flips", f"{rows['flipped']:,} of {rows['answered']:,} answered rows"),
        ("false alarms", f"in {100 * findings['level']:.2g} % of such audits"),
        (
            "minimum",
            f"a share must move by over {100 * findings['least_difference']:g} points",
        ),
    ]


def _test(test: dict[str, Any]) -> dict[str, Any]:
    kind, moved = test["kind"], test["difference"]
    size = "" if moved is None else show(kind, abs(moved)).replace(" %", " points")
    sign = "" if moved is None or size.startswith("0 ") else "+" if moved > 0 else "−"
    return {
        "name": name_test(test),
        "before": show(kind, test["reference_value"]) if test["tested"] else "",
        "now": show(kind, test["value"]) if test["tested"] else "",
        "moved": f"{sign}{size}",
        "p": "" if test["adjusted"] is None else f"{test['adjusted']:.2g}",
        "n": f"{test['n']:,} / {test['reference_n']:,}",
        "alarm": test["alarm"],
        "note": test["note"],
    }


def _untested(tests: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return each reason why something was not tested, with what it was."""
    found: dict[str, list[str]] = {}
    for test in tests:
        if not test["tested"]:
            reason = test["note"].removeprefix("not tested: ")
            found.setdefault(reason, []).append(name_test(test))
    return [(reason, ", ".join(names)) for reason, names in found.items()]


def _line(record: Record, findings: dict[str, Any], classifier: str) -> dict[str, Any]:
    alarmed = [name_test(test) for test in findings["tests"] if test["alarm"]]
    return {
        "id": record.id,
        "alarm": findings["verdict"] == ALARM,
        "verdict": WORDS.get(findings["verdict"], "first audit"),
        "classifier": record.classifier[:8],
        "own": record.classifier == classifier,
        "rows": findings["rows"]["answered"],
        "flips": findings["rows"]["flipped"],
        "told": ", ".join(alarmed[:3]) + (f" and {len(alarmed) - 3} more" if alarmed[3:] else ""),
    }


def _trends(audits: Audits) -> list[dict[str, Any]]:
    """Return each figure of the latest audit with its course over the audits, as a drawing."""
    found = []
    for line in audits[-1][1]["figures"]:
        key = line["kind"], line["name"]
        points = [
            next((f for f in told["figures"] if (f["kind"], f["name"]) == key), None)
            for _, told in audits
        ]
        if line["value"] is None:
            continue
        shown = show(line["kind"], line["value"])
        found.append(
            {
                "name": line["name"].replace("_", " "),
                "now": shown,
                "n": line["n"],
                "svg": _draw(points, f"{line['name']}: {shown} now"),
            }
        )
    return found


def _draw(points: Sequence[dict[str, Any] | None], title: str) -> Markup:
    """Return shares over the audits, with their intervals, as a small drawing; 0 is at the foot."""
    height, step = 44.0, 96.0 / max(len(points) - 1, 1)

    def y(share: float) -> str:
        return f"{4 + (height - 8) * (1 - share):.1f}"

    parts = [Markup('<line x1="0" y1="{0}" x2="100%" y2="{0}" class="rail"/>').format(y(0.0))]
    places = [(2 + step * at if len(points) > 1 else 50.0, p) for at, p in enumerate(points)]
    known = [(x, p) for x, p in places if p is not None and p["value"] is not None]
    for (x1, one), (x2, other) in pairwise(known):
        template = '<line x1="{:.1f}%" y1="{}" x2="{:.1f}%" y2="{}" class="course"/>'
        parts.append(Markup(template).format(x1, y(one["value"]), x2, y(other["value"])))
    for x, point in known:
        template = '<line x1="{0:.1f}%" y1="{1}" x2="{0:.1f}%" y2="{2}" class="span"/>'
        parts.append(Markup(template).format(x, y(point["low"]), y(point["high"])))
        template = '<circle cx="{:.1f}%" cy="{}" r="3.2" class="dot"/>'
        parts.append(Markup(template).format(x, y(point["value"])))
    head = '<svg class="mini" width="100%" height="{}" role="img" aria-label="{}">'
    return Markup(head).format(f"{height:.0f}", title) + Markup("").join(parts) + Markup("</svg>")
