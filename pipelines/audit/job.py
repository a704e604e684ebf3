"""`counterfactory audit`: audits new rows of a deployed classifier and compares them with an
earlier audit.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from configs.audit import AuditConfig, load_audit, run_of, today
from pipelines.engine.terminal import print_line

if TYPE_CHECKING:
    from pipelines.audit.ledger import Record
    from storage.uri import Store


def audit(config: AuditConfig) -> dict[str, Any]:
    """Make the audit `config.id`, or continue it, and return its findings.

    A finished audit is not made again: its committed findings are read and its other files written
    anew. UserError where a setting is wrong, no row is new, or the audits cannot be compared;
    NoAnswer where the reference is unfinished.
    """
    from pipelines.audit.findings import read_findings
    from pipelines.audit.ledger import read_ledger
    from pipelines.audit.make import folder_of, make_audit
    from pipelines.engine.disk import disk_errors

    name, store = config.id or today(), store_of(config)
    with disk_errors(store.uri):
        store.expect_inside()
        findings = read_findings(folder_of(store, name)) or make_audit(store, config, name)
        record = next(each for each in read_ledger(store) if each.id == name)
        write_outputs(store, record, findings)
    return findings


def store_of(config: AuditConfig) -> Store:
    """Return the store of the audits' folder, out/name."""
    from storage.uri import open_store

    return open_store(f"{config.out.rstrip('/')}/{config.name}")


def write_outputs(store: Store, record: Record, findings: dict[str, Any]) -> None:
    """Write the files that are made from the findings. The latest audit's audit.prom is also in the
    audits' folder, under a name that does not change.
    """
    from pipelines.audit.findings import read_findings
    from pipelines.audit.ledger import read_ledger
    from pipelines.audit.make import folder_of
    from pipelines.audit.outputs import junit, prometheus
    from pipelines.audit.page import render_page

    records = read_ledger(store)
    known = [(each, read_findings(folder_of(store, each.id))) for each in records]
    earlier = [(r, found) for r, found in known[: record.number] if found is not None]
    folder, metrics = folder_of(store, record.id), prometheus(findings, record.at)
    folder.replace("junit.xml", junit(findings))
    folder.replace("audit.prom", metrics)
    page = render_page(record, findings, earlier)
    folder.replace("report.html", page.encode(errors="backslashreplace"))
    if not any(found is not None for _, found in known[record.number + 1 :]):
        store.replace("audit.prom", metrics)


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    sub.add_argument("config", help="a preset's name or a YAML file")
    sub.add_argument("--id", help="name of this audit, such as the scheduled date (default: today)")
    sub.add_argument(
        "--plan", action="store_true", help="print how many flips show which difference, and exit"
    )


def main(args: argparse.Namespace, sets: list[str]) -> int:
    """Run the command: 0 where nothing differs, 1 at an alarm."""
    given = {"id": args.id, "out": args.out}
    given |= {"run.engine.kind": args.engine, "run.engine.address": args.address}
    named = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    from pipelines.audit.findings import ALARM, level_of, tell_test

    config = load_audit(args.config, [*sets, *named])
    if args.plan:
        from pipelines.audit.power import plan_lines

        print_line("\n".join(plan_lines(config, run_of(config), level_of(config))))
        return os.EX_OK
    findings = audit(config)
    lines = [f"audit {findings['id']}: {findings['text']}"]
    lines += [f"  {tell_test(test)}" for test in findings["tests"] if test["alarm"]]
    if findings["decides"]:
        lines.append(findings["decides"])
    page = f"audits/{findings['id']}/report.html"
    lines.append(f"report: {store_of(config).url(page)}")
    print_line("\n".join(lines))
    return 1 if findings["verdict"] == ALARM else os.EX_OK
