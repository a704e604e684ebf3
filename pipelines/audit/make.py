"""Makes one audit: draws its rows, runs the stages, compares with the reference, commits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from actors.pinned.load import pin
from configs.audit import FIRST, AuditConfig, run_of
from configs.schema import RunConfig
from configs.strict import NothingMade, UserError
from pipelines.audit.compare import compare
from pipelines.audit.digests import (
    classifier_of,
    digests_of,
    expect_comparable,
    expect_resumable,
)
from pipelines.audit.findings import build_findings, commit_findings, level_of, read_findings
from pipelines.audit.ledger import Record, audited, enter, read_ledger
from pipelines.audit.measure import read_measured
from pipelines.audit.rows import STRATUM
from pipelines.audit.sample import draw
from pipelines.engine.committed import TABLE
from pipelines.engine.terminal import print_line
from pipelines.generate.checks import check_needs, try_models
from pipelines.run import run as run_stages
from storage.errors import NoAnswer
from storage.names import pack
from storage.seal import read_sealed
from storage.uri import Store, open_store

RUN = "run"  # folder of an audit's run, in the audit's folder
STAGES = ("generate", "interventions", "score", "report")


class NotYet(NoAnswer):
    """The reference is not finished; the same command may succeed later."""


def folder_of(store: Store, name: str) -> Store:
    """Return the store of an audit's own folder."""
    return open_store(store.url(f"audits/{name}"))


def make_audit(store: Store, config: AuditConfig, name: str) -> dict[str, Any]:
    """Draw the rows, run the stages and commit the findings, from where an earlier try stopped."""
    folder, run = folder_of(store, name), _with_strata(run_of(config), config)
    pinned = pin(run.model_dump()["models"])
    classifier, measured = classifier_of(run, pinned), digests_of(config, run, pinned)
    if not any(record.id == name for record in read_ledger(store)):
        # an audit that cannot be made or compared draws no rows
        find_reference(store, config, name, measured)
        check_needs(run)
        try_models(run)
    record = enter(
        store, name, lambda records: _drawn(store, config, run, name, records, classifier, measured)
    )
    expect_resumable(record, classifier, measured)
    reference = find_reference(store, config, name, measured)
    store.replace("audit.json", json.dumps(_settings(config, run), indent=1).encode())
    made = open_store(folder.url(RUN))
    stages = tuple(s for s in STAGES if s != "interventions" or run.interventions.enabled)
    try:
        run_stages(_of_rows(run, store, folder, record), stages=stages, store=made)
    except NothingMade as error:
        raise UserError(str(error)) from None
    mine = read_measured(store, made, record, run)
    tests = []
    if reference is not None:
        other = open_store(folder_of(store, reference.id).url(RUN))
        theirs = read_measured(store, other, reference, run)
        tests = compare(mine, theirs, level_of(config), config.difference)
    verdict = read_sealed(made, TABLE).get("audit")
    decides = verdict["verdict"] if verdict else None
    return commit_findings(folder, build_findings(config, record, reference, mine, tests, decides))


def find_reference(
    store: Store, config: AuditConfig, name: str, measured: dict[str, str]
) -> Record | None:
    """Return the record of the audit to compare `name` with; None where it is the first one.

    UserError where the named audit does not exist, is this one, or was measured otherwise; NotYet
    where it is unfinished.
    """
    records = read_ledger(store)
    others = [record for record in records if record.id != name]
    if config.reference == FIRST:
        if not others or records[0].id == name:
            return None
        found = records[0]
    else:
        named = [record for record in others if record.id == config.reference]
        if not named:
            known = ", ".join(record.id for record in others) or "none"
            raise UserError(
                f"reference: expected another audit of {store.uri}, got {config.reference!r}:"
                f" there is {known}"
            )
        found = named[0]
    expect_comparable(name, measured, found)
    if read_findings(folder_of(store, found.id)) is None:
        raise NotYet(
            f"{store.uri}: expected the reference {found.id} to be finished, got an unfinished"
            " audit: run it again with its id, or name another `reference`"
        )
    return found


def _drawn(
    store: Store,
    config: AuditConfig,
    run: RunConfig,
    name: str,
    records: list[Record],
    classifier: str,
    measured: dict[str, str],
) -> Record:
    """Return the ledger's next record, with rows that this classifier was not audited on."""
    drawn = draw(store, config, run, name, audited(records, classifier))
    rows = sum(stratum.drawn for stratum in drawn.strata)
    print_line(f"audit {name}: {rows:,} rows of {sum(s.rows for s in drawn.strata):,} new ones")
    return Record(
        number=len(records),
        id=name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        classifier=classifier,
        measured=measured,
        folder=drawn.folder,
        rows=rows,
        nameless=drawn.nameless,
        strata=drawn.strata,
        ids=pack(drawn.ids),
    )


def _with_strata(run: RunConfig, config: AuditConfig) -> RunConfig:
    """Return the run with the columns of the strata among those that it reads."""
    columns = [*run.data.columns, *(key for key in config.strata if key != "class")]
    data = run.data.model_copy(update={"columns": list(dict.fromkeys(columns))})
    return run.model_copy(update={"data": data})


def _of_rows(run: RunConfig, store: Store, folder: Store, record: Record) -> RunConfig:
    """Return the run over the drawn rows, in the audit's folder."""
    columns = [*run.data.columns, STRATUM]
    data = {"path": store.url(record.folder), "rows": None, "columns": columns, "preset": None}
    title = run.report.model_copy(update={"title": run.report.title or f"Audit {record.id}"})
    return run.model_copy(
        update={
            "name": RUN,
            "out": folder.uri,
            "data": run.data.model_copy(update=data),
            "report": title,
        }
    )


def _settings(config: AuditConfig, run: RunConfig) -> dict[str, Any]:
    """Return the audit's settings as they are stored, without the cluster's address."""
    found = json.loads(run.model_dump_json())
    found["engine"]["address"] = None
    plain: dict[str, Any] = json.loads(config.model_dump_json())
    return {**plain, "run": found}
