"""The label that a counterfactual gets in a training set, by the rule `augment.label`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.score.measures import query_of
from storage.verdicts import SPURIOUS, VALID

# The stored probabilities are float32, so the limits are too: an oracle's 0.9 is sure.
UNSURE = float(np.float32(0.1)), float(np.float32(0.9))
SHOWS_SOURCE, SHOWS_TARGET = 3, 8  # the judge's validity
VALIDITY = CRITERIA.index("validity")
# Why a row has no label, by rule.
REASONS = {
    "original": "without a label",
    "oracle": "the oracle is not sure of the label",
    "soft": "without the oracle's probability",
    "judge": "the judge is not sure of the label",
    "review": "no reviewers' majority for a label",
}
NO_ORACLE = (
    "warning: each label is the target class, which a classifier with a wrong reason asks for"
    " wrongly. Name the attribute that the class means in score.causal, with an oracle in models,"
    " or set augment.label"
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """A rule, and for oracle and soft the attribute that the class means.

    attribute: its place among the oracle's; shown_by: the class that has it; warning: one line for
    the user, "" where there is none.
    """

    rule: str
    attribute: int = -1
    shown_by: int = 1
    warning: str = ""

    @property
    def reason(self) -> str:
        """Return the name under which rows without a label are counted."""
        return REASONS.get(self.rule, "without a label")

    def of(self, row: Row) -> tuple[int | None, list[float] | None]:
        """Return a row's class index, None where the rule finds none, and with `soft` the
        probabilities of the classes.

        row: of the scores, with `answers`, (R,4) of the judge, or None, and with `review`, the
        reviewers' majority, or None.
        """
        if self.rule in ("oracle", "soft"):
            p = self._probability(row)
            if p is None:
                return None, None
            has, lacks = self.shown_by, 1 - self.shown_by
            if self.rule == "soft":
                probabilities = [p, 1 - p] if has == 0 else [1 - p, p]
                return int(np.argmax(probabilities)), probabilities
            low, high = UNSURE
            return (has if p >= high else lacks if p <= low else None), None
        if self.rule == "judge":
            return judged_class(row), None
        if self.rule == "review":
            return reviewed_class(row), None
        return row[{"original": "label"}.get(self.rule, self.rule)], None

    def _probability(self, row: Row) -> float | None:
        values = row["attributes_after"]
        return None if values is None else float(values[self.attribute])


def judged_class(row: Row) -> int | None:
    """Return the class that all the judge's answers agree on; None where there is none."""
    if row["answers"] is None:
        return None
    validity = row["answers"][:, VALIDITY]
    if (validity >= SHOWS_TARGET).all():
        return int(row["target"])
    return int(row["source"]) if (validity <= SHOWS_SOURCE).all() else None


def reviewed_class(row: Row) -> int | None:
    """Return the class that the reviewers' verdict means; None without one or for unrealistic.

    A spurious counterfactual still shows the original's class: its label where it has one, the
    predicted class where it has none, or where the label is the target itself.
    """
    label = row["source"] if row["label"] in (None, row["target"]) else row["label"]
    return {VALID: int(row["target"]), SPURIOUS: int(label)}.get(row["review"])


def labels_of(config: RunConfig, classes: Sequence[str], attributes: Sequence[str]) -> Labels:
    """Return the rule of a run.

    attributes: the oracle's, [] without one. The attribute that the class means is score.query, or
    else the first of score.causal. The class of its name has it, whatever the case and `_`, or else
    the second class. Without augment.label, the rule is oracle where there is such an attribute and
    there are two classes, else target with a warning. UserError where oracle or soft is asked for
    with other classes, or the run was scored without an oracle.
    """
    rule = config.augment.label
    if rule not in (None, "oracle", "soft"):
        return Labels(str(rule))
    attribute = query_of(config, list(attributes))
    if attribute is None or len(classes) != 2:
        if rule is None:
            return Labels("target", warning=NO_ORACLE)
        got = f"{len(classes)} classes" if attributes else "scores without an oracle"
        raise UserError(
            f"augment.label: {rule}: expected two classes, and an oracle's scores, got {got}"
        )
    same = [_plain(name) == _plain(attributes[attribute]) for name in classes]
    return Labels(rule or "oracle", attribute, 0 if same[0] and not same[1] else 1)


def oracle_labels(
    config: RunConfig, classes: Sequence[str], attributes: Sequence[str]
) -> Labels | None:
    """Return the rule `oracle` of a run, whatever augment.label is; None where it has none."""
    augment = config.augment.model_copy(update={"label": None})
    labels = labels_of(config.model_copy(update={"augment": augment}), classes, attributes)
    return labels if labels.rule == "oracle" else None


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")
