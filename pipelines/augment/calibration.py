"""How far a judge's labels agree with an oracle's and with reviewers', on flipped rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.agreement import krippendorff_alpha
from counterfactory.metrics.rates import RateSums, compute
from pipelines.augment.judged import read_judged
from pipelines.augment.labels import Labels, judged_class, oracle_labels, reviewed_class
from pipelines.augment.reviewed import read_reviewed
from pipelines.engine.committed import attribute_names, class_names, scored_stage
from pipelines.judge.job import SCORES
from pipelines.read import joined, shard_commits
from storage.commit import GENERATE
from storage.seal import sealed
from storage.uri import Store

CALIBRATION = "judge/calibration.json"
LEAST = 100  # rows that a calibrated judge was compared on
ENOUGH = 0.9  # accuracy below which training with its labels fails (docs/judge.md)
ORACLE, REVIEW = "oracle", "review"
WHO = {ORACLE: "the oracle", REVIEW: "the reviewers"}
Row = dict[str, Any]


@dataclass
class Compared:
    """Rows of which the judge has scores and a reference has a label.

    pairs: classes by judge and reference; ids: of these rows; unsure: rows without the judge's
    label.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    unsure: int = 0

    def add(self, row: Row, judged: int | None, expected: int | None) -> None:
        """Count a row; a row without the reference's label is skipped."""
        if expected is None:
            return
        if judged is None:
            self.unsure += 1
            return
        self.pairs.append((judged, expected))
        self.ids.append(row["id"])

    def told(self, reference: str) -> dict[str, Any]:
        """Return the figures: accuracy with its 95 % interval, alpha (nominal), n and unsure."""
        n, hits = len(self.pairs), sum(a == b for a, b in self.pairs)
        share = compute(RateSums(n, hits, n - len(set(self.ids))))
        return {
            "reference": reference,
            "n": n,
            "unsure": self.unsure,
            "accuracy": share.value,
            "low": share.low,
            "high": share.high,
            "alpha": krippendorff_alpha(self.pairs, "nominal") if n else None,
        }


def calibrate(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return the judge's agreement, as `compare`, and write it as CALIBRATION."""
    table = compare(store, config)
    write_calibration(store, table)
    return table


def write_calibration(store: Store, table: Mapping[str, Any]) -> None:
    """Write the result of `compare`."""
    store.replace(CALIBRATION, sealed(table))


def compare(store: Store, config: RunConfig) -> dict[str, Any]:
    """Return the judge's agreement with the oracle and the reviewers.

    The judge's label is that of `augment.label: judge`: target from validity 8, source up to 3. A
    reference's label is that of `oracle` (where it is sure) or of `review` (the majority's). Counts
    flipped rows on which both have a label. `calibrated`: whether one reference has LEAST of them.
    """
    found = {ORACLE: Compared(), REVIEW: Compared()}
    oracle, reviewed = _oracle(store, config), read_reviewed(store)
    for row in _judged_rows(store, oracle is not None):
        judged = judged_class(row)
        if oracle is not None:
            found[ORACLE].add(row, judged, oracle.of(row)[0])
        row["review"] = reviewed.get(row["cf_id"])
        found[REVIEW].add(row, judged, reviewed_class(row))
    return {
        "least": LEAST,
        "calibrated": any(len(one.pairs) >= LEAST for one in found.values()),
        "references": [one.told(name) for name, one in found.items()],
    }


def describe(table: Mapping[str, Any]) -> list[str]:
    """Return a line for each reference that a judge was compared with."""
    lines = []
    for told in table["references"]:
        if not told["n"] + told["unsure"]:
            continue
        unsure = f"; of {told['unsure']} more the judge is not sure" if told["unsure"] else ""
        if not told["n"]:
            lines.append(f"the judge against {WHO[told['reference']]}: no row compared{unsure}")
            continue
        alpha = "none" if told["alpha"] is None else f"{told['alpha']:.2f}"
        share, low, high = (f"{100 * told[name]:.1f}" for name in ("accuracy", "low", "high"))
        lines.append(
            f"the judge against {WHO[told['reference']]}: right on {share} % ({low} to {high}) of"
            f" {told['n']} flipped rows, Krippendorff's alpha {alpha}{unsure}"
        )
    return lines


def calibrated_lines(store: Store, config: RunConfig) -> list[str]:
    """Compare the judge where it answered, and return the lines of `describe`, indented."""
    if not store.exists(SCORES):
        return []
    return [f"  {line}" for line in describe(calibrate(store, config))]


def expect_calibrated(table: Mapping[str, Any]) -> None:
    """Raise UserError where the judge was compared on less than LEAST rows."""
    if table["calibrated"]:
        return
    got = " and ".join(f"{one['n']} with {WHO[one['reference']]}" for one in table["references"])
    raise UserError(
        f"augment.label: judge: expected the judge compared on {LEAST} flipped rows or more, got"
        f" {got}: `counterfactory review` compares it with people's verdicts, and"
        " augment.uncalibrated: true allows its labels as they are"
    )


def warnings_of(table: Mapping[str, Any]) -> list[str]:
    """Return warnings about labels by this judge."""
    if not table["calibrated"]:
        return ["warning: the labels are of a judge that is not calibrated (docs/judge.md)"]
    return [
        f"warning: the judge's labels may be wrong too often to train with: {line}"
        for told in table["references"]
        if told["n"] >= LEAST and told["low"] < ENOUGH
        for line in describe({"references": [told]})
    ]


def _oracle(store: Store, config: RunConfig) -> Labels | None:
    """Return the oracle's rule; None where the run has none, or no scores."""
    try:
        return oracle_labels(config, class_names(store, config), attribute_names(store))
    except UserError:  # a classifier without names
        return None


def _judged_rows(store: Store, oracle: bool) -> Iterator[Row]:
    """Yield the flipped rows that a judge answered, with `answers`, and `attributes_after` where an
    oracle is asked.
    """
    judged = read_judged(store)
    wanted = {GENERATE: ["cf_id", "id", "source", "target", "label", "flipped"]}
    wanted |= {scored_stage(store): ["attributes_after"]} if oracle else {}
    for commits in shard_commits(store, wanted):
        rows = joined(store, commits, wanted).to_pylist()
        for row, answers in zip(rows, judged.of([row["cf_id"] for row in rows]), strict=True):
            if row["flipped"] and answers is not None:
                yield {**row, "answers": answers}
