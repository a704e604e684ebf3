"""What a run holds, in a page of text."""

from __future__ import annotations

from collections import Counter

from pipelines.generate import load_plan
from storage.commit import read_commits, read_committed, todo
from storage.uri import Store

MOST = 10


def show(store: Store) -> str:
    """Counts, flip rate, quarantined rows with their reasons, and failures by cause; one pass over small columns."""
    plan = load_plan(store)
    commits = read_commits(store, "generate")
    left = len(todo(plan, store, "generate"))
    rows, flipped, wrong = 0, 0, 0
    failures: Counter[str] = Counter()
    quarantined: list[tuple[str, str]] = []
    for commit in commits.values():
        table = read_committed(store, commit, columns=["flipped", "reason", "correct"])
        rows += table.num_rows
        flipped += sum(table["flipped"].to_pylist())
        wrong += sum(value is False for value in table["correct"].to_pylist())
        failures.update(reason for reason in table["reason"].to_pylist() if reason)
        quarantined += [(entry["id"], entry["reason"]) for entry in commit["quarantined"]]
    method = plan["config"]["method"]
    lines = [
        f"{store.uri}",
        f"  method      {method['target']} ({method.get('preset') or 'own settings'})",
        f"  data        {plan['config']['data']['path']}, {plan['rows']} rows in {len(plan['shards'])} shards",
        f"  generated   {rows} counterfactuals, {len(commits)} of {len(plan['shards'])} shards committed"
        + (f" ({left} left: run the same command again)" if left else ""),
    ]
    if rows:
        lines.append(f"  flipped     {flipped} of {rows} ({100 * flipped / rows:.1f} %)")
        lines.append(f"  misjudged   {wrong} rows whose prediction differs from the label")
    lines.append(f"  quarantined {len(quarantined)}")
    causes = Counter(reason for _, reason in quarantined)
    for reason, count in causes.most_common(MOST):
        names = [name for name, why in quarantined if why == reason][:3]
        lines.append(f"    {count:6d}  {reason}: {', '.join(names)}{', ...' if count > 3 else ''}")
    if failures:
        lines.append(f"  not flipped {sum(failures.values())}")
        lines += [f"    {count:6d}  {reason}" for reason, count in failures.most_common(MOST)]
    return "\n".join(lines)
