"""A scheduled audit: a run over rows that were not audited yet, compared with an earlier audit."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from configs.schema import Count, Fraction, Name, RunConfig, resolve_run
from configs.strict import Strict, UserError, apply_sets, check, read_preset

FIRST = "first"  # the reference: the first audit of the folder
CLASS = "class"  # a stratum's key: the class of data.label
OF_RUN = "run."  # settings of the run, beside those of the audit
Chance = Annotated[float, Field(gt=0, lt=1)]


def _as_text(value: Any) -> Any:
    """Return a date or a number, as YAML reads an unquoted 2026-11-22 or 47, as text."""
    return str(value) if type(value) in (date, int) else value


AuditId = Annotated[Name, BeforeValidator(_as_text)]


class AlarmsConfig(Strict):
    """The chance of a false alarm in a year, and how many audits share it."""

    per_year: Chance = 0.05
    audits: Count = 52


class AuditConfig(Strict):
    """An audit of a deployed classifier; each call with a new `id` is one audit.

    Audits lie in out/name/audits. The run's settings are fixed between audits, except for the
    classifier and the data.
    """

    name: Name
    run: str | dict[str, Any]  # a run config's preset or path, or the settings themselves
    budget: Count  # rows of one audit
    # columns whose combinations get equal shares of the budget; `class` is the class of data.label
    strata: list[str] = []
    reference: AuditId = (
        FIRST  # the id of the audit to compare with; first: the folder's first audit
    )
    alarms: AlarmsConfig | None = None  # default: 0.05 a year, 52 audits
    alpha: Chance | None = None  # of one audit, in place of alarms
    # an alarm needs a rate, or a share of an effect, that moved by more than this
    difference: Fraction = 0.1
    # of this audit, such as the scheduled date; null: today, in UTC
    id: AuditId | None = None
    out: str = "runs"  # the audits' folder is out/name

    @model_validator(mode="after")
    def _one_level(self) -> AuditConfig:
        if self.alpha is not None and self.alarms is not None:
            raise ValueError("expected `alarms` or `alpha`, got both")
        return self

    @field_validator("strata")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"expected each column once, got {', '.join(value)}")
        return value

    @field_validator("id")
    @classmethod
    def _free(cls, value: str | None) -> str | None:
        if value == FIRST:
            raise ValueError("expected another id than `first`, which names the first audit")
        return value


def load_audit(name: str, sets: list[str] | None = None) -> AuditConfig:
    """Read an audit by preset name or path; sets: `a.b=c` settings that override it.

    Settings that begin with `run.` are the run's. The audit that is returned holds the run's
    resolved settings. UserError where a setting is wrong, or the data have no ids.
    """
    own = [item for item in sets or [] if not item.startswith(OF_RUN)]
    theirs = [item.removeprefix(OF_RUN) for item in sets or [] if item.startswith(OF_RUN)]
    audit = check(AuditConfig, apply_sets(read_preset("audit", name), own, {}), name)
    run = run_of(audit, theirs)
    update = {"run": run.model_dump(mode="json"), "id": audit.id or today()}
    return audit.model_copy(update=update)


def run_of(audit: AuditConfig, sets: list[str] | None = None) -> RunConfig:
    """Return the checked run of an audit; UserError where the data have no ids or no label."""
    raw = read_preset("run", audit.run) if isinstance(audit.run, str) else copy.deepcopy(audit.run)
    run = resolve_run({"name": audit.name, **raw}, sets or [], f"{audit.name}: run")
    if run.data.id is None:
        raise UserError(
            "run.data.id: expected the column that names each row, got none: an audit must know"
            " which rows were audited before"
        )
    if CLASS in audit.strata and run.data.label is None:
        raise UserError("strata: class: expected run.data.label, the column of classes, got none")
    return run


def today() -> str:
    """Return today's date in UTC, the id of an audit that has none."""
    return datetime.now(UTC).strftime("%Y-%m-%d")
