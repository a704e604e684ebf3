"""The content of a run as a page of text."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from configs.strict import UserError
from pipelines.engine.committed import intervened_stage, load_plan, outdated_scores, themes_of
from pipelines.engine.terminal import printable
from pipelines.interventions.lines import theme_summary
from pipelines.report.data import count
from storage.commit import iterate_commits, read_committed, todo
from storage.uri import Store

MOST = 10  # reasons that are listed
NAMED = 3  # rows that are named for each reason


def show(store: Store) -> str:
    """Return counts, flip rate, quarantined rows with their reasons, and failures by cause, as
    text.

    Reads small columns in one pass.
    """
    plan = load_plan(store)
    left = len(todo(plan, store, "generate"))
    shards, rows, answered, flipped, hit, wrong = 0, 0, 0, 0, 0, 0
    waited = computed = 0.0
    failures: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    named: dict[str, list[str]] = {}
    for commit in iterate_commits(store, "generate"):
        shards += 1
        table = read_committed(store, commit, columns=["id", "k", "flipped", "reason", "correct"])
        rows += table.num_rows
        answered += commit.rows_out
        waited += commit.extra.get("wait_seconds", 0.0)
        computed += commit.extra.get("compute_seconds", 0.0)
        flipped += pc.sum(table["flipped"]).as_py() or 0
        hit += pc.count_distinct(table["id"].filter(table["flipped"])).as_py()
        # all answers to a row have the same prediction of it
        judged = table["correct"].filter(pc.equal(table["k"], 0))
        wrong += len(judged) - judged.null_count - (pc.sum(judged).as_py() or 0)
        for why in table["reason"].drop_null().to_pylist():
            count(failures, why)
        for entry in commit.quarantined:
            names = named.setdefault(count(quarantined, entry["reason"]), [])
            names += [entry["id"]] if len(names) < NAMED else []
    several = f", {rows // answered} to each of {answered} rows" if rows > answered else ""
    method = plan.config["method"]
    lines = [
        f"{store.uri}",
        f"  method      {method['target']} ({method.get('preset') or 'own settings'})",
        (
            f"  data        {plan.config['data']['path']}, {plan.rows} rows in"
            f" {len(plan.shards)} shards"
        ),
        f"  generated   {rows} counterfactuals{several}, {shards:,} of {len(plan.shards):,}"
        " shards committed" + (f" ({left} left: run the same command again)" if left else ""),
    ]
    if rows:
        of_rows = (
            f"; an answer of {hit} of {answered} rows ({100 * hit / answered:.1f} %)"
            if several
            else ""
        )
        lines.append(f"  flipped     {flipped} of {rows} ({100 * flipped / rows:.1f} %){of_rows}")
        lines.append(f"  misjudged   {wrong} rows whose prediction differs from the label")
    if computed:
        share = 100 * waited / (waited + computed)
        lines.append(
            f"  workers     {computed:.0f} s of work, and {share:.1f} % of their time spent waiting"
            " for it"
        )
    if old := outdated_scores(store):
        lines.append(f"  note        {old}: `counterfactory score` measures again")
    lines += [f"  themes      {line}" for line in _themes(store)]
    lines.append(f"  quarantined {quarantined.total()}")
    for reason, n in quarantined.most_common(MOST):
        some = ", ".join(map(printable, named[reason]))
        lines.append(f"    {n:6d}  {printable(reason)}: {some}{', ...' if n > NAMED else ''}")
    if failures:
        lines.append(f"  not flipped {sum(failures.values())}")
        lines += [f"    {n:6d}  {printable(reason)}" for reason, n in failures.most_common(MOST)]
    return "\n".join(lines)


def _themes(store: Store) -> list[str]:
    """Return a line for each direction whose flips were grouped."""
    try:
        found = themes_of(store, intervened_stage(store))
    except UserError:
        return []
    return [
        printable(f"{way['source']} -> {way['target']}: {theme_summary(way)}")
        for way in (found["directions"] if found else [])
    ]
