"""The main job: runs the stages generate, score, attribution, judge, augment and report, then
writes the manifest.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from actors.pinned.black_box import begin_count
from configs.schema import RunConfig, load_run
from configs.strict import NothingMade, UserError, apply_sets, check, parse_yaml
from pipelines.ahead import expect_settings
from pipelines.augment.gates import answers_missing
from pipelines.engine.committed import (
    attributed_stage,
    intervened_stage,
    load_plan,
    outdated_scores,
    scored_stage,
)
from pipelines.engine.disk import disk_errors
from pipelines.engine.part import WHOLE, Part
from pipelines.engine.stop import raise_if_stopped
from pipelines.engine.terminal import print_line
from pipelines.generate.job import generate
from pipelines.generate.plan import open_run, plain_settings
from storage.check import TWICE, check_stage
from storage.commit import committed, iterate_commits, totals
from storage.run import MANIFEST, read_manifest, versions, write_manifest
from storage.secrets import hide
from storage.uri import Store, open_store

STAGES = ("generate", "interventions", "score", "attribution", "judge", "augment", "report")
PARTED = (
    "generate",
    "interventions",
    "score",
    "attribution",
)  # these work per shard; the others need the whole run


def find_run(name: str, sets: list[str], out: str | None = None) -> tuple[Store, RunConfig]:
    """Return a run's store and settings, from a run's folder or from a config's name or path."""
    store = None if name.endswith((".yaml", ".yml")) else open_store(name)
    if store is not None and store.exists("config.yaml"):
        raw = apply_sets(parse_yaml(store.read("config.yaml"), f"{name}/config.yaml"), sets, {})
        return store, check(RunConfig, raw, f"{name}/config.yaml")
    config = load_run(name, [*sets, *([f"out={out}"] if out else [])])
    return open_run(config), config


def run(
    config: RunConfig,
    *,
    stages: tuple[str, ...] = STAGES,
    store: Store | None = None,
    part: Part = WHOLE,
) -> Store:
    """Run the stages in order on the run's folder. The same call again continues an unfinished run
    or updates a finished one.

    part: the shards to work on now. With a range of shards, the stages that need the whole run are
    skipped. UserError where a stage's invariants do not hold afterwards.
    """
    store = store or open_run(config)
    begin_count()
    with disk_errors(store.uri):
        _run(store, config, stages, part)
    return store


