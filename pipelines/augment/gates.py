"""The gates of a training set: conditions that a counterfactual must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.schema import AugmentConfig, RunConfig
from configs.strict import UserError
from counterfactory.metrics.judge import CRITERIA
from pipelines.augment.calibration import expect_calibrated
from pipelines.augment.labels import Labels
from pipelines.judge.job import SCORES as JUDGE_SCORES
from storage.uri import Store
from storage.verdicts import FOLDER as REVIEW

Row = dict[str, Any]


def gates_of(settings: AugmentConfig, labels: Labels) -> dict[str, Callable[[Row], bool]]:
    """Return the conditions that a row must pass, in the order in which they are checked.

    The key is the name under which a rejection is counted. Where a gate is set, a row without a
    value for it fails.
    """

    def at_least(column: str, limit: float) -> Callable[[Row], bool]:
        return lambda row: row[column] is not None and row[column] >= limit

    def at_most(column: str, limit: float) -> Callable[[Row], bool]:
        return lambda row: row[column] is not None and row[column] <= limit

    gates: dict[str, Callable[[Row], bool]] = {
        "not flipped": lambda row: bool(row["flipped"]),
        f"not in split {' or '.join(settings.splits)}": lambda row: row["split"] in settings.splits,
        labels.reason: lambda row: row["assigned"] is not None,
    }
    for name, (column, limit) in limits_of(settings).items():
        if limit is not None:
            gate = at_most if name.startswith("max_") else at_least
            gates[f"outside {name} {limit:g}"] = gate(column, limit)
    return gates


def limits_of(settings: AugmentConfig) -> dict[str, tuple[str, float | None]]:
    """Return the column and the limit of each gate by its setting; None where it is not set."""
    return {
        "min_target": ("p_target", settings.min_target),
        "max_l1": ("l1", settings.max_l1),
        "min_cout": ("cout", settings.min_cout),
        "max_other_attributes": ("changed_spurious", settings.max_other_attributes),
        "min_judge": ("judge", settings.min_judge),
        **{f"judge.{name}": (f"judge_{name}", getattr(settings.judge, name)) for name in CRITERIA},
    }


def answers_missing(store: Store, config: RunConfig) -> str | None:
    """Return what augment's settings need of the judge or of reviewers and the run has not yet, as
    an error's text; None where nothing is missing.
    """
    settings = config.augment
    limits = limits_of(settings).items()
    needs = [name for name, (_, limit) in limits if "judge" in name and limit is not None]
    if settings.label == "judge":
        needs.append("label")
    if needs and not store.exists(JUDGE_SCORES):
        return (
            f"augment.{needs[0]}: expected the judge's answers, got none: `judge RUN --live` asks"
            " for them, or parse them by `judge --answers` first"
        )
    if settings.label == "review" and not store.list(REVIEW):
        return (
            "augment.label: expected the verdicts of reviewers, got none: give them by"
            " `counterfactory review` first"
        )
    return None


def check_gates(
    store: Store, config: RunConfig, calibration: Mapping[str, Any] | None = None
) -> None:
    """Raise UserError where a gate or the label needs what this run has for no row, or the judge's
    label is not calibrated.
    """
    settings = config.augment
    if settings.max_other_attributes is not None and not (
        config.score.causal and "oracle" in config.models
    ):
        raise UserError(
            "augment.max_other_attributes: expected an oracle in models and score.causal, got none"
        )
    if missing := answers_missing(store, config):
        raise UserError(missing)
    if settings.label == "judge" and calibration is not None and not settings.uncalibrated:
        expect_calibrated(calibration)
