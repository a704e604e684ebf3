"""Digests of what an audit's answers depend on, so that only like is compared with like."""

from __future__ import annotations

from configs.audit import AuditConfig
from configs.schema import RunConfig, fingerprint
from configs.strict import UserError
from pipelines.audit.ledger import Record
from pipelines.engine.fingerprints import answering, method_identity, model_fingerprint
from pipelines.interventions.job import OF_ROWS as OF_INTERVENTIONS
from pipelines.interventions.job import region_names
from pipelines.score.job import OF_ROWS as OF_SCORES

CLASSIFIER = "classifier"
# the place of the data, and which of its columns are read, are not how a row is measured
ASIDE = {"preset", "path", "rows", "split", "label", "columns", "mask"}


def digests_of(config: AuditConfig, run: RunConfig, pinned: dict[str, str]) -> dict[str, str]:
    """Return digests of everything but the classifier and the data that answers depend on.

    pinned: the models' digests. Keys are the settings' names.
    """
    core = ["core"] if run.method.core else []
    asked = [name for name in answering(run, pinned) if name != CLASSIFIER]
    asked += [name for name in pinned if name == "oracle"]
    return {
        "method": fingerprint([*method_identity(run), run.method.settings, *core]),
        "seed": str(run.seed),
        "target": fingerprint(run.target.model_dump()),
        "data": fingerprint([run.data.model_dump(exclude=ASIDE), region_names(run)]),
        "score": fingerprint(run.score.model_dump(include=set(OF_SCORES))),
        "interventions": fingerprint(
            [run.interventions.enabled, run.interventions.model_dump(include=set(OF_INTERVENTIONS))]
        ),
        "strata": fingerprint(config.strata),
        **{f"models.{name}": model_fingerprint(run, name, pinned[name]) for name in asked},
    }


def classifier_of(run: RunConfig, pinned: dict[str, str]) -> str:
    """Return the fingerprint of the audited classifier."""
    return model_fingerprint(run, CLASSIFIER, pinned[CLASSIFIER])


def expect_resumable(record: Record, classifier: str, measured: dict[str, str]) -> None:
    """Raise UserError where an unfinished audit was begun with another classifier or settings."""
    changed = [*(["models.classifier"] if record.classifier != classifier else [])]
    changed += differing(record.measured, measured)
    if changed:
        raise UserError(
            f"audit {record.id}: expected what it was begun with, got another"
            f" {' and '.join(changed)}: put it back, or give another id"
        )


def expect_comparable(name: str, measured: dict[str, str], reference: Record) -> None:
    """Raise UserError where more than classifier and data differ from those of the reference."""
    if changed := differing(reference.measured, measured):
        raise UserError(
            f"audit {name}: expected the settings of its reference {reference.id}, got another"
            f" {' and '.join(changed)}: put it back, or name another `reference` or `name`"
        )


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the keys whose digests differ."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