def _run(store: Store, config: RunConfig, stages: tuple[str, ...], part: Part) -> None:
    started = time.monotonic()
    if store.exists(MANIFEST):
        read_manifest(store)  # report a damaged manifest before any work
    # a judge and reviewers answer after the run, which is no reason to end it without a report
    whole = stages == STAGES
    if whole:
        stages = tuple(name for name in STAGES if name not in skipped(config))
    expect_settings(config, stages)
    for name in stages:
        raise_if_stopped()
        if part.shards is not None and name not in PARTED:
            print_line(f"{name}: left for a call without --shards, when every shard is done")
            continue
        if whole and name == "augment" and (missing := answers_missing(store, config)):
            print_line(f"augment: left: {missing}, then `augment RUN`")
            continue
        print_line(STAGE_JOBS[name](store, config, part))
        if name in PARTED:
            expect_sound(store, standing_stage(store, name), whole=part.whole)
    plan = load_plan(store)
    write_manifest(
        store,
        {
            "command": hide(shlex.join(["counterfactory", *sys.argv[1:]])),
            "config": plain_settings(config),
            "versions": versions(),
            "models": plan.models,
            "fingerprint": plan.fingerprint,
            "totals": totals(iterate_commits(store, "generate")),
            "stages": list(stages),
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def skipped(config: RunConfig) -> set[str]:
    """Return the stages that `run` skips: turned off by the settings, or without a model."""
    left = {"attribution"} if "attribution" not in config.models else set()
    return left | (set() if config.interventions.enabled else {"interventions"})


def expect_sound(store: Store, stage: str, *, whole: bool = True) -> None:
    """Raise UserError where a stage's invariants do not hold. Checks the commits only; `verify`
    also reads the data.
    """
    broken = check_stage(store, stage, whole=whole)
    if not broken:
        return
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    hint = (
        ": rows of the data share an id: give data.id a column without doubles, or null"
        if TWICE in broken[0]
        else ""
    )
    raise UserError(f"{store.uri}: {broken[0]}{more}{hint}; see `counterfactory verify`")


def standing_stage(store: Store, name: str) -> str:
    """Return the stage's name in the store from which the current table was made."""
    return (
        {
            "score": scored_stage,
            "attribution": attributed_stage,
            "interventions": intervened_stage,
        }[name](store)
        if name != "generate"
        else name
    )


def _generate(store: Store, config: RunConfig, part: Part) -> str:
    counts = generate(store, config, part)
    if counts["rows_in"] and not counts["rows_out"]:
        raise NothingMade(f"{store.uri}: {commonest_reason(store, counts['rows_in'])}")
    quarantined = f", {counts['quarantined']} quarantined" if counts["quarantined"] else ""
    planned = len(load_plan(store).shards)
    left = f"; {counts['shards']:,} of {planned:,} shards" if counts["shards"] < planned else ""
    return (
        f"generate: {counts['rows']} counterfactuals from {counts['rows_in']}"
        f" rows{quarantined}{left}"
    )


def commonest_reason(store: Store, rows: int) -> str:
    """Return one line with the commonest reason for quarantined rows of a run. The ids and numbers
    in it are those of one row.
    """
    reasons: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for commit in iterate_commits(store, "generate"):
        for row in commit.quarantined:
            kind = re.sub(r"\d+", "0", row["reason"])
            reasons[kind] += 1
            shown.setdefault(kind, row["reason"])
    ((kind, count),) = reasons.most_common(1)
    return (
        f"expected rows that can be used, got all {rows:,} quarantined, {count:,} of them with:"
        f" {shown[kind]}; `counterfactory show` lists them"
    )


def _score(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.score.job import score
    from pipelines.score.table import format_figure

    if old := outdated_scores(store):
        print_line(f"score: {old}: they are made again")
    table = score(store, config, part=part)
    shown = {
        m["metric"]: m
        for m in reversed(table["metrics"])
        if m["metric"] in ("flip_rate", "flip_rate[any]", "cout", "l1") and not m.get("by")
    }
    figures = ", ".join(
        format_figure(m) for _, m in sorted(shown.items()) if m["value"] is not None
    )
    audit = table.get("audit")
    return f"score: {figures or 'no row to measure'}" + (
        f"\naudit: {audit['verdict']}" if audit else ""
    )


def _interventions(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.interventions.job import intervene
    from pipelines.interventions.lines import summary

    return f"interventions: {summary(intervene(store, config, part=part))}"


def _attribution(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.attribution.job import attribute
    from pipelines.attribution.table import summary

    return f"attribution: {summary(attribute(store, config, part=part))}"


def _judge(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.judge.job import build_prompts

    built = build_prompts(store, config)
    return f"judge: {built['prompts']} prompts in {', '.join(built['files']) or 'no file'}"


def _augment(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.augment.job import augment

    counts = augment(store, config)
    return "\n  ".join([f"augment: {counts['summary']}", *counts["warnings"]])


def _report(store: Store, config: RunConfig, part: Part) -> str:
    from pipelines.report.job import report

    return f"report: {report([store])}"


STAGE_JOBS: dict[str, Callable[[Store, RunConfig, Part], str]] = {
    "generate": _generate,
    "interventions": _interventions,
    "score": _score,
    "attribution": _attribution,
    "judge": _judge,
    "augment": _augment,
    "report": _report,
}


def stage_needs(store: Store, stage: str) -> None:
    """Raise UserError where a later stage is started on a run without counterfactuals."""
    load_plan(store)
    if stage != "generate" and not committed(store, "generate"):
        raise UserError(
            f"{store.uri}: expected committed counterfactuals, got none: run `counterfactory"
            " generate` first"
        )


__all__: list[Any] = ["STAGES", "find_run", "print_line", "run", "stage_needs"]
