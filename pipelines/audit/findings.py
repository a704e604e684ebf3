"""An audit's findings: the committed verdict, which the other outputs are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.audit import AlarmsConfig, AuditConfig
from counterfactory.metrics import rates
from counterfactory.metrics.alarms import alpha_of, effective
from pipelines.audit.compare import Comparison
from pipelines.audit.ledger import Record
from pipelines.audit.measure import Answers, Measured
from storage.seal import read_sealed, sealed
from storage.uri import Store

FILE = "findings.json"
SCHEMA = "urn:counterfactory:findings:1"
CLEAN, ALARM, FIRST = "clean", "alarm", "reference"
KINDS = {
    "flip_rate": "rows that flip",
    "attribute": "flips that change",
    "place": "effect at",
    "kind": "effect of",
    "effect": "places and kinds of the effect",
    "distance": "distance of",
}


def level_of(config: AuditConfig) -> float:
    """Return the chance of a false alarm in one audit."""
    alarms = config.alarms or AlarmsConfig()
    return config.alpha or alpha_of(alarms.per_year, alarms.audits)


def build_findings(
    config: AuditConfig,
    record: Record,
    reference: Record | None,
    measured: Measured,
    tests: Sequence[Comparison],
    decides: str | None,
) -> dict[str, Any]:
    """Return the findings; decides: the run's own sentence on what decisions depend on.

    They hold no time and no path, so that an audit that was stopped and continued has the same.
    """
    alarmed = [test for test in tests if test.alarm]
    verdict = FIRST if reference is None else ALARM if alarmed else CLEAN
    return {
        "schema": SCHEMA,
        "name": config.name,
        "id": record.id,
        "number": record.number,
        "verdict": verdict,
        "text": tell(verdict, reference, tests),
        "decides": decides,
        "classifier": record.classifier,
        "reference": None
        if reference is None
        else {"id": reference.id, "same_classifier": reference.classifier == record.classifier},
        "level": level_of(config),
        "least_difference": config.difference,
        "rows": {
            "candidates": sum(stratum.rows for stratum in record.strata),
            "drawn": record.rows,
            "answered": len(measured.answers),
            "flipped": int(measured.answers.flipped.sum()),
            "without_id": record.nameless,
        },
        "strata": [
            {
                "values": stratum.values,
                "rows": stratum.rows,
                "drawn": stratum.drawn,
                "weight": stratum.weight,
            }
            for stratum in record.strata
        ],
        "figures": figures(measured.answers),
        "tests": [test.to_json() for test in tests],
    }


def figures(answers: Answers) -> list[dict[str, Any]]:
    """Return the flip rate and the attributes' rates, weighted back to the rows that could be
    drawn, with Wilson intervals for the number of rows that weighted ones are worth.
    """
    found = [_figure("flip_rate", "flip rate", answers.flipped.astype(float), answers.weights)]
    for at, name in enumerate(answers.attributes):
        keep = answers.flipped & np.isfinite(answers.changed[:, at])
        values, weights = answers.changed[keep, at], answers.weights[keep]
        found.append(_figure("attribute", name, values, weights))
    return found


def _figure(kind: str, name: str, values: Any, weights: Any) -> dict[str, Any]:
    if not len(values):
        return {"kind": kind, "name": name, "n": 0, "value": None, "low": None, "high": None}
    value = float(np.average(values, weights=weights))
    worth = max(1, round(effective(weights)))
    low, high = rates.wilson(value * worth, worth)
    return {"kind": kind, "name": name, "n": len(values), "value": value, "low": low, "high": high}


def commit_findings(folder: Store, findings: dict[str, Any]) -> dict[str, Any]:
    """Write the findings unless there are some; returns those that stand."""
    folder.put_new(FILE, sealed(findings))
    return read_sealed(folder, FILE)


def read_findings(folder: Store) -> dict[str, Any] | None:
    """Return an audit's committed findings; None where it is not finished."""
    return read_sealed(folder, FILE) if folder.exists(FILE) else None


def tell(verdict: str, reference: Record | None, tests: Sequence[Comparison]) -> str:
    """Return the verdict in a sentence."""
    if reference is None:
        return "The first audit of this folder: later audits are compared with it."
    tested = sum(test.p is not None for test in tests)
    if verdict == CLEAN:
        return f"No difference from audit {reference.id} in {tested} tests."
    alarmed = [test for test in tests if test.alarm]
    alarmed.sort(key=lambda test: test.adjusted or 0.0)
    told = "; ".join(tell_test(test.to_json()) for test in alarmed[:3])
    more = f"; and {len(alarmed) - 3} more" if len(alarmed) > 3 else ""
    return f"Different from audit {reference.id}: {told}{more}."


def tell_test(test: dict[str, Any]) -> str:
    """Return one test in words: what was compared, both values and the corrected p-value."""
    what = name_test(test)
    if test["p"] is None:
        return f"{what}: {test['note']}"
    values = " -> ".join(show(test["kind"], test[key]) for key in ("reference_value", "value"))
    return f"{what} {values} (p {test['adjusted']:.2g})"


def name_test(test: dict[str, Any]) -> str:
    """Return what a test compares, in words."""
    if test["kind"] == "flip_rate" or not test["name"]:
        return KINDS[test["kind"]]
    kind = " change" if test["kind"] == "kind" else ""
    return f"{KINDS[test['kind']]} {test['name'].replace('_', ' ')}{kind}"


def show(kind: str, value: float | None) -> str:
    """Return a figure as text: a share in percent, a distance as a number."""
    if value is None:
        return "none"
    return f"{value:.4f}" if kind == "distance" else f"{100 * value:.0f} %"
